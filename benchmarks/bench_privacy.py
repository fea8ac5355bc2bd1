"""Figures of docs/benchmarks.md on privacy: what it costs, what it leaks, how fast it is.

Four parts, each with a CSV file in build/bench/ of the columns case, contender, figure, unit, value
(and sd, seeds):

- audits: sensitivity of every loss, and canary audits of runs with and without noise;
- throughput: a private step beside a plain one;
- curve: retrieval at epsilon 8, 3 and 1, noise of each site and noise that sites share, frozen
  towers and towers from scratch;
- linkage: Recall@1 of a patient's own report, with and without the anchors and privacy.

Run folders stand in build/bench/privacy/: an interrupted bench goes on where it stopped.

    make bench-privacy
    .venv/bin/python -m benchmarks.bench_privacy --only audits throughput
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence

from rich.console import Console

from benchmarks.figures import BENCH, F, Figure, SeededFigure, write_figures
from benchmarks.privacy_curve import CURVES, EPSILONS, curve_figures
from benchmarks.privacy_linkage import LINKAGES, linkage_figures
from benchmarks.privacy_throughput import throughput_figures
from benchmarks.rows import (
    as_table,
    privacy_audit_rows,
    privacy_curve_rows,
    privacy_goal_rows,
    privacy_linkage_rows,
    privacy_throughput_rows,
)
from fedhash.errors import FedhashError
from fedhash.evaluation.canary import CanaryAudit, NoNoise, audit_site_dp_sgd
from fedhash.evaluation.canary_shared_noise import audit_shared_noise
from fedhash.evaluation.sensitivity import AUDITED_LOSSES, audit_sensitivity
from fedhash.privacy.accountant import smallest_noise_multiplier
from fedhash.privacy.settings import DistributedPrivacySettings, SitePrivacySettings

PARTS = ("audits", "throughput", "curve", "linkage")
_CASES = [curve.case for curve in CURVES] + [linkage.case for linkage in LINKAGES]
_BATCHES = (16, 64, 256)
_SEEDS = (0, 1, 2)
_CANARY_STEPS = 20
_CANARY_SITES = 10
_DELTA = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--case", choices=_CASES, nargs="+", default=_CASES)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replace", action="store_true", help="begin the chosen studies anew")
    chosen = parser.parse_args()
    console = Console()
    more = {"workers": chosen.workers, "replace": chosen.replace, "console": console}
    whole = set(chosen.case) == set(_CASES)
    failures: list[str] = []
    if "audits" in chosen.only:
        audits = [*sensitivity_figures(), *canary_figures()]
        _write("privacy-audits", Figure, audits)
        console.print(as_table(privacy_audit_rows(audits), "audits"))
    if "throughput" in chosen.only:
        throughput = list(throughput_figures())
        _write("privacy-throughput", Figure, throughput)
        console.print(as_table(privacy_throughput_rows(throughput), "patients a second"))
    if "curve" in chosen.only:
        curve: list[SeededFigure] = []
        for each in CURVES:
            if each.case in chosen.case:
                curve += _tried(curve_figures(each, **more), each.case, failures, console)
        _write("privacy-curve" if whole else "privacy-curve-part", SeededFigure, curve)
        console.print(as_table(privacy_curve_rows(curve), "mAP, mean ± sd over seeds"))
        console.print(as_table(privacy_goal_rows(curve), "goals"))
    if "linkage" in chosen.only:
        linkage: list[SeededFigure] = []
        for pairs in LINKAGES:
            if pairs.case in chosen.case:
                linkage += _tried(linkage_figures(pairs, **more), pairs.case, failures, console)
        _write("privacy-linkage" if whole else "privacy-linkage-part", SeededFigure, linkage)
        console.print(as_table(privacy_linkage_rows(linkage), "linkage"))
    if failures:
        raise SystemExit(1)


def sensitivity_figures() -> Iterator[Figure]:
    """The largest change that one patient makes, of every loss."""
    for loss in AUDITED_LOSSES:
        for patients in _BATCHES:
            found = audit_sensitivity(loss, patients=patients, seed=0)
            contender = "accepted" if found.accepted else "refused"
            yield Figure(
                f"sensitivity, {loss}", contender, f"{patients} patients", "C", found.change_in_c
            )


def canary_figures() -> Iterator[Figure]:
    """Lower bounds beside the claims, and the bound of a run without noise."""
    for sampling_rate in (0.5, 1.0):
        case = f"canaries, q = {sampling_rate:g}"
        for epsilon in EPSILONS:
            sigma = smallest_noise_multiplier(
                epsilon, _DELTA, steps=_CANARY_STEPS, sampling_rate=sampling_rate
            )
            yield from _canaries(case, f"claim {epsilon:g}", sigma, sampling_rate, noise=True)
        yield from _canaries(case, "without noise", 1.0, sampling_rate, noise=False)
    for epsilon in EPSILONS:
        sigma = smallest_noise_multiplier(epsilon, _DELTA, steps=_CANARY_STEPS)
        privacy = DistributedPrivacySettings(
            mode="distributed", clip_norm=1.0, noise_multiplier=sigma, expected_patients=2200
        )
        yield from _bounds(
            f"canaries, noise shared by {_CANARY_SITES} sites",
            f"claim {epsilon:g}",
            [
                audit_shared_noise(
                    privacy, steps=_CANARY_STEPS, delta=_DELTA, sites=_CANARY_SITES, seed=seed
                )
                for seed in _SEEDS
            ],
        )


def _canaries(
    case: str, contender: str, sigma: float, sampling_rate: float, *, noise: bool
) -> Iterator[Figure]:
    privacy = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=sigma, sampling_rate=sampling_rate
    )
    found = [
        audit_site_dp_sgd(
            privacy,
            steps=_CANARY_STEPS,
            delta=_DELTA,
            seed=seed,
            noise=None if noise else NoNoise(seed, "canary", "noise"),
        )
        for seed in _SEEDS
    ]
    yield from _bounds(case, contender, found)


def _bounds(case: str, contender: str, found: Sequence[CanaryAudit]) -> Iterator[Figure]:
    for seed, each in zip(_SEEDS, found, strict=True):
        yield Figure(case, contender, f"bound, seed {seed}", "epsilon", each.best.epsilon)
    if not math.isinf(found[0].claimed_epsilon):
        yield Figure(case, contender, "claim", "epsilon", found[0].claimed_epsilon)


def _tried(
    figures: Iterator[SeededFigure], case: str, failures: list[str], console: Console
) -> list[SeededFigure]:
    """A case that fails does not stop the others, and none of its figures is written."""
    try:
        return list(figures)
    except FedhashError as error:
        failures.append(case)
        console.print(f"failed: {case}: {error}", style="red", markup=False, soft_wrap=True)
        return []


def _write(name: str, kind: type[F], figures: Sequence[F]) -> None:
    write_figures(BENCH / f"{name}.csv", kind, figures)


if __name__ == "__main__":
    main()
