"""One self-contained HTML page that tells what a run did and found.

Nothing on the page is fetched: style and pictures are inside it, so it can be mailed or archived.

    >>> write_report(Path("runs/demo"))
    Path('runs/demo/report.html')
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fedhash.errors import DataError
from fedhash_sim.code_plots import draw_code_plots
from fedhash_sim.costs import NOTHING, site_costs, stage_costs, training_costs
from fedhash_sim.folder_kinds import check_run
from fedhash_sim.kappa import kappa_table
from fedhash_sim.plots import METHOD_COLOURS, draw_plots
from fedhash_sim.results import (
    SUM_FACTS,
    final_round,
    main_table,
    read_costs,
    read_exchanges,
    read_holdings,
    read_margins,
    read_partition,
    read_privacy,
    read_results,
    read_rounds,
    read_sums,
    spread,
)

__all__ = ["write_report"]

_LONGEST_LIST = 100
# what a reason of secure aggregation begins with; plain aggregation has one stage and names none
_SECURE_STAGES = ("advertise", "share", "mask", "unmask")
_ROUND = ["method", "seed", "model_of", "round"]
_PLOT_TITLES = {
    "map": ("Retrieval quality", "Tie-aware mAP; bars: sd over seeds."),
    "map_by_round": ("Learning curve", "mAP of the model after each evaluated round."),
    "margins": (
        "Margins",
        "The margin of each finding after each step of the schedule; first seed.",
    ),
    "loss": ("Training loss", "What the sites report after their local steps, before averaging."),
    "precision_recall": (
        "Precision and recall by radius",
        "One dot for each Hamming radius from 0 to the code length; circles: the radii of kappa.",
    ),
    "findings": (
        "By finding",
        "Queries positive for the finding; relevant: database studies positive for it.",
    ),
    "site_models": (
        "Models of the sites",
        "Each site's own model, asked the same queries over the same database.",
    ),
    "partition": (
        "Who holds what",
        (
            "Training patients by site and positive finding; patients and studies of each site; "
            "the darker a modality, the more of its studies have it, none where white. First seed."
        ),
    ),
}
_CODE_PLOT_TITLES = {
    "code_space": (
        "Code space",
        "On the plane of two principal components; a study of one finding has its colour.",
    ),
    "code_distances": ("Hamming distances", "Relevant: the two share a positive finding."),
    "bit_balance": ("Bits in use", "A bit at 0 or 1 is equal for all and tells nothing."),
}


def write_report(run: Path) -> Path:
    """Draw the pictures and write `report.html` into the run folder.

    Args:
        run: A finished run folder of `fedhash-sim run`.

    Returns:
        The page.

    Raises:
        CheckpointError: The folder is no run's.
        DataError: The run has no results yet, or a file of it is damaged.
    """
    check_run(run)
    results, rounds, exchanges = read_results(run), read_rounds(run), read_exchanges(run)
    about, privacy = _read_about(run / "run.json"), read_privacy(run)
    margins = read_margins(run)
    plots = draw_plots(run, results, rounds, read_partition(run), read_holdings(run), margins)
    methods = [method for method in METHOD_COLOURS if (results["method"] == method).any()]
    if "privacy" not in about:
        raise _of_another_version(run / "run.json", "it does not tell the methods' privacy")
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
        by_kappa=_by_kappa(results),
        plots=[
            (*_PLOT_TITLES.get(name, (f"By {name.removeprefix('group_')}", "")), _data_url(path))
            for name, path in plots.items()
        ],
        code_plots=[
            (*_CODE_PLOT_TITLES[name], _data_url(path))
            for name, path in draw_code_plots(run).items()
        ],
        failed=_failed_rounds(rounds),
        all_rounds=rounds.groupby(_ROUND).ngroups,
        sites=_taking_part(rounds),
        left_out=rounds[rounds["status"] != "ok"].to_dict("records"),
        notes=rounds[rounds["note"] != ""].to_dict("records"),
        longest_list=_LONGEST_LIST,
        training_costs=training_costs(read_costs(run)),
        stages=stage_costs(exchanges),
        site_costs=site_costs(exchanges),
        sums=_sums(read_sums(run)),
        private=[name for name in methods if about["privacy"][name]["mode"] != "none"],
        open_methods=[name for name in methods if about["privacy"][name]["mode"] == "none"],
        mechanisms=_mechanisms(about["privacy"], privacy),
        spent=_spent(privacy, rounds),
        margins=_margins(margins),
        trust=_trust(privacy),
        configuration=[
            (name, (run / name).read_text(encoding="utf-8", errors="replace"))
            for name in ("study.yaml", "agreement.yaml", "round.yaml")
        ],
    )
    target = run / "report.html"
    unfinished = run / "report.html.tmp"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(target)
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
        raise _of_another_version(run / "run.json", str(error)) from error


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{path} is gone or damaged ({error}); run the study again: the file is written anew"
        ) from error
    return about


def _of_another_version(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} is of another version ({found}); run the study again: the file is written anew"
    )


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


def _by_kappa(results: pd.DataFrame) -> list[dict[str, str]]:
    """What each kappa finds, by direction and method."""
    return [
        {
            "direction": f"{row.query} → {row.target}",
            "method": row.method,
            "kappa": f"{row.kappa:g}",
            "radius, bits": str(row.radius_bits),
            "precision": str(row.precision),
            "of what is found": str(row.precision_of_found),
            "chance": str(row.chance),
            "recall": str(row.recall),
            "finds nothing": str(row.empty),
        }
        for row in kappa_table(results)
    ]


def _failed_rounds(rounds: pd.DataFrame) -> list[dict[str, object]]:
    """The rounds that left the model as it was, and why."""
    failed = rounds[rounds["failure"] != ""]
    return [
        {
            **dict(zip(_ROUND, key, strict=True)),
            "ok": (cell["status"] == "ok").sum(),
            "sites": len(cell),
            "reason": cell["failure"].iloc[0],
        }
        for key, cell in failed.groupby(_ROUND, sort=False)
    ]


def _taking_part(rounds: pd.DataFrame) -> list[dict[str, str]]:
    """Who was in, by method and site, those that were left out most often first."""
    rows = []
    for (method, site), cell in rounds.groupby(["method", "site"], sort=False):
        ok, failed = cell["status"] == "ok", cell["failure"] != ""
        lost = [_stage_and_reason(status) for status in cell["status"][~ok]]
        stages = Counter(stage for stage, _ in lost).most_common()
        reasons = Counter(reason for _, reason in lost).most_common(1)
        rows.append(
            {
                "site": str(site),
                "method": str(method),
                "rounds": str(len(cell)),
                "counted": str((ok & ~failed).sum()),
                "with a note": str((ok & ~failed & (cell["note"] != "")).sum()),
                "in vain": str((ok & failed).sum()),
                "left out": str(len(lost)),
                "at stage": ", ".join(f"{stage} {count}" for stage, count in stages) or NOTHING,
                "reason": reasons[0][0] if reasons else NOTHING,
            }
        )
    return sorted(rows, key=lambda row: -int(row["left out"]))


def _stage_and_reason(status: str) -> tuple[str, str]:
    """Where a round lost a site, and why."""
    if status == "not reachable":
        return "not asked", status
    stage, _, reason = status.partition(": ")
    return (stage, reason) if stage in _SECURE_STAGES else ("train", status)


def _sums(sums: pd.DataFrame) -> list[dict[str, str]]:
    """The kinds of secure rounds, with how often each occurred and how often it failed."""
    names = [name for name in SUM_FACTS if name not in {"clipped_values", "rounding_sd"}]
    rows = []
    for key, cell in sums.groupby(names, sort=False):
        done = cell[cell["failure"] == ""]
        kind = {name: str(value) or NOTHING for name, value in zip(names, key, strict=True)}
        rows.append(
            {
                **kind,
                "clipped values": NOTHING
                if done["clipped_values"].isna().all()
                else f"{done['clipped_values'].sum():,.0f}",
                "rounding sd": NOTHING if done.empty else f"{done['rounding_sd'].max():.1e}",
                "rounds": str(len(cell)),
                "failed": str(len(cell) - len(done)),
            }
        )
    return rows


def _mechanisms(settings: dict[str, dict[str, Any]], privacy: pd.DataFrame) -> list[dict[str, str]]:
    """What a private method's round does at each site, and epsilon over its sites and seeds."""
    rows = []
    for (method, delta), cell in privacy.groupby(["method", "delta"], sort=False):
        of_method, spent = settings[str(method)], cell["epsilon"]
        rows.append(
            {
                "method": str(method),
                "mode": of_method["mode"],
                "sigma": f"{of_method['noise_multiplier']:g}",
                "C": f"{of_method['clip_norm']:g}",
                "q": f"{of_method.get('sampling_rate', 1):g}",  # distributed: all patients
                "steps a round": str(of_method["steps"]),
                "sigma of statistics": NOTHING
                if of_method.get("statistics") is None
                else f"{of_method['statistics']:g}",
                "delta": f"{delta:g}",
                "cap": f"{cell['epsilon_cap'].iloc[0]:g}",
                "epsilon: least": f"{spent.min():.3f}",
                "median": f"{spent.median():.3f}",
                "most": f"{spent.max():.3f}",
            }
        )
    return rows


def _trust(privacy: pd.DataFrame) -> dict[str, list[str]]:
    """Methods whose sites share their noise, and what their epsilon rests on."""
    shared = privacy[privacy["epsilon_shared_noise"] > 0]
    return {
        str(method): sorted(set(cell["trust"]))
        for method, cell in shared.groupby("method", sort=False)
    }


def _spent(privacy: pd.DataFrame, rounds: pd.DataFrame) -> list[dict[str, str]]:
    """What each site of a private method has spent, and how many rounds its cap kept it from."""
    reasons = rounds["status"].map(lambda status: _stage_and_reason(status)[1])
    refused = rounds[reasons.str.startswith("refused: epsilon_cap:")]
    times = Counter(zip(refused["method"], refused["seed"], refused["site"], strict=True))
    return [
        {
            "site": str(row.site),
            "method": str(row.method),
            "seed": str(row.seed),
            "own noise": f"{row.epsilon_own_noise:.3f}",
            "shared noise": f"{row.epsilon_shared_noise:.3f}",
            "epsilon": f"{row.epsilon:.3f}",
            "events": str(row.events),
            "refused": str(times[row.method, row.seed, row.site]),
        }
        for row in privacy.itertuples()
    ]


def _margins(margins: pd.DataFrame) -> list[dict[str, str]]:
    """Where the schedule of each trained model ended, and what drift it told on the way."""
    rows = []
    for (method, seed, model_of), steps in margins.groupby(
        ["method", "seed", "model_of"], sort=False
    ):
        last = steps[steps["round"] == steps["round"].max()]
        low, high = last.loc[last["mu"].idxmin()], last.loc[last["mu"].idxmax()]
        rows.append(
            {
                "model of": str(model_of),
                "method": str(method),
                "seed": str(seed),
                "steps": str(steps["round"].nunique()),
                "least margin": f"{low['mu']:.3f}, {low['finding']}",
                "largest": f"{high['mu']:.3f}, {high['finding']}",
                "kept for want of patients": str(last["r"].isna().sum()),
                "drift, mean": f"{steps['drift'].mean():.2f}",
                "drift, most": f"{steps['drift'].max():.2f}",
            }
        )
    return rows


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
