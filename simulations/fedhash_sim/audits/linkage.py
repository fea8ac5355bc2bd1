"""`fedhash-sim audit linkage`: can a run's model tell whose report belongs to whose image?

>>> fedhash-sim audit linkage runs/demo --out linkage.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fedhash.errors import DataError
from fedhash_sim.terminal import AsJson, out_console, print_json, print_table, told

if TYPE_CHECKING:
    import pandas as pd

    from fedhash.evaluation.linear_probe import Probe
    from fedhash.evaluation.linkage import LinkageRow

__all__ = ["RunLinkage", "audit_run", "linkage"]

_FIGURE_OF = ["query", "target", "pools", "pool", "representation", "metric"]
_PROBE_OF = ["modality", "representation"]


@dataclass(frozen=True)
class RunLinkage:
    """The audit of one cell of a run.

    Attributes:
        seed: Of the cell.
        rows: Figures of all directions.
        probes: Modality and representation to what a linear probe makes of the outputs.
    """

    seed: int
    rows: tuple[LinkageRow, ...]
    probes: dict[tuple[str, str], Probe]


def linkage(
    run: Annotated[Path, typer.Argument(help="A run folder of 'fedhash-sim run'.", metavar="RUN")],
    method: Annotated[str, typer.Option(help="Whose release; local has none.")] = "federated",
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, help="Default: all seeds of the run. May be repeated."),
    ] = None,
    pools: Annotated[
        list[int] | None,
        typer.Option(
            "--pool",
            min=2,
            help="Size of a pool; default: 100, 1000, 10000, as far as there are patients. "
            "May be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw a plot into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Link the modalities of patients that no site trained on, and ask what the codes are good for.

    Recall@K, lift over chance and rank of a patient's own item in random and label-matched pools;
    macro AUROC of a linear probe beside it.
    """
    with told():
        from fedhash.evaluation.linkage import POOLS
        from fedhash_sim.run_folder import RunFolder, explained

        _, study = RunFolder.existing(run)
        for seed in seeds or ():
            if seed not in study.settings.seeds:
                known = ", ".join(map(str, study.settings.seeds))
                raise typer.BadParameter(f"the run has no seed {seed}, only {known}")
        with explained(run):
            found = [
                audit_run(run, method, seed, pools or POOLS)
                for seed in seeds or study.settings.seeds
            ]
        most = min(max(row.patients for row in each.rows) for each in found)
        if pools and max(pools) > most:
            raise DataError(
                f"a pool of {max(pools)} was asked for, and {most} patients have two modalities in "
                f"one query study; give a --pool of {most} at most"
            )
        figures, probes = _figures(found), _probes(found)
        if out is not None:
            with explained(out):
                _draw(figures, out)
        if as_json:
            print_json(
                {
                    "run": str(run),
                    "method": method,
                    "rows": figures.to_dict("records"),
                    "means": _over_seeds(figures, _FIGURE_OF, "value"),
                    "probes": _without_nan(probes),
                    "probe_means": _over_seeds(probes, _PROBE_OF, "macro_auroc"),
                }
            )
        else:
            _print_figures(figures)
            _print_probes(probes)


def audit_run(run: Path, method: str, seed: int, pools: Sequence[int]) -> RunLinkage:
    """Audit the release of one finished cell on the run's queries.

    Raises:
        CheckpointError: The folder is no run.
        ReleaseError: The run has no such method, or its cell no release: it is not finished, or
            has a model for each site.
        DataError: The prepared studies are damaged or hold no pairs, or a query's patient was
            trained on.
    """
    import numpy as np

    from fedhash.codes import pack_signs, unpack_signs
    from fedhash.evaluation.linear_probe import linear_probe
    from fedhash.evaluation.linkage import audit_linkage
    from fedhash.models.hash_model import encode_studies
    from fedhash_sim.consortium import Consortium
    from fedhash_sim.run_folder import RunFolder

    folder, study = RunFolder.existing(run)
    model = folder.release(study, method, seed).build_model()
    consortium = Consortium.load(folder.data(seed))
    queries, training = consortium.queries(), consortium.training(*consortium.sites)
    seen = {*training.patient_ids, *consortium.public().patient_ids}
    if both := set(queries.patient_ids) & seen:
        raise DataError(
            f"{len(both)} patients both ask and were trained on, {min(both)!r} among them; an "
            "audit of linkage needs patients that the model has not seen: split by patient"
        )
    rows = audit_linkage(model, queries, pools=pools, seed=seed)
    probes = {}
    for modality in model.modalities:
        fitted, asked = (
            studies.select(studies.present[modality].nonzero().flatten().tolist())
            for studies in (training, queries)
        )
        floats = [encode_studies(model, studies, modality) for studies in (fitted, asked)]
        codes = [unpack_signs(pack_signs(each)).astype(np.float32) for each in floats]
        for representation, (known, unseen) in (("codes", codes), ("floats", floats)):
            probes[modality, representation] = linear_probe(
                known, fitted.labels.numpy(), unseen, asked.labels.numpy()
            )
    return RunLinkage(seed, tuple(rows), probes)


def _figures(found: Sequence[RunLinkage]) -> pd.DataFrame:
    """One row a seed and figure."""
    import pandas as pd

    return pd.DataFrame([{"seed": each.seed, **asdict(row)} for each in found for row in each.rows])


def _probes(found: Sequence[RunLinkage]) -> pd.DataFrame:
    """One row a seed, modality and representation."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "seed": each.seed,
                "modality": modality,
                "representation": representation,
                "macro_auroc": float("nan") if probe.macro_auroc is None else probe.macro_auroc,
                "findings": probe.findings,
                "skipped": probe.skipped,
            }
            for each in found
            for (modality, representation), probe in each.probes.items()
        ]
    )


def _over_seeds(table: pd.DataFrame, keys: list[str], column: str) -> list[dict[str, Any]]:
    """Mean and standard deviation of each figure, JSON-able."""
    from fedhash_sim.results import spread

    return [
        {**dict(zip(keys, key, strict=True)), **spread(part[column].dropna()).as_json()}
        for key, part in table.groupby(keys, sort=False)
    ]


def _without_nan(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: None if value != value else value for name, value in row.items()}  # noqa: PLR0124
        for row in table.to_dict("records")
    ]


def _told(part: pd.DataFrame, digits: int, *, with_ends: bool = True) -> str:
    """One figure: with its interval for one seed, with its deviation over several."""
    if len(part) > 1:
        return f"{part['value'].mean():.{digits}f} ± {part['value'].std(ddof=1):.{digits}f}"
    row = part.iloc[0]
    ends = f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if with_ends else ""
    return f"{row['value']:.{digits}f}" + escape(ends)


def _print_figures(figures: pd.DataFrame) -> None:
    seeds = figures["seed"].nunique()
    about = f"{seeds} seeds, ± standard deviation" if seeds > 1 else "1 seed, 95 % intervals"
    for (query, target), direction in figures.groupby(["query", "target"], sort=False):
        table = Table(
            title=f"{escape(str(query))} → {escape(str(target))}, {about}",
            title_justify="left",
            title_style="bold",
            box=None,
            header_style="dim",
            pad_edge=False,
        )
        for heading in ("pools", "on", "recall@1", "chance", "lift@1", "median rank"):
            table.add_column(heading, justify="left" if heading in {"pools", "on"} else "right")
        for (pools, pool, representation), part in direction.groupby(
            ["pools", "pool", "representation"], sort=False
        ):
            metrics = dict(list(part.groupby("metric")))
            median = part["median_pool"].mean()
            table.add_row(
                f"{pools} {pool}" + (f" (~{median:.3g})" if median != pool else ""),
                representation,
                _told(metrics["recall@1"], 4, with_ends=False),
                f"{metrics['recall@1']['chance'].mean():.4f}",
                _told(metrics["lift@1"], 2),
                _told(metrics["median_rank"], 1, with_ends=False),
            )
        print_table(table)
        patients = direction.groupby("pools", sort=False)["patients"].mean()
        asked = ", ".join(f"{count:.4g} in {pools} pools" for pools, count in patients.items())
        out_console.print(f"[dim]patients: {asked}; ~ marks a median size[/]\n", highlight=False)


def _print_probes(probes: pd.DataFrame) -> None:
    from fedhash_sim.results import spread

    table = Table(
        title="Linear probe, fitted to the sites' patients",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("modality", "on", "macro AUROC", "findings", "skipped"):
        is_text = heading in {"modality", "on"}
        table.add_column(heading, justify="left" if is_text else "right")
    for (modality, representation), part in probes.groupby(_PROBE_OF, sort=False):
        table.add_row(
            escape(modality),
            representation,
            str(spread(part["macro_auroc"].dropna())),
            f"{part['findings'].mean():.3g}",
            f"{part['skipped'].mean():.3g}",
        )
    print_table(table)


def _draw(figures: pd.DataFrame, path: Path) -> None:
    """Recall@1 against the size of the pool, which for pools of many sizes is 1 / chance."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from fedhash_sim.plots import PLOT_STYLE

    first = figures[figures["metric"] == "recall@1"]
    directions = list(first.groupby(["query", "target"], sort=False))
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(3.4 * len(directions), 3.4), layout="constrained")
        axes = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
        for axis, ((query, target), direction) in zip(axes, directions, strict=True):
            for representation, colour in (("codes", "#0072B2"), ("floats", "#E69F00")):
                for pools, style, marker in (("random", "-", "o"), ("matched", ":", "s")):
                    line = direction[
                        (direction["representation"] == representation)
                        & (direction["pools"] == pools)
                    ]
                    if line.empty:
                        continue
                    means = line.groupby("pool")[["value", "low", "high", "chance"]].mean()
                    means = means[means["value"] > 0]  # the axis has no place for 0
                    axis.errorbar(
                        1 / means["chance"],
                        means["value"],
                        yerr=_bars(line, means),
                        color=colour,
                        linestyle=style,
                        marker=marker,
                        markersize=3,
                        capsize=2,
                        label=f"{representation}, {pools} pools",
                    )
            lowest = direction["chance"].min()
            axis.plot(
                [1 / direction["chance"].max(), 1 / lowest],
                [direction["chance"].max(), lowest],
                color="#6b7280",
                linestyle="--",
                label="chance",
            )
            axis.set_xscale("log")
            axis.set_yscale("log")
            for each in (axis.xaxis, axis.yaxis):
                each.set_major_formatter("{x:g}")  # the style has no formulas
                each.set_minor_formatter("")
            axis.set_xlabel("patients in the pool (1 / chance)")
            axis.set_title(f"{query} → {target}")
        axes[0].set_ylabel("Recall@1")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(path, format="png", bbox_inches="tight")


def _bars(line: pd.DataFrame, means: pd.DataFrame) -> Any:
    """Lengths below and above: of the interval for one seed, of the deviation over several."""
    import numpy as np

    if line["seed"].nunique() == 1:
        return np.array([means["value"] - means["low"], means["high"] - means["value"]])
    deviations = line.groupby("pool")["value"].std(ddof=1)[means.index]
    return np.array([np.minimum(deviations, 0.999 * means["value"]), deviations])
