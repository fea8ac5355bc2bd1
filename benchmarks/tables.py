"""Writes the tables of README.md and docs/benchmarks.md from the figures in build/bench/.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, each at the start of a line;
everything outside stays as it is, byte for byte. A table whose CSV file is absent stays too.

    make bench-docs
    .venv/bin/python -m benchmarks.tables --check    # exit status 1 where a table is not up to date
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.figures import BENCH, Figure, SeededFigure, read_figures
from benchmarks.rows import (
    Rows,
    as_markdown,
    demo_rows,
    goal_rows,
    margin_rows,
    network_goal_rows,
    network_rows,
    plain_rows,
    privacy_audit_rows,
    privacy_curve_rows,
    privacy_goal_rows,
    privacy_linkage_rows,
    privacy_throughput_rows,
    quality_rows,
    radius_rows,
    router_rows,
    search_rows,
    secagg_client_rows,
    secagg_goal_rows,
    secagg_rows,
    secagg_study_rows,
    secagg_training_rows,
    sim_goal_rows,
    sim_rows,
)
from benchmarks.study_tables import comparison_rows
from fedhash.errors import DataError, FedhashError

__all__ = ["main", "with_tables"]

DOCUMENTS = (Path("README.md"), Path("docs/benchmarks.md"))
QUALITY, SEARCH, DEMO = BENCH / "quality.csv", BENCH / "search.csv", BENCH / "demo.csv"
QUALITY_RADIUS = BENCH / "quality-radius.csv"
SECAGG_CLIENT, SECAGG_KERMANY = BENCH / "secagg-client.csv", BENCH / "secagg-kermany.csv"
MARGINS, ROUTER, SIM = BENCH / "margins.csv", BENCH / "router.csv", BENCH / "sim.csv"
SECAGG, SECAGG_STUDIES = BENCH / "secagg.csv", BENCH / "secagg-studies.csv"
CURVE, LINKAGE = BENCH / "privacy-curve.csv", BENCH / "privacy-linkage.csv"
NETWORK = BENCH / "network.csv"
COMPARISON = Path("simulations/studies/main_comparison")
AUDITS, THROUGHPUT = BENCH / "privacy-audits.csv", BENCH / "privacy-throughput.csv"
TABLES: dict[str, tuple[Path, Callable[[], Rows]]] = {
    "quality": (QUALITY, lambda: quality_rows(read_figures(QUALITY, SeededFigure))),
    "quality-plain": (QUALITY, lambda: plain_rows(read_figures(QUALITY, SeededFigure))),
    "goals": (QUALITY, lambda: goal_rows(read_figures(QUALITY, SeededFigure))),
    "quality-radius": (
        QUALITY_RADIUS,
        lambda: radius_rows(read_figures(QUALITY_RADIUS, SeededFigure)),
    ),
    "search": (SEARCH, lambda: search_rows(read_figures(SEARCH, Figure))),
    "router": (ROUTER, lambda: router_rows(read_figures(ROUTER, Figure))),
    "secagg": (SECAGG, lambda: secagg_rows(read_figures(SECAGG, Figure))),
    "secagg-goals": (SECAGG, lambda: secagg_goal_rows(read_figures(SECAGG, Figure))),
    "secagg-client": (
        SECAGG_CLIENT,
        lambda: secagg_client_rows(read_figures(SECAGG_CLIENT, Figure)),
    ),
    "secagg-kermany": (
        SECAGG_KERMANY,
        lambda: secagg_training_rows(read_figures(SECAGG_KERMANY, Figure)),
    ),
    "secagg-studies": (
        SECAGG_STUDIES,
        lambda: secagg_study_rows(read_figures(SECAGG_STUDIES, SeededFigure)),
    ),
    "sim": (SIM, lambda: sim_rows(read_figures(SIM, Figure))),
    "sim-goals": (SIM, lambda: sim_goal_rows(read_figures(SIM, Figure))),
    "margins": (MARGINS, lambda: margin_rows(read_figures(MARGINS, SeededFigure))),
    "privacy-curve": (CURVE, lambda: privacy_curve_rows(read_figures(CURVE, SeededFigure))),
    "privacy-goals": (CURVE, lambda: privacy_goal_rows(read_figures(CURVE, SeededFigure))),
    "privacy-audits": (AUDITS, lambda: privacy_audit_rows(read_figures(AUDITS, Figure))),
    "privacy-linkage": (LINKAGE, lambda: privacy_linkage_rows(read_figures(LINKAGE, SeededFigure))),
    "privacy-throughput": (
        THROUGHPUT,
        lambda: privacy_throughput_rows(read_figures(THROUGHPUT, Figure)),
    ),
    "network": (NETWORK, lambda: network_rows(read_figures(NETWORK, Figure))),
    "network-goals": (NETWORK, lambda: network_goal_rows(read_figures(NETWORK, Figure))),
    "main-comparison": (COMPARISON, lambda: comparison_rows(COMPARISON)),
    "demo": (DEMO, lambda: demo_rows(read_figures(DEMO, Figure))),
}
_MARKER = re.compile(r"^<!-- (?:table: (?P<name>[\w-]+)|end) -->", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    check = parser.parse_args().check
    try:
        changed = _changed_documents()
    except (FedhashError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if check and changed:
        raise SystemExit(f"not up to date: {', '.join(map(str, changed))}; run make bench-docs")
    for path, text in changed.items():
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_bytes(text.encode())
        unfinished.replace(path)
        print(f"{path}: written")
    if not changed:
        print("the documents hold the figures that are there")


def _changed_documents() -> dict[Path, str]:
    """New texts of the documents that are not up to date."""
    tables: dict[str, str | None] = {}
    for name, (path, rows) in TABLES.items():
        if path.exists():
            tables[name] = as_markdown(rows())
        else:
            tables[name] = None
            target = path.stem.partition("-")[0]
            print(f"{path} is not there: table {name} stays (make bench-{target})")
    changed = {}
    for path in DOCUMENTS:
        before = path.read_bytes().decode()
        after = with_tables(before, path, tables)
        if after != before:
            changed[path] = after
    return changed


def with_tables(text: str, path: Path, tables: Mapping[str, str | None]) -> str:
    """The text with the content of each region replaced, but for tables that are None.

    Raises:
        DataError: An unknown table, a region that does not end or an end without a region.
    """
    markers = list(_MARKER.finditer(text))
    for number, marker in enumerate(markers):
        place = f"{path}:{text.count(chr(10), 0, marker.start()) + 1}: {marker[0]}"
        is_start = number % 2 == 0
        if is_start != (marker["name"] is not None):
            raise DataError(
                f"{place} follows no table's start"
                if is_start
                else f"{place} stands in another table; end that one with '<!-- end -->'"
            )
        if is_start and marker["name"] not in tables:
            raise DataError(f"{place} is no table; known are {', '.join(tables)}")
        if is_start and marker is markers[-1]:
            raise DataError(f"{place} has no end; write '<!-- end -->' behind the table")
    for start, end in reversed(list(zip(markers[::2], markers[1::2], strict=True))):
        table = tables[start["name"]]
        if table is not None:
            text = f"{text[: start.end()]}\n\n{table}\n{text[end.start() :]}"
    return text


if __name__ == "__main__":
    main()
