"""Whose report is whose: the anchor loss, an in-batch contrastive loss, and private heads.

On the phantom with more than ten thousand held-out pairs, and on the pairs of the public sets,
where pools are as large as there are patients. The contrastive loss is no sum of patient terms, so
no private form of it exists here (`fedhash-sim audit sensitivity`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.figures import BENCH, SeededFigure
from benchmarks.privacy_curve import CURVES, take_data_over
from fedhash_sim.audits.linkage import RunLinkage, audit_run
from fedhash_sim.results import main_table, read_results, spread
from fedhash_sim.run_folder import RunFolder, file_name
from fedhash_sim.settings import read_study
from fedhash_sim.study_run import run_study

__all__ = ["LINKAGES", "Linkage", "linkage_figures"]

_RUNS = BENCH / "privacy" / "linkage"
_PLAIN = "round.aggregation=plain"  # secure sums give the same figures (make bench-secagg)
_CONTRASTIVE = "round.loss={name: contrastive}"
_HEADS = next(curve for curve in CURVES if curve.study == "phantom_frozen")


@dataclass(frozen=True)
class Linkage:
    """One set of pairs.

    Attributes:
        case: Its name among the figures.
        study: File name in configs/study, without ending.
        pool: N of the figures.
        contenders: Name to the overrides that make it.
    """

    case: str
    study: str
    pool: int
    contenders: dict[str, list[str]]


_FROZEN = [
    "round=configs/round/phantom_frozen.yaml",
    "public={share: 0.2, round: configs/round/phantom_hog.yaml}",
]
_PRIVATE = [each for each in _HEADS.changes("distributed", 8.0) if "methods" not in each]


def _small_contenders(
    base: str, towers: Mapping[str, str], dimensions: int, patients: int, layer: str
) -> dict[str, list[str]]:
    """Both losses, and heads over few frozen features; nothing was searched for.

    Args:
        base: File name in configs/round of the towers whose features are frozen.
        towers: Modality to frozen tower.
        dimensions: Of their features, fewer than public patients.
        patients: N of distributed noise.
        layer: Where the features are taken.
    """
    each = ", ".join(
        f"{modality}: {{name: {name}, options: {{dimensions: {dimensions}}}}}"
        for modality, name in towers.items()
    )
    frozen = [
        "round=configs/round/phantom_frozen.yaml",
        f"round.model.towers={{{each}}}",
        f"public={{share: 0.2, layer: {layer}, round: configs/round/{base}.yaml}}",
    ]
    private = [*_PRIVATE, f"round.privacy.expected_patients={patients}"]
    return {
        "anchor": [_PLAIN],
        "contrastive": [_PLAIN, _CONTRASTIVE],
        "heads, no privacy": [*frozen, _PLAIN],
        "heads, epsilon 8": [*frozen, *private],
    }


LINKAGES = (
    Linkage(
        "phantom",
        "phantom_linkage",
        10_000,
        {
            "anchor": [_PLAIN, "round.rounds=40"],
            "contrastive": [
                _PLAIN,
                _CONTRASTIVE,
                "round.rounds=80",
                "round.learning.batch_patients=128",
            ],
            "heads, no privacy": [*_FROZEN, _PLAIN],
            "heads, epsilon 8": [
                *_FROZEN,
                *_PRIVATE,
                "round.privacy.expected_patients=3200",
            ],
        },
    ),
    Linkage(
        "ptbxl",
        "ptbxl_sites",
        100,
        _small_contenders(
            "ptbxl_subset",
            {"signal": "frozen_signal", "report": "frozen_report"},
            dimensions=24,
            patients=300,
            layer="last",
        ),
    ),
    Linkage(
        "covid",
        "covid_locations",
        20,
        _small_contenders(
            "covid_cxr",
            {"image": "frozen_image", "report": "frozen_report"},
            dimensions=6,
            patients=35,
            layer="prepared",
        ),
    ),
)


def linkage_figures(
    linkage: Linkage, *, workers: int, replace: bool, console: Console
) -> Iterator[SeededFigure]:
    """Run and audit every contender of a set of pairs.

    Raises:
        FedhashError: A study cannot be run or audited.
    """
    prepared: dict[Path, RunFolder] = {}  # by the round file, which names the towers
    for contender, changes in linkage.contenders.items():
        console.rule(f"linkage, {linkage.case}: {contender}")
        study = read_study(
            Path("configs/study") / f"{linkage.study}.yaml",
            ["methods=[federated]", *changes],
        )
        path = _RUNS / linkage.case / file_name(contender)
        folder = RunFolder.open(path, study, replace=replace)
        take_data_over(prepared.get(study.settings.round), folder)
        prepared.setdefault(study.settings.round, folder)
        run_study(
            study,
            path,
            workers=workers,
            replace=False,
            command=f"make bench-privacy (linkage, {linkage.case}, {contender})",
            console=console,
        )
        found = [
            audit_run(path, "federated", seed, (linkage.pool,)) for seed in study.settings.seeds
        ]
        for name, unit, values in _values(found):
            each = spread(pd.Series(values))
            yield SeededFigure(linkage.case, contender, name, unit, each.mean, each.sd, each.seeds)
        for row in main_table(read_results(path)):
            each = row.methods["federated"]
            figure = f"map {row.query} -> {row.target}"
            yield SeededFigure(
                linkage.case, contender, figure, "mAP", each.mean, each.sd, each.seeds
            )


def _values(found: list[RunLinkage]) -> Iterator[tuple[str, str, list[float]]]:
    """Name, unit and one value a seed of every figure."""
    rows = pd.DataFrame([asdict(row) | {"seed": each.seed} for each in found for row in each.rows])
    keys = ["query", "target", "pools", "representation", "metric"]
    for (query, target, pools, representation, metric), part in rows.groupby(keys, sort=False):
        name = f"{metric}, {pools}, {representation}, {query} -> {target}"
        yield name, metric, part["value"].tolist()
    for modality, representation in found[0].probes:
        areas = [each.probes[modality, representation].macro_auroc for each in found]
        known = [area for area in areas if area is not None]
        if known:
            yield f"probe, {representation}, {modality}", "AUROC", known
