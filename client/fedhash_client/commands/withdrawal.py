"""`fedhash-site withdraw`, `rebuild-index` and `audit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from fedhash.errors import FedhashError, QueryError, ReleaseError
from fedhash_process.printing import AsJson, fail, print_facts, print_json

if TYPE_CHECKING:
    from fedhash.agreement import Agreement
    from fedhash_client.releases.served import ServedReleases
    from fedhash_client.settings import SiteSettings

__all__ = ["audit", "rebuild_index", "withdraw"]

SiteFile = Annotated[Path, typer.Argument(help="The site's file.", metavar="SITE.yaml")]
_LONGEST_ID_BYTES = 1 << 16


def withdraw(
    site: SiteFile,
    patient: Annotated[
        str,
        typer.Argument(
            help="The patient's id, as the manifest has it; '-' reads it from standard input, so "
            "that it stands in no list of processes and in no shell's history.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Remove a patient from index, caches and keyword store, and from every later training.

    It is done when the command returns, and no later manifest brings the patient back.
    """
    from fedhash_client.commands.site_files import ask_running_daemon, read_site
    from fedhash_client.withdrawal import withdraw as withdraw_patient

    try:
        if patient == "-":
            patient = _read_line(sys.stdin.buffer)
        settings, agreement = read_site(site)
        receipt = ask_running_daemon(settings, "withdraw", patient=patient)
        if receipt is None:
            with _opened(settings, agreement) as (served, note):
                receipt = asdict(
                    withdraw_patient(settings, agreement, patient, served=served, note=note)
                )
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(receipt, as_json=as_json)
    if not as_json and not (receipt["studies"] or receipt["archive_entries"]):
        typer.echo(
            "warning: no study of this patient was found; is the id written as the manifest has "
            "it? It is noted as withdrawn all the same",
            err=True,
        )


def rebuild_index(site: SiteFile, as_json: AsJson = False) -> None:
    """Encode the archive anew with the release that answers.

    Of a running daemon the old archive answers meanwhile; else searches go by words.
    """
    from fedhash_client.commands.site_files import ask_running_daemon, read_site

    try:
        settings, agreement = read_site(site)
        facts = ask_running_daemon(settings, "rebuild-index")
        if facts is None:
            with _opened(settings, agreement) as (served, _):
                now = served.open()
                if now is None:
                    raise ReleaseError(
                        "this site has no release; give one with: fedhash-site index --release"
                    )
                now = served.adopt(now.release, anew=True)
                facts = {"release": now.release.release_id, "entries": now.archive.count()}
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(facts, as_json=as_json)


def audit(
    site: SiteFile,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash of the log that was noted earlier.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Show so many of the newest entries.")] = 10,
    archive: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where archived segments are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the chain of the site's audit log and show its newest entries.

    Entries missing at the end are found only with a --head that was noted before. Segments that
    are archived are counted, and verified with --archive.
    """
    from fedhash.audit_log import START
    from fedhash.audit_segments import verify_segments
    from fedhash_client.commands.site_files import read_site
    from fedhash_client.withdrawal import audit_file

    try:
        settings, _ = read_site(site)
        log = verify_segments(
            audit_file(settings), START if head is None else head, last=last, archive=archive
        )
    except (FedhashError, OSError) as error:
        fail(error)
    facts: dict[str, object] = {
        "log": str(audit_file(settings)),
        "entries": log.entries,
        "head": log.head,
        "segments": [str(file) for file in log.files],
        "archived segments": log.archived,
        "archived entries": log.archived_entries,
        "signed by": sorted(key or "nobody" for key in log.signed_by),
    }
    if as_json:
        print_json(facts | {"newest": [{"number": e.number, **e.content} for e in log.newest]})
        return
    print_facts(facts, as_json=False)
    print_facts({f"entry {each.number}": each.content for each in log.newest}, as_json=False)


def _read_line(file: BinaryIO) -> str:
    """The one line of a file, without its end.

    Raises:
        QueryError: It has another number of lines, is too long or no text.
    """
    data = file.read(_LONGEST_ID_BYTES + 1)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise QueryError("standard input is no UTF-8 text; give the patient's id") from error
    if len(lines) != 1 or len(data) > _LONGEST_ID_BYTES:
        raise QueryError("standard input must hold one line, the patient's id, and nothing else")
    return lines[0]


@contextmanager
def _opened(
    settings: SiteSettings, agreement: Agreement
) -> Iterator[tuple[ServedReleases, Callable[[dict[str, Any]], object]]]:
    """The archives of a site without a daemon, and its audit log; cut-off withdrawals complete."""
    from fedhash.audit_segments import SegmentedAuditLog
    from fedhash_client.releases.served import ServedReleases
    from fedhash_client.withdrawal import audit_file, complete_withdrawals

    def note(content: dict[str, Any]) -> None:
        # opened no earlier: a log that was altered must not keep a patient's data in the index
        with SegmentedAuditLog(audit_file(settings)) as log:
            log.append(content)

    with ServedReleases(settings, agreement) as served:
        complete_withdrawals(settings, agreement, served=served, note=note)
        yield served, note
