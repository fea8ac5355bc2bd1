"""`fedhash-site search`: the site's own archive, by code or by words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedhash.errors import ArchiveError, FedhashError, QueryError, ReleaseError
from fedhash_client.printing import fail, print_json

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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search the site's own archive for studies like an example.

    Without a release that can be used, reports are searched by their words, and the answer says so.
    """
    from fedhash.search.filters import parse_filters
    from fedhash_client.commands.site_files import ask_running_daemon, read_site
    from fedhash_client.own_search import OwnQuery, search_words

    try:
        if (report is None) == (image is None):
            raise QueryError("give exactly one of --report and --image")
        modality, example = ("image", str(image)) if report is None else ("report", report)
        asked = {"modality": modality, "example": example, "target": target, "k": k}
        query = OwnQuery.of(asked | {"filters": parse_filters(where or [])})
        settings, agreement = read_site(site)
        if kappa is not None:
            query = query.model_copy(update={"kappa": kappa})  # NaN is no JSON
        query.check(agreement)
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
    with ServedReleases(settings, agreement) as served:
        try:
            now = served.open(given)
        except (ReleaseError, ArchiveError) as error:
            if given is not None:
                raise
            return search_words(settings, agreement, query, str(error))
        if now is None and given is not None:
            raise QueryError(
                f"{settings.archive} is not there; make it first: "
                f"fedhash-site index {site} --release {release}"
            )
        if now is None:
            return search_words(settings, agreement, query, "this site has no release yet")
        return search_own(now, settings, agreement, query)


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
