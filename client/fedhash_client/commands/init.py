"""`fedhash-site init` and `unit`: from nothing to an enrolled daemon that systemd starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson, fail, print_facts

__all__ = ["init", "unit"]


def init(
    folder: Annotated[Path, typer.Argument(help="The site's folder; made if need be.")],
    name: Annotated[str, typer.Option(help="The site's name in the consortium.")],
    coordinator: Annotated[
        str, typer.Option(metavar="HOST", help="The coordinator's machine, for the site's file.")
    ] = "coordinator.example.org",
    as_json: AsJson = False,
) -> None:
    """Make a site's keys, its request to the coordinator, and a commented site's file.

    A key is never overwritten: a second call makes what is missing and nothing else.
    """
    from fedhash_client.site_folder import make_site_folder

    try:
        made = make_site_folder(folder, name, coordinator=coordinator)
    except (FedhashError, OSError) as error:
        fail(error)
    facts: dict[str, object] = {
        "site": name,
        "made": list(made.made),
        "request": str(folder / "request.json"),
        "digest": made.request.digest(),
        "public_key": made.request.identity,
    }
    if not as_json:
        facts |= {
            "next": "send the request to the coordinator and tell them the digest by another way; "
            f"put what comes back into {folder / 'consortium'}, and fill in {folder / 'site.yaml'}"
        }
    print_facts(facts, as_json=as_json)


def unit(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")],
    user: Annotated[str, typer.Option(help="The user that it runs as.")] = "fedhash",
) -> None:
    """Print the systemd unit that runs this folder's daemon, hardened."""
    from fedhash_client.site_unit import site_unit

    program = Path(sys.executable).with_name("fedhash-site")
    try:
        sys.stdout.write(site_unit(folder.resolve(), str(program), user))
    except FedhashError as error:
        fail(error)
