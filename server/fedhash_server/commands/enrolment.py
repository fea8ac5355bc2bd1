"""`fedhash-coordinator init`, `enrol` and `strike`: who belongs to the consortium."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson, fail, print_facts

__all__ = ["enrol", "init", "strike"]

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]


def init(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder; made if need be.")],
    name: Annotated[str, typer.Option(help="The consortium's name.")],
    host: Annotated[
        list[str],
        typer.Option(
            help="Host name or address that sites reach this machine by. May be repeated."
        ),
    ],
    agreement: Annotated[
        Path | None, typer.Option(help="An agreement to start from; default: a draft.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a consortium: its authority, its servers' certificates, an agreement and settings.

    A key is never overwritten: a second call makes what is missing and nothing else.
    """
    from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder

    try:
        place = CoordinatorFolder(folder)
        made = make_coordinator_folder(place, name, host, agreement)
        facts: dict[str, object] = {
            "consortium": name,
            "folder": str(folder),
            "made": list(made),
            "agreement": str(place.agreement_file),
            "digest": place.agreement().digest(),
        }
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(facts, as_json=as_json)


def enrol(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The site's request.json.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="A new certificate for a site that is enrolled.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sign a site's certificate and put its identity into the agreement.

    Compare the digest with the one that the site's `init` printed before you send anything back.
    """
    from fedhash.enrolment.request import read_request
    from fedhash_server.coordinator_folder import CoordinatorFolder
    from fedhash_server.enrolment import enrol as enrol_site

    try:
        asked = read_request(request)
        done = enrol_site(CoordinatorFolder(folder), asked, replace=replace, dry_run=dry_run)
    except (FedhashError, OSError) as error:
        fail(error)
    facts: dict[str, object] = {
        "site": done.site,
        "digest": asked.digest(),
        "changed": done.changed,
        "dry_run": dry_run,
        "send_to_the_site": str(done.welcome),
        "expires": done.expires,
        "agreement_digest": done.agreement_digest,
        "sites_that_need_the_new_agreement": list(done.other_sites),
    }
    print_facts(facts, as_json=as_json)


def strike(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="The site's name.", metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Strike a site off: no server takes its certificate any more, no round its identity."""
    from fedhash_server.coordinator_folder import CoordinatorFolder
    from fedhash_server.enrolment import strike as strike_site

    try:
        left = strike_site(CoordinatorFolder(folder), site)
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(
        {"struck_off": site, "sites_that_need_the_new_agreement": list(left)}, as_json=as_json
    )
