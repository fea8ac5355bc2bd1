"""`fedhash-coordinator release ...` and `rollback`: what becomes current at the sites."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedhash.errors import FedhashError, ReleaseError
from fedhash.secagg.identity import SiteIdentity
from fedhash_process.printing import AsJson, fail, print_facts, print_json

if TYPE_CHECKING:
    from fedhash.registry.registry import Registry
    from fedhash.registry.statement import Statement

__all__ = ["release", "rollback"]

release = typer.Typer(
    help="Make, check and list releases; 'rollback' makes an older one current again.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
After = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="NUMBER",
        help="Number of the newest statement that sites have seen, where releases/ was lost.",
    ),
]


@release.command()
def make(
    folder: Folder,
    run_id: Annotated[str, typer.Argument(help="The run; its folder is FOLDER/runs/RUN_ID.")],
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Release a run that has rounds left.")
    ] = False,
    after: After = 0,
    as_json: AsJson = False,
) -> None:
    """Make the release of a run, sign it and make it current: sites fetch it from then on.

    Whatever crashed, the same command goes on; one that is current already stays so.
    """
    from fedhash_server.run_release import release_run, run_ids

    try:
        registry = _registry(folder)
        if run_id not in run_ids(folder / "runs"):
            raise ReleaseError(
                f"{folder / 'runs'} has no run {run_id!r}; it has "
                f"{', '.join(run_ids(folder / 'runs')) or 'none'}"
            )
        run = folder / "runs" / run_id
        made = release_run(run, registry.folder, unfinished_too=unfinished)
        statement = registry.current()
        if statement is None or statement.release_id != made.release_id or statement.number < after:
            statement = registry.publish(made.release_id, after)
    except (FedhashError, OSError) as error:
        fail(error)
    facts = {"folder": str(registry.folder / made.release_id)} | _told(statement)
    print_facts(facts | made.describe(), as_json=as_json)


@release.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The release's folder.")], as_json: AsJson = False
) -> None:
    """Verify a release, byte by byte, and print what it says of itself.

    What it states of privacy is computed anew from the trainings that it lists.
    """
    from fedhash.registry.release import load_release

    try:
        loaded = load_release(folder)
        if loaded.privacy is not None and not loaded.privacy.adds_up():
            raise ReleaseError(
                f"{folder} states an epsilon of {loaded.privacy.epsilon}, which is not what the "
                "trainings that it lists come to; whoever made the release made it up"
            )
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(loaded.describe(), as_json=as_json)


@release.command(name="list")
def list_releases(folder: Folder, as_json: AsJson = False) -> None:
    """List the releases of the folder and every statement that was signed."""
    from fedhash.registry.registry import release_ids

    try:
        registry = _registry(folder)
        ids = release_ids(registry.folder)
        statements = registry.statements()
        current = registry.current()
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(
            {
                "current": None if current is None else current.model_dump(mode="json"),
                "releases": ids,
                "statements": [each.model_dump(mode="json") for each in statements],
            }
        )
        return
    table = Table("number", "issued", "kind", "release", "", box=None, header_style="dim")
    for each in statements:
        now = "current" if current is not None and each.number == current.number else ""
        table.add_row(str(each.number), each.issued, each.kind, each.release_id, now)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for release_id in sorted(set(ids) - {each.release_id for each in statements}):
        sys.stdout.write(f"never current: {release_id}\n")


def rollback(
    folder: Folder,
    release_id: Annotated[
        str, typer.Argument(help="A release that was current, as 'release list' prints it.")
    ],
    after: After = 0,
    as_json: AsJson = False,
) -> None:
    """Make an older release current again, by a new signed statement."""
    try:
        statement = _registry(folder).roll_back(release_id, after)
    except (FedhashError, OSError) as error:
        fail(error)
    print_facts(_told(statement), as_json=as_json)


def _told(statement: Statement) -> dict[str, object]:
    return {
        "statement": statement.number,
        "kind": statement.kind,
        "release_id": statement.release_id,
        "issued": statement.issued,
    }


def _registry(folder: Path) -> Registry:
    from fedhash.registry.registry import Registry
    from fedhash_server.coordinator_folder import CoordinatorFolder

    place = CoordinatorFolder(folder)
    return Registry(place.releases, place.agreement(), SiteIdentity.load(place.key("release")))
