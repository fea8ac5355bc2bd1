"""Rounds per CPU-second of the simulator, beside Flower's Ray runtime and pfl 0.6.

A hundred sites a round, one SGD step on eight rows each, one thread. The network is the tower
`image_hog` of 10 thousand and of a million parameters. This project trains with its own loss and
draws its batches, the peers with cross-entropy on fixed batches, which is less work. A plain loop
of PyTorch (`benchmarks.torch_loop`) stands beside the loop over sites. pfl adds Gaussian noise
centrally; here nobody is trusted to, and the sites share it inside the secure sum. CPU seconds are
those of the process; of Flower those of all its processes, of a long run less a short one.

    make bench-sim             # build/bench/sim.csv; makes build/pfl, an environment for pfl
    .venv/bin/python -m benchmarks.bench_sim --only 10k
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from rich.console import Console

from benchmarks.figures import BENCH, Figure, write_figures
from benchmarks.rows import as_table, sim_rows
from benchmarks.torch_loop import TorchLoop
from fedhash.agreement import Agreement
from fedhash.learning.settings import LearningSettings
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.settings import DistributedPrivacySettings, NoPrivacySettings
from fedhash.privacy.terms import AgreedPrivacy
from fedhash.rounds.aggregation import Aggregation
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.engine import Engine
from fedhash.rounds.run import coordinator_of, run_round
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.engines.vectorised import VectorisedSites
from fedhash_sim.federation import Federation, simulated_identity

_PFL = Path("build/pfl/bin/python")
_SITES, _ROWS, _FINDINGS = 100, 8, 10
_LEAST_S = 3.0  # of CPU time in one measurement
# Gaussian noise of all sites together, in one sum; 1000 rounds of it stay below the cap
_NOISE = DistributedPrivacySettings(
    mode="distributed", clip_norm=1.0, noise_multiplier=100.0, expected_patients=_SITES * _ROWS
)
_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h: Ray's processes are orphans


@dataclass(frozen=True)
class _Case:
    """A network; the peers take the same arguments."""

    image_size_px: int
    features: int
    hidden: int


CASES = {"10k": _Case(32, 288, 27), "1M": _Case(64, 1152, 822)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    chosen = parser.parse_args()
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise SystemExit("error: Linux is needed, where CPU time of orphans can be found")
    if not _PFL.is_file():
        raise SystemExit(f"error: {_PFL} is not there; run make bench-sim, which makes it")
    torch.set_num_threads(1)
    console = Console()
    figures = []
    for name in chosen.only:
        for contender, rounds in _contenders(CASES[name]):
            figures.append(Figure(name, contender, "rounds", "1/CPU-s", rounds))
            console.print(f"{name}: {contender}: {rounds:.3g} rounds per CPU-second")
    whole = chosen.only == list(CASES)
    write_figures(BENCH / ("sim.csv" if whole else "sim-part.csv"), Figure, figures)
    console.print(as_table(sim_rows(figures), "a hundred sites, one step on eight rows"))


def _contenders(case: _Case) -> Iterator[tuple[str, float]]:
    federation = _federation(case, "plain")
    with TemporaryDirectory() as name:
        folder = Path(name)

        def at_once(federation: Federation, **how: int) -> tuple[Engine, Aggregation]:
            layout = Layout.of(federation.first_model())
            sites = VectorisedSites(
                federation.plan(layout), federation.agreement, federation.studies, 7, folder, **how
            )
            return sites, sites

        yield "vectorised, the step of the sum", _own_rounds(federation, at_once(federation))
        # a bound that no gradient meets: each site's own gradient is needed for it
        own = _federation(case, "plain", gradient_clip_norm=1e6)
        yield "vectorised, a row a site", _own_rounds(own, at_once(own))
        yield "vectorised, site by site", _own_rounds(own, at_once(own, parameters_at_once=1))
        aggregations: tuple[Literal["plain", "secure"], ...] = ("plain", "secure")
        for aggregation in aggregations:
            agents = _federation(case, aggregation)
            engine = InProcessEngine(
                [agents.site(site, folder / aggregation) for site in agents.studies]
            )
            yield f"in process, {aggregation} sums", _own_rounds(agents, (engine, None))
        noisy = _federation(case, "secure", noise=_NOISE)
        engine = InProcessEngine([noisy.site(site, folder / "noise") for site in noisy.studies])
        yield "in process, secure sums, shared noise", _own_rounds(noisy, (engine, None))
    loop = TorchLoop(case.features, case.hidden, _SITES)
    yield "PyTorch alone, site by site", _rounds_per_cpu_s(loop.round)
    network = ("--features", str(case.features), "--hidden", str(case.hidden))
    peer = (*network, "--sites", str(_SITES))
    for noise in ((), ("--noise",)):
        command = (str(_PFL), "benchmarks/pfl_peer.py", *peer, *noise, "--rounds", "5")
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        told = json.loads(printed.splitlines()[-1])
        yield f"pfl 0.6{', central noise' if noise else ''}", float(told["rounds_per_cpu_s"])
    seconds = [_tree_cpu_s("benchmarks.ray_peer", *peer, "--rounds", n) for n in ("1", "4")]
    yield "Flower on Ray", 3 / (seconds[1] - seconds[0])


def _own_rounds(federation: Federation, parts: tuple[Engine, Aggregation | None]) -> float:
    """Rounds per CPU-second of this project's own."""
    engine, aggregation = parts
    model = federation.first_model()
    layout = Layout.of(model)
    plan = federation.plan(layout)
    state = CoordinatorState.start(plan, federation.agreement, layout.flatten(model))
    coordinator = (
        coordinator_of(plan, federation.agreement, state)
        if aggregation is None
        else RoundCoordinator(plan, federation.agreement, state, aggregation)
    )
    return _rounds_per_cpu_s(lambda: run_round(coordinator, engine))


def _rounds_per_cpu_s(one_round: Callable[[], object]) -> float:
    """Rounds per CPU-second, behind two that warm up."""
    for _ in range(2):
        one_round()
    rounds, started = 0, time.process_time()
    while (seconds := time.process_time() - started) < _LEAST_S:
        one_round()
        rounds += 1
    return rounds / seconds


def _federation(
    case: _Case,
    aggregation: Literal["plain", "secure"],
    gradient_clip_norm: float | None = None,
    noise: DistributedPrivacySettings | None = None,
) -> Federation:
    sites = [f"site-{number:03d}" for number in range(_SITES)]
    roster = {site: simulated_identity(7, site).public_hex for site in sites}
    agreement = Agreement(
        name="bench",
        findings=tuple(f"finding_{number}" for number in range(_FINDINGS)),
        modalities=("image",),
        sites=roster,
        privacy=AgreedPrivacy(epsilon_cap=8.0, delta=1e-5, modes=("distributed",)),
    )
    options: dict[str, bool | int | float | str] = {
        "image_size_px": case.image_size_px,
        "hidden": case.hidden,
        "dropout": 0.0,
    }
    settings = RoundSettings(
        model=ModelSettings(towers={"image": TowerSettings(name="image_hog", options=options)}),
        learning=LearningSettings(
            optimiser="sgd",
            weight_decay=0.0,
            learning_rate=0.1,
            schedule="constant",
            local_steps=1,
            batch_patients=_ROWS,
            control_variates=False,
            gradient_clip_norm=gradient_clip_norm,
        ),
        rounds=1000 if noise else 100_000,
        weighting="uniform",
        aggregation=aggregation,
        privacy=noise or NoPrivacySettings(),
    )
    rng = np.random.default_rng(0)
    studies = {site: _studies(site, case.features, rng) for site in sites}
    return Federation("bench", "bench", agreement, settings, studies, seed=7)


def _studies(site: str, features: int, rng: np.random.Generator) -> PreparedStudies:
    ids = tuple(f"{site}-{row}" for row in range(_ROWS))
    labels = torch.zeros(_ROWS, _FINDINGS, dtype=torch.int8)
    labels[torch.arange(_ROWS), torch.from_numpy(rng.integers(_FINDINGS, size=_ROWS))] = 1
    inputs = torch.from_numpy(rng.random((_ROWS, features), dtype=np.float32))
    present = torch.ones(_ROWS, dtype=torch.bool)
    return PreparedStudies(ids, ids, labels, {"image": inputs}, {"image": present}, ({},) * _ROWS)


def _tree_cpu_s(module: str, *arguments: str) -> float:
    """CPU seconds of a program and of all that it starts."""
    before = _children_cpu_s()
    subprocess.run(  # noqa: S603 - a module of the benches
        (sys.executable, "-m", module, *arguments),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
