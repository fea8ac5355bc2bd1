"""A federated answer on the terminal: hits, and what became of the query at each site."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedhash.search.answers import Merged
from fedhash.search.describing import describe, explain
from fedhash_process.printing import print_json

__all__ = ["print_merged"]


def print_merged(merged: Merged, *, as_json: bool) -> None:
    """Print it; a partial answer says so first."""
    if as_json:
        print_json(describe(merged))
        return
    out = Console()
    if merged.missing:
        out.print(f"[bold yellow]partial:[/] {len(merged.missing)} of {len(merged.sites)} missing")
    hits = Table("", "distance", "site", "handle", box=None, header_style="dim")
    for rank, hit in enumerate(merged.hits, 1):
        hits.add_row(str(rank), str(hit.distance), escape(hit.site), hit.handle)
    out.print(hits if merged.hits else "no study within the radius and the filters")
    sites = Table("site", "", box=None, header_style="dim")
    for result in merged.sites:
        sites.add_row(escape(result.site), escape(explain(result)))
    out.print(sites)
