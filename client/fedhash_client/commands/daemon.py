"""`fedhash-site run` and `fedhash-site status`."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedhash.configuration import read_settings
from fedhash.errors import FedhashError
from fedhash_client.settings import SiteSettings
from fedhash_process.printing import AsJson, fail, print_facts, print_json

__all__ = ["run", "status"]

_SiteFile = Annotated[Path, typer.Argument(help="The site's file.", metavar="SITE.yaml")]
_STATUS_TIMEOUT_S = 10.0


def run(site: _SiteFile) -> None:
    """Serve the consortium and this site's own commands, until SIGTERM or Ctrl-C.

    Logs JSON to standard error, tells systemd when it is ready, and answers /health and /metrics on
    loopback.
    """
    from fedhash_client.daemon.assembly import site_daemon  # torch takes seconds

    try:
        site_daemon(site).run()
    except (FedhashError, OSError) as error:
        fail(error)
    if threading.active_count() > 1:  # a training that goes on; its files are safe against this
        logging.shutdown()
        os._exit(0)


def status(
    site: _SiteFile,
    as_json: AsJson = False,
) -> None:
    """Ask the running daemon how it is. Ends with status 1 when a service is not healthy."""
    from fedhash_client.daemon.control import ask_daemon
    from fedhash_client.daemon.paths import CONTROL_SOCKET, state_folder_of

    try:
        folder = state_folder_of(site, read_settings(site, SiteSettings))
        found = ask_daemon(folder / CONTROL_SOCKET, "status", timeout_s=_STATUS_TIMEOUT_S)
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(found)
    else:
        services = found.pop("services")
        answers = found.pop("answers")
        print_facts(found, as_json=False)
        for name, facts in services.items():
            told = ", ".join(f"{fact} {value}" for fact, value in facts.items())
            print_facts({f"service {name}": told}, as_json=False)
        print_facts({f"answered {kind}": count for kind, count in answers.items()}, as_json=False)
    if not found["healthy"]:
        raise typer.Exit(1)
