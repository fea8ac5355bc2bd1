"""`fedhash-coordinator run`, `status` and `train`: the consortium at work."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedhash.errors import FedhashError
from fedhash_process.printing import AsJson, fail, print_facts, print_json

if TYPE_CHECKING:
    from fedhash.rounds.coordinator import RoundRecord

__all__ = ["run", "status", "train", "unit"]

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
_err = Console(stderr=True)


def run(folder: Folder) -> None:
    """Keep gateway, SuperLink and query router running until Ctrl-C or SIGTERM.

    Sites that are enrolled or struck off meanwhile are known within seconds.
    """
    from fedhash_server.coordinator import run_coordinator
    from fedhash_server.coordinator_folder import CoordinatorFolder

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        run_coordinator(CoordinatorFolder(folder), stopping.is_set)
    except (FedhashError, OSError) as error:
        fail(error)


def unit(
    folder: Folder,
    user: Annotated[str, typer.Option(help="The user that it runs as.")] = "fedhash",
) -> None:
    """Print the systemd unit that runs this folder, hardened."""
    from fedhash_server.coordinator_unit import coordinator_unit

    program = Path(sys.executable).with_name("fedhash-coordinator")
    try:
        sys.stdout.write(coordinator_unit(folder.resolve(), str(program), user))
    except FedhashError as error:
        fail(error)


def status(folder: Folder, as_json: AsJson = False) -> None:
    """Tell how servers, sites and runs are; ends with status 1 when something needs a person."""
    from fedhash_server.coordinator_folder import CoordinatorFolder
    from fedhash_server.coordinator_status import read_status

    try:
        found = read_status(CoordinatorFolder(folder))
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(found)
    else:
        out = Console()
        print_facts({name: found[name] for name in ("consortium", "agreement")}, as_json=False)
        for section in ("servers", "sites", "runs"):
            rows = found[section]
            columns = list(next(iter(rows.values()), {}))
            table = Table(section, *columns, box=None, header_style="dim")
            for name, row in rows.items():
                table.add_row(escape(name), *(escape(str(row.get(each, ""))) for each in columns))
            out.print(table)
        for warning in found["warnings"]:
            _err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if found["warnings"]:
        raise typer.Exit(1)


def train(
    folder: Folder,
    round_file: Annotated[Path, typer.Argument(help="How to train.", metavar="ROUND.yaml")],
    run_id: Annotated[
        str | None, typer.Option("--run", help="The run's name; default: the round file's.")
    ] = None,
    sites: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Sites that train; default: all enrolled.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first model; default: 0.")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="RELEASE_ID", help="Start from this release.")
    ] = None,
    frozen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=FILE",
            help="File of a frozen tower that the parent lacks. Repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and start nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a run with the enrolled sites, and tell each round as it ends.

    Whatever crashed, the same command goes on from the run's last checkpoint. Ctrl-C stops the
    telling and not the run.
    """
    from fedhash_server.coordinator_folder import CoordinatorFolder
    from fedhash_server.followed_run import follow_run
    from fedhash_server.training_run import prepare_run

    def tell(record: RoundRecord) -> None:
        counted = sum(outcome == "ok" for outcome in record.sites.values())
        loss = "" if record.mean_loss is None else f", loss {record.mean_loss:.4g}"
        _note(
            f"round {record.round_number} of {prepared.rounds}: {record.failure or 'ok'}; "
            f"{counted} of {len(record.sites)} sites{loss}, {record.seconds:.1f} s"
        )

    try:
        place = CoordinatorFolder(folder)
        names = [name.strip() for name in sites.split(",")] if sites else []
        prepared = prepare_run(
            place,
            round_file,
            run_id=run_id,
            sites=names,
            seed=seed,
            parent=parent,
            frozen=_frozen_files(frozen or []),
            dry_run=dry_run,
        )
        for warning in prepared.warnings:
            _note(f"warning: {warning}")
        facts: dict[str, object] = {
            "run": prepared.run.run_id,
            "folder": str(prepared.folder),
            "sites": list(prepared.run.sites),
            "seed": prepared.run.seed,
            "goes_on": prepared.goes_on,
            "rounds": prepared.rounds_done,
            "of": prepared.rounds,
        }
        if not dry_run:
            state = follow_run(place, prepared, tell, _note)
            failed = [record.round_number for record in state.records if record.failure]
            facts |= {"rounds": state.round_number, "failed_rounds": failed}
    except KeyboardInterrupt:
        _note("the run goes on without this command; the same command watches it again")
        sys.exit(130)
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(facts, as_json=as_json)


def _frozen_files(texts: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        modality, _, file = text.partition("=")
        if not (modality and file) or modality in files:
            message = f"{text!r} is not MODALITY=FILE, each modality once"
            raise typer.BadParameter(message, param_hint="--frozen")
        files[modality] = Path(file)
    return files


def _note(text: str) -> None:
    _err.print(escape(text), highlight=False, soft_wrap=True)
