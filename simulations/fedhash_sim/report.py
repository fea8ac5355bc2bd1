"""One self-contained HTML page that tells what a run did and found.

Nothing on the page is fetched: style and pictures are inside it, so it can be mailed or archived.

    >>> write_report(Path("runs/demo"))
    Path('runs/demo/report.html')
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fedhash.errors import DataError
from fedhash_sim.plots import METHOD_COLOURS, draw_plots
from fedhash_sim.results import (
    SUM_FACTS,
    final_round,
    main_table,
    read_exchanges,
    read_partition,
    read_results,
    read_rounds,
    read_sums,
    spread,
)

__all__ = ["write_report"]

_PLOT_TITLES = {
    "map": ("Retrieval quality", "Tie-aware mAP; bars: sd over seeds."),
    "map_by_round": ("Learning curve", "mAP of the model after each evaluated round."),
    "loss": ("Training loss", "What the sites report after their local steps, before averaging."),
    "precision_recall": (
        "Precision and recall by radius",
        "One dot for each Hamming radius from 0 to the code length.",
    ),
    "findings": (
        "By finding",
        "Queries positive for the finding; relevant: database studies positive for it.",
    ),
    "site_models": (
        "Models trained alone",
        "Each site's own model, asked the same queries over the same database.",
    ),
    "partition": ("Who holds what", "Training patients by site and positive finding, first seed."),
}


def write_report(run: Path) -> Path:
    """Draw the pictures and write `report.html` into the run folder.

    Args:
        run: A finished run folder of `fedhash-sim run`.

    Returns:
        The page.

    Raises:
        DataError: The run has no results yet, or a file of it is damaged.
    """
    results, rounds = read_results(run), read_rounds(run)
    about = _read_about(run / "run.json")
    plots = draw_plots(run, results, rounds, read_partition(run))
    methods = [method for method in METHOD_COLOURS if (results["method"] == method).any()]
    page = _rendered(
        run,
        about=about,
        methods=methods,
        colours=METHOD_COLOURS,
        tables=[
            ("mAP", main_table(results)),
            ("mAP, mean over findings", main_table(results, "macro_map")),
        ],
        ball=_ball(results),
        plots=[
            (*_PLOT_TITLES.get(name, (f"By {name.removeprefix('group_')}", "")), _data_url(path))
            for name, path in plots.items()
        ],
        left_out=rounds[rounds["status"] != "ok"].to_dict("records")[:100],
        left_out_count=int((rounds["status"] != "ok").sum()),
        answers=len(rounds),
        notes=rounds[rounds["note"] != ""].to_dict("records")[:100],
        stages=_stages(read_exchanges(run)),
        sums=_sums(read_sums(run)),
        configuration=[
            (name, (run / name).read_text(encoding="utf-8"))
            for name in ("study.yaml", "agreement.yaml", "round.yaml")
        ],
    )
    target = run / "report.html"
    target.write_text(page, encoding="utf-8")
    return target


def _rendered(run: Path, **facts: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedhash_sim"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return environment.get_template("report.html.j2").render(facts)
    except jinja2.UndefinedError as error:
        raise DataError(
            f"{run / 'run.json'} is of another version ({error}); run the study again: the file is "
            "written anew"
        ) from error


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{path} is gone or damaged ({error}); run the study again: the file is written anew"
        ) from error
    return about


def _ball(results: pd.DataFrame) -> list[dict[str, str]]:
    """Precision in the ball of radius 2 and the share of empty balls, by method and direction."""
    final = final_round(results)
    rows = []
    for (query, target, method), cell in final.groupby(["query", "target", "method"], sort=False):
        values = {
            metric: str(
                spread(cell[(cell["metric"] == metric) & (cell["group"] == "all")]["value"])
            )
            for metric in ("precision_in_ball", "empty_ball_share", "ndcg", "chance_ndcg")
        }
        rows.append({"direction": f"{query} → {target}", "method": str(method), **values})
    return rows


def _stages(exchanges: pd.DataFrame) -> list[dict[str, str]]:
    """What a stage costs a site, by method: answers, failures, bytes and seconds."""
    rows = []
    for (method, stage), cell in exchanges.groupby(["method", "stage"], sort=False):
        good = cell[cell["reply_bytes"] > 0]
        rows.append(
            {
                "method": str(method),
                "stage": str(stage),
                "requests": f"{len(cell):,}",
                "replies": f"{len(good):,}",
                "to the site, kB": f"{good['request_bytes'].mean() / 1e3:,.1f}",
                "from the site, kB": f"{good['reply_bytes'].mean() / 1e3:,.1f}",
                "seconds": f"{good['seconds'].mean():.3f}",
            }
        )
    return rows


def _sums(sums: pd.DataFrame) -> list[dict[str, str]]:
    """The kinds of rounds that were summed under masks, with how often each occurred."""
    kinds = sums.groupby(["method", *SUM_FACTS[:-2]], sort=False)
    return [
        {
            **{name: str(value) for name, value in zip(("method", *SUM_FACTS), key, strict=False)},
            "clipped_values": str(int(cell["clipped_values"].sum())),
            "largest_rounding_sd": f"{cell['rounding_sd'].max():.2g}",
            "rounds": str(len(cell)),
        }
        for key, cell in kinds
    ]


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
