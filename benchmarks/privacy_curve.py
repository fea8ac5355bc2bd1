"""What privacy costs: retrieval at patient-level epsilon 8, 3, 1, without privacy, of public data.

Each contender is a study of configs/study with other privacy, in a run folder of its own; data that
one contender prepared is taken over by the next. Noise is chosen from epsilon, delta and steps by
the accountant. docs/benchmarks.md says what was tried before on `val`; no epsilon holds it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.figures import BENCH, SeededFigure
from fedhash.privacy.accountant import smallest_noise_multiplier
from fedhash_sim.results import main_table, read_privacy, read_results, spread
from fedhash_sim.run_folder import RunFolder, file_name
from fedhash_sim.settings import read_study
from fedhash_sim.study_run import run_study

__all__ = ["CURVES", "EPSILONS", "Curve", "curve_figures", "take_data_over"]

EPSILONS = (8.0, 3.0, 1.0)
_DELTA = 1e-5
_RUNS = BENCH / "privacy"
_ONE_STEP = (
    "{optimiser: sgd, local_steps: 1, control_variates: false, weight_decay: 0.0, "
    "learning_rate: RATE}"
)


@dataclass(frozen=True)
class Curve:
    """One study under every privacy.

    Attributes:
        case: Its name among the figures.
        study: File name in configs/study, without ending.
        frozen: Whether its towers are frozen and begin with what the public patients gave.
        rounds: Of the private runs.
        clip_norm: C.
        expected_patients: N of distributed noise.
        rates: Epsilon to the learning rate of its private runs, but for `site` from scratch;
            empty without such runs.
        site_steps: Local steps and sampling rate under the site's own noise.
    """

    case: str
    study: str
    frozen: bool
    rounds: int
    clip_norm: float
    expected_patients: int
    rates: Mapping[float, float]
    site_steps: tuple[int, float] = (1, 1.0)

    def changes(self, mode: str, epsilon: float) -> list[str]:
        """Overrides that make the study a private one."""
        steps, sampling_rate = self.site_steps if mode == "site" else (1, 1.0)
        sigma = smallest_noise_multiplier(
            epsilon, _DELTA, steps=self.rounds * steps, sampling_rate=sampling_rate
        )
        shared = {
            "mode": mode,
            "clip_norm": self.clip_norm,
            "noise_multiplier": sigma,
        }
        rate = self.rates[epsilon]
        if mode == "distributed":
            privacy = shared | {"expected_patients": self.expected_patients}
            aggregation, weighting = "secure", "uniform"
        else:  # secure sums give the same figures (make bench-secagg)
            privacy = shared | {"sampling_rate": sampling_rate}
            aggregation, weighting = "plain", "rounded_patients"
        terms = {"epsilon_cap": epsilon, "delta": _DELTA, "modes": [mode]}
        changes = [
            f"round.privacy={_yaml(privacy)}",
            f"round.aggregation={aggregation}",
            f"round.weighting={weighting}",
            f"round.rounds={self.rounds}",
            f"agreement.privacy={_yaml(terms)}",
            "methods=[federated]",
        ]
        if self.frozen:
            changes.append(f"round.learning.learning_rate={rate}")
        elif mode == "distributed":
            changes.append(f"round.learning={_ONE_STEP.replace('RATE', str(rate))}")
            changes.append("round.coordinator_optimiser={name: fedavgm}")
        else:
            changes.append(f"round.learning.local_steps={steps}")
        return changes


CURVES = (
    Curve(
        "kermany, frozen, held out",
        "kermany_frozen_held_out",
        frozen=True,
        rounds=60,
        clip_norm=0.7,
        expected_patients=1900,
        rates={8.0: 2.0, 3.0: 1.0, 1.0: 0.5},
    ),
    Curve(
        "kermany, frozen, train database",
        "kermany_frozen_train_database",
        frozen=True,
        rounds=60,
        clip_norm=0.7,
        expected_patients=2500,
        rates={8.0: 2.0, 3.0: 1.0, 1.0: 0.5},
    ),
    Curve(
        "kermany, from scratch, held out",
        "kermany_hog_held_out",
        frozen=False,
        rounds=40,
        clip_norm=0.5,
        expected_patients=1750,
        rates={8.0: 1.0, 3.0: 0.5, 1.0: 0.2},
        site_steps=(4, 0.2),
    ),
    Curve(
        "kermany, from scratch, train database",
        "kermany_hog_train_database",
        frozen=False,
        rounds=40,
        clip_norm=0.5,
        expected_patients=2500,
        rates={},
    ),
    Curve(
        "phantom, frozen",
        "phantom_frozen",
        frozen=True,
        rounds=60,
        clip_norm=0.7,
        expected_patients=1750,
        rates={8.0: 1.0, 3.0: 1.0, 1.0: 0.5},
    ),
    Curve(
        "phantom, from scratch",
        "phantom_dirichlet",
        frozen=False,
        rounds=20,
        clip_norm=0.5,
        expected_patients=1750,
        rates={8.0: 1.0, 3.0: 0.5, 1.0: 0.2},
        site_steps=(4, 0.2),
    ),
)


def curve_figures(
    curve: Curve, *, workers: int, replace: bool, console: Console
) -> Iterator[SeededFigure]:
    """Run every contender of a curve and yield its figures.

    Raises:
        FedhashError: A study cannot be run.
    """
    methods = "[federated, public, start]" if curve.frozen else "[federated, public]"
    public = [] if curve.frozen else ["public={share: 0.2}"]  # the same patients in all studies
    contenders = {"no privacy": ["round.aggregation=plain", f"methods={methods}", *public]}
    for mode in ("distributed", "site"):
        for epsilon in curve.rates:
            contenders[f"{mode}, epsilon {epsilon:g}"] = [*public, *curve.changes(mode, epsilon)]
    first: RunFolder | None = None
    for contender, changes in contenders.items():
        console.rule(f"{curve.case}: {contender}")
        study = read_study(Path("configs/study") / f"{curve.study}.yaml", changes)
        path = _RUNS / file_name(curve.case) / file_name(contender)
        folder = RunFolder.open(path, study, replace=replace)
        take_data_over(first, folder)
        first = first or folder
        run_study(
            study,
            path,
            workers=workers,
            replace=False,
            command=f"make bench-privacy ({curve.case}, {contender})",
            console=console,
        )
        yield from _retrieval(curve.case, contender, path)
        spent = read_privacy(path)
        if not spent.empty:
            largest = spread(spent.groupby("seed")["epsilon"].max())
            yield SeededFigure(
                curve.case,
                contender,
                "epsilon of the site that spent most",
                "epsilon",
                largest.mean,
                largest.sd,
                largest.seeds,
            )


def take_data_over(first: RunFolder | None, folder: RunFolder) -> None:
    """Give a run the prepared studies of one with the same data, towers, sites and seeds."""
    if first is not None and not (folder.path / "data").exists():
        shutil.copytree(first.path / "data", folder.path / "data")


def _retrieval(case: str, contender: str, run: Path) -> Iterator[SeededFigure]:
    results = read_results(run)
    for row in [*main_table(results), *main_table(results, "macro_map")]:
        figure = f"{row.metric} {row.query} -> {row.target}"
        named = {
            "federated": contender,
            "public": "public, trained",
            "start": "public, at the start",
        }
        values = {named[method]: each for method, each in row.methods.items()}
        if contender == "no privacy":
            values["chance"] = row.chance
        for name, each in values.items():
            yield SeededFigure(case, name, figure, "mAP", each.mean, each.sd, each.seeds)


def _yaml(values: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"
