"""`fedhash-site search`: the site's own archive, by code or by words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedhash.errors import ArchiveError, FedhashError, QueryError, ReleaseError
from fedhash_process.printing import AsJson, fail, print_json

if TYPE_CHECKING:
    from fedhash.agreement import Agreement
    from fedhash_client.own_search import OwnQuery
    from fedhash_client.settings import SiteSettings

__all__ = ["search"]


def search(
    site: Annotated[Path, typer.Argument(help="The site's file.", metavar="SITE.yaml")],
    release: Annotated[
        Path | None,
        typer.Option(help="Folder of a released model; default: the one that the site has."),
    ] = None,
    report: Annotated[str | None, typer.Option(help="Search for studies like this text.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search for studies like this image.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The modality to search in; default: the query's own.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits wanted.")] = 10,
    kappa: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Bound the radius: towards 1 precise, towards -1 broad."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only hits with this attribute. May be repeated."),
    ] = None,
    keywords: Annotated[
        bool, typer.Option("--keywords", help="Search the words of reports, not codes.")
    ] = False,
    federated: Annotated[
        bool, typer.Option("--federated", help="Ask all sites of the consortium, not only this.")
    ] = False,
    purpose: Annotated[
        str | None, typer.Option(help="What a federated search is for, as the agreement names it.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.1, max=60, help="How long other sites may take.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Search the site's own archive for studies like an example; with --federated all sites'.

    Without a release that can be used, reports are searched by their words, and the answer says so.
    """
    from fedhash.registry.release import load_release
    from fedhash.search.filters import parse_filters
    from fedhash_client.commands.site_files import ask_running_daemon, read_site
    from fedhash_client.federated_search import federated_search
    from fedhash_client.merged_table import print_merged
    from fedhash_client.own_search import OwnQuery, encoded, search_words
    from fedhash_client.releases.served import check_release

    try:
        if (report is None) == (image is None):
            raise QueryError("give exactly one of --report and --image")
        if federated != (purpose is not None):
            raise QueryError(
                "--federated and --purpose go together: other sites ask what it is for"
            )
        if federated and keywords:
            raise QueryError("other sites are asked by code; leave out --keywords")
        modality, example = ("image", str(image)) if report is None else ("report", report)
        given: dict[str, object] = {
            "modality": modality,
            "example": example,
            "target": target,
            "k": k,
        }
        query = OwnQuery.of(given | {"filters": parse_filters(where or [])})
        settings, agreement = read_site(site)
        if kappa is not None:
            query = query.model_copy(update={"kappa": kappa})  # NaN is no JSON
        query.check(agreement)
        if purpose is not None:
            used = load_release(release or _release_here(settings))
            check_release(used, agreement)
            asked = encoded(query, used, used.build_model(), agreement)
            merged = federated_search(
                settings, asked, purpose=purpose, timeout_s=timeout_s, site_file=site
            )
            print_merged(merged, as_json=as_json)
            return
        if keywords:
            answer = search_words(settings, agreement, query, "--keywords was given")
        else:
            told = query.model_dump(mode="json")
            told |= {"example": example if image is None else str(image.resolve())}
            found = None if release else ask_running_daemon(settings, "search", **told)
            answer = _direct(site, settings, agreement, query, release) if found is None else found
    except (FedhashError, OSError) as error:
        fail(error)
    if as_json:
        print_json(answer)
    else:
        _print(answer, settings.smallest_kappa)


def _direct(
    site: Path,
    settings: SiteSettings,
    agreement: Agreement,
    query: OwnQuery,
    release: Path | None,
) -> dict[str, Any]:
    """Search without a daemon."""
    from fedhash.registry.release import load_release
    from fedhash_client.own_search import search_own, search_words
    from fedhash_client.releases.served import ServedReleases

    given = None if release is None else load_release(release)
    try:
        with ServedReleases(settings, agreement) as served:
            now = served.open(given)
            if now is not None:
                return search_own(now, settings, agreement, query)
    except (ReleaseError, ArchiveError) as error:  # also while 'index' has the archives
        if given is not None:
            raise
        return search_words(settings, agreement, query, str(error))
    if given is not None:
        raise QueryError(
            f"{settings.archive} is not there; make it first: "
            f"fedhash-site index {site} --release {release}"
        )
    return search_words(settings, agreement, query, "this site has no release yet")


def _release_here(settings: SiteSettings) -> Path:
    """The folder of the release that this site answers with."""
    from fedhash.index import archive_release
    from fedhash_client.commands.site_files import ask_running_daemon
    from fedhash_client.daemon.paths import state_folder

    status = ask_running_daemon(settings, "status")
    if status is not None:
        release_id = status["services"]["archives"]["release"]
    else:
        release_id = archive_release(settings.archive)[0] if settings.archive.exists() else None
    if release_id is None:
        raise QueryError("this site has no release yet, and other sites are asked by code")
    return state_folder(settings) / "releases" / str(release_id)


def _print(answer: dict[str, Any], smallest_kappa: float | None) -> None:
    out = Console()
    by_words = answer["source"] == "keywords"
    measure = "relevance" if by_words else "distance"
    if by_words:
        out.print(f"[yellow]a search for words, not for findings:[/] {answer['reason']}")
    table = Table("", measure, "handle", box=None, header_style="dim")
    for rank, hit in enumerate(answer["hits"], 1):
        shown = f"{hit[measure]:.2f}" if by_words else str(hit[measure])
        table.add_row(str(rank), shown, hit["handle"])
    nothing = (
        "no report with any of the words"
        if by_words
        else "no study within the radius and the filters"
    )
    out.print(table if answer["hits"] else nothing)
    if answer.get("cut_to_bits") is not None:
        out.print(
            f"cut by the site's smallest_kappa ({smallest_kappa:g}): "
            f"hits up to distance {answer['cut_to_bits']} only",
            highlight=False,
        )
