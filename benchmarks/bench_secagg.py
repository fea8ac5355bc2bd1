"""What secure aggregation costs, beside Flower's SecAgg+ and no protection, and what it changes.

1. Rounds without training, over in-memory messages: CPU seconds, bytes and memory of a client and
   of the coordinator (`secagg_peers` says how they are measured).
2. Where a client's time goes in such a round.
3. Rounds of kermany_cxr with training: what the secure sum adds (`secagg_training`).
4. Whole studies, federated, three seeds: mAP with plain and with secure sums, and what a round
   costs a site there.

Prints tables and writes build/bench/secagg.csv (case, contender, figure, unit, value) and
secagg-client.csv and secagg-kermany.csv beside it, and secagg-studies.csv (the same with sd and
seeds).

    make bench-secagg
    .venv/bin/python -m benchmarks.bench_secagg --quick      # the smallest cases, secagg-quick.csv
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.figures import BENCH, Figure, SeededFigure, write_figures
from benchmarks.rows import (
    as_table,
    secagg_client_rows,
    secagg_goal_rows,
    secagg_rows,
    secagg_study_rows,
    secagg_training_rows,
)
from benchmarks.secagg_peers import (
    Cost,
    Meter,
    base_update,
    check_mean,
    cost_of,
    examples,
    flower_round,
    keystream_limit_bytes_per_second,
    plain_round,
    update_scale,
)
from fedhash.agreement import Agreement
from fedhash.learning.loss import Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.rounds.aggregation import Contribution, Stage, SumRecord
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash.secagg.coordinator import SecureAggregation
from fedhash.secagg.fixed_point import Block, FixedPoint
from fedhash.secagg.graph import plan_graph
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.masks import add_masks
from fedhash.secagg.opened_rounds import MemoryOpenedRounds
from fedhash.secagg.packing import pack
from fedhash.secagg.site import SecureSiteAggregation
from fedhash.secagg.terms import SecureAggregationTerms

CASES = [(d, n) for d in (100_000, 1_000_000, 11_700_000) for n in (5, 10, 20)] + [(1_000_000, 100)]
QUICK_CASES = [(100_000, 5)]
CONTENDERS = {
    "plain": ("round.aggregation=plain",),
    "secure, 32 bits": (),
    "secure, 24 bits": (
        "agreement.secure_aggregation.ring_bits=24",
        "agreement.secure_aggregation.largest_weight=1000",
    ),
    **{
        f"secure, {bits} bits": (
            f"agreement.secure_aggregation.ring_bits={bits}",
            "agreement.secure_aggregation.largest_weight=1000",
            # above what any of the three seeds reaches in training, so that nothing is clipped
            "agreement.secure_aggregation.largest_update=0.05",
            "agreement.secure_aggregation.largest_control=1",
            "agreement.secure_aggregation.largest_loss=2",
        )
        for bits in (20, 16)
    },
}
STUDIES = {  # the phantom takes three times as long, so narrow rings are tried on real data alone
    "kermany_hog_train_database": tuple(CONTENDERS),
    "phantom_dirichlet": ("plain", "secure, 32 bits"),
}
_FIGURES = {  # of a Cost: name and unit, and what one unit is
    "client_cpu_s": ("client CPU", "s", 1.0),
    "coordinator_cpu_s": ("coordinator CPU", "s", 1.0),
    "bytes_per_parameter": ("sent by a client", "bytes a parameter", 1.0),
    "client_peak_bytes": ("client memory", "MB", 1e6),
    "coordinator_peak_bytes": ("coordinator memory", "MB", 1e6),
}
_LARGEST_UPDATE = 8.0  # the updates are normal: none of 11.7 million is as large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest cases only, no studies")
    parser.add_argument(
        "--only", choices=("rounds", "client", "training", "studies"), help="one of the parts"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    console = Console()
    if chosen.only in {None, "rounds"}:
        _measure_rounds(QUICK_CASES if chosen.quick else CASES, chosen.quick, console)
    if chosen.only in {None, "client"} and not chosen.quick:
        _measure_client(console)
    if chosen.only in {None, "training"} and not chosen.quick:
        _measure_training(console)
    if chosen.only in {None, "studies"} and not chosen.quick:
        _run_studies(chosen.workers, console)


def _measure_rounds(cases: list[tuple[int, int]], quick: bool, console: Console) -> None:
    limit = keystream_limit_bytes_per_second()
    figures = [Figure("this machine", "AES-256-GCM", "keystream and sum", "GB/s", limit / 1e9)]
    for parameters, sites in cases:
        for contender, cost in _contenders(parameters, sites):
            case = f"{parameters:,} parameters, {sites} sites"
            console.print(f"{case}: {contender}: {cost}", highlight=False)
            figures += _figures_of(case, contender, cost, sites)
    write_figures(BENCH / ("secagg-quick.csv" if quick else "secagg.csv"), Figure, figures)
    console.print(as_table(secagg_rows(figures), "one round, without training"))
    console.print(as_table(secagg_goal_rows(figures), "goals"))


def _measure_client(console: Console) -> None:
    """Where a client's time goes, at 11.7 million parameters and 20 sites; best of three."""
    parameters, sites = 11_700_000, 20
    encoding = FixedPoint((Block("update", parameters, _LARGEST_UPDATE),), 32, sites, 140.0)
    update, rng = base_update(parameters), np.random.default_rng(0)
    words = encoding.encode(update, 100.0, rng)
    masks = [(os.urandom(32), 1) for _ in range(sites)]
    request = Message("mask", {}, {"model": update})
    reply = Message("masked", {}, {"masked": pack(words, 32)})
    parts: dict[str, Callable[[], object]] = {
        "20 masks": lambda: add_masks(words, masks),
        "fixed point with stochastic rounding": lambda: encoding.encode(update, 100.0, rng),
        "SHA-256 of the request": request.digest,
        "byte form of the reply": reply.encode,
    }
    case = f"{parameters:,} parameters, {sites} sites"
    figures = []
    for part, run in parts.items():
        best_s = float("inf")
        for _ in range(3):
            start = time.process_time()
            run()
            best_s = min(best_s, time.process_time() - start)
        figures.append(Figure(case, "secure, 32 bits", part, "s", best_s))
    write_figures(BENCH / "secagg-client.csv", Figure, figures)
    console.print(as_table(secagg_client_rows(figures), "where a client's time goes"))


def _measure_training(console: Console) -> None:
    from benchmarks.secagg_training import training_figures

    overrides = {name: ("methods=[federated]", *own) for name, own in CONTENDERS.items()}
    figures = list(training_figures("kermany_hog_train_database", overrides))
    write_figures(BENCH / "secagg-kermany.csv", Figure, figures)
    console.print(as_table(secagg_training_rows(figures), "a round of training"))


def _run_studies(workers: int, console: Console) -> None:
    figures = [
        figure
        for name, contenders in STUDIES.items()
        for contender in contenders
        for figure in _study(name, contender, workers, console)
    ]
    write_figures(BENCH / "secagg-studies.csv", SeededFigure, figures)
    console.print(as_table(secagg_study_rows(figures), "federated, mean ± sd over seeds"))


def _contenders(parameters: int, sites: int) -> Iterator[tuple[str, Cost]]:
    yield "plain", plain_round(parameters, sites)
    for ring_bits in (32, 24, 20, 16):
        yield (
            f"secure, {ring_bits} bits",
            cost_of(
                partial(_secure_round, parameters, sites, ring_bits),
                partial(_secure_round, 1000, 3, ring_bits),
                parameters=parameters,
            ),
        )
    graph = plan_graph(sites, SecureAggregationTerms())
    yield (
        "Flower SecAgg+",
        flower_round(parameters, sites, graph.degree, graph.threshold),
    )


def _figures_of(case: str, contender: str, cost: Cost, sites: int) -> Iterator[Figure]:
    for field in fields(Cost):
        if field.name in _FIGURES:
            name, unit, one = _FIGURES[field.name]
            yield Figure(case, contender, name, unit, getattr(cost, field.name) / one)
    total = sites * cost.client_cpu_s + cost.coordinator_cpu_s
    yield Figure(case, contender, "all CPU", "s", total)


def _secure_round(parameters: int, sites: int, ring_bits: int, meter: Meter) -> None:
    """A first round: all four stages stand alone."""
    identities = {f"site-{i:03}": SiteIdentity.generate() for i in range(sites)}
    agreement = Agreement(
        name="bench",
        findings=("no_finding", "finding"),
        modalities=("report",),
        sites={site: identity.public_hex for site, identity in identities.items()},
        secure_aggregation=SecureAggregationTerms.model_validate(
            {
                "ring_bits": ring_bits,
                "largest_update": _LARGEST_UPDATE,
                "largest_weight": 2 * sites + 100,
            }
        ),
    )
    request = _request(agreement, parameters)
    base = base_update(parameters)
    names = list(identities)
    halves = {
        site: SecureSiteAggregation(site, agreement, identity, MemoryOpenedRounds(), seed=0)
        for site, identity in identities.items()
    }

    def contribution(site: int, _: TrainRequest) -> Contribution:
        with meter.nobody():  # in place of training
            vector = np.append(update_scale(site) * base, np.float32(0))
            return Contribution(vector, float(examples(site)))

    def answers(stage: Stage) -> Iterator[Answer]:
        for name, message in stage.requests.items():
            place = names.index(name)
            with meter.client(place):
                data = halves[name].answer(message, partial(contribution, place)).encode()
            meter.sent(place, len(data))
            yield Answer(name, Message.decode(data, max_bytes=len(data)))

    with meter.coordinator():
        steps = SecureAggregation(agreement).aggregate(request, SumRecord())
        stage = next(steps)
        while True:
            try:
                stage = steps.send(answers(stage))
            except StopIteration as done:
                aggregate = done.value
                break
    mean = aggregate.total[:-1] / aggregate.weight
    # each site's error is below one integer of the ring
    integer = _LARGEST_UPDATE * (2 * sites + 100) / ((2 ** (ring_bits - 1) - 1) // sites)
    check_mean(mean, parameters, sites, tolerance=sites * integer / aggregate.weight)


def _request(agreement: Agreement, parameters: int) -> TrainRequest:
    plan = RunPlan(
        run_id="bench",
        agreement_digest=agreement.digest(),
        layout_digest="0" * 64,
        sites=tuple(sorted(agreement.sites)),
        settings=RoundSettings(
            model=ModelSettings(towers={"report": TowerSettings(name="report_ngrams")}),
            learning=LearningSettings(local_steps=1, control_variates=False),
            rounds=1,
        ),
    )
    return TrainRequest(
        plan=plan,
        round_number=1,
        cohort=plan.sites,
        counted={},
        model=np.zeros(parameters, np.float32),
        margins=Margins.constant(2, 0.2),
        control=None,
    )


def _study(name: str, contender: str, workers: int, console: Console) -> Iterator[SeededFigure]:
    from fedhash_sim.results import main_table, read_exchanges, read_results, read_sums, spread
    from fedhash_sim.settings import read_study
    from fedhash_sim.study_run import run_study

    run = BENCH / "secagg-studies" / name / contender.replace(", ", "-").replace(" ", "-")
    study = read_study(
        Path("configs/study") / f"{name}.yaml", ["methods=[federated]", *CONTENDERS[contender]]
    )
    console.rule(f"{name}, {contender}")
    run_study(
        study,
        run,
        workers=workers,
        replace=False,
        command=f"make bench-secagg ({name}, {contender})",
        console=console,
    )
    for row in main_table(read_results(run)):
        each = row.methods["federated"]
        figure = f"map {row.query} -> {row.target}"
        yield SeededFigure(name, contender, figure, "mAP", each.mean, each.sd, each.seeds)
    exchanges = read_exchanges(run)
    a_round = exchanges.groupby(["seed", "round", "site"])[
        ["seconds", "request_bytes", "reply_bytes"]
    ].sum()
    for column, figure, unit, one in (
        ("seconds", "a site's round", "s", 1.0),
        ("request_bytes", "to a site a round", "MB", 1e6),
        ("reply_bytes", "from a site a round", "MB", 1e6),
    ):
        each = spread(a_round[column].groupby("seed").mean() / one)
        yield SeededFigure(name, contender, figure, unit, each.mean, each.sd, each.seeds)
    sums = read_sums(run)
    if not sums.empty:
        each = spread(sums.groupby("seed")["rounding_sd"].max() / 1e-6)
        figure = "largest rounding sd of an entry of the mean update"
        yield SeededFigure(name, contender, figure, "millionths", each.mean, each.sd, each.seeds)


if __name__ == "__main__":
    main()
