"""What a round of training costs with plain and with secure sums: a study's own model and data.

1. Everything that a site does is its CPU seconds: reading the request, training, its memory on
   disk, the protocol and writing the reply. Training is timed apart. All else is the coordinator's,
   without checkpoints.
2. The first round is left out: it warms up, and its keys have exchanges of their own. Of the others
   the median counts, and of a round the mean over the sites.
3. Each contender runs in a fresh process that holds the coordinator and all sites; memory is the
   most that this process held, data and libraries included. Linux only.

    >>> for figure in training_figures("kermany_hog_train_database", {"plain": overrides}): ...
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.figures import Figure
from benchmarks.secagg_peers import resident_and_peak_bytes
from fedhash.errors import ProtocolError
from fedhash.learning.local_training import LocalResult
from fedhash.models.layout import Layout
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash.rounds.run import coordinator_of, run_round
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.trainer import SiteTrainer
from fedhash.rounds.training_messages import TrainRequest
from fedhash_sim.cells import federations_of
from fedhash_sim.consortium import Consortium, build_consortium
from fedhash_sim.federation import Federation
from fedhash_sim.settings import ResolvedStudy, read_study

__all__ = ["training_figures"]

_ROUNDS = 6


def training_figures(name: str, contenders: Mapping[str, Sequence[str]]) -> Iterator[Figure]:
    """Measure rounds of a study's federation, with its first seed.

    Args:
        name: Of the study.
        contenders: Name to `KEY=VALUE` overrides of the study.

    Raises:
        FedhashError: The study cannot be run, or a round failed.
    """
    with TemporaryDirectory() as folder:
        for contender, overrides in contenders.items():
            study = read_study(Path("configs/study") / f"{name}.yaml", overrides)
            data = Path(folder) / "data"  # the same for all
            build_consortium(study, study.settings.seeds[0], data)
            work = Path(folder) / contender
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
                values = fresh_process.submit(_measure, study, data, work).result()
            for (figure, unit), value in values.items():
                yield Figure(name, contender, figure, unit, value)


def _measure(study: ResolvedStudy, data: Path, work: Path) -> dict[tuple[str, str], float]:
    torch.set_num_threads(1)
    seed = study.settings.seeds[0]
    (federation,) = federations_of(study, Consortium.load(data), "federated", seed)
    engine = _TimedEngine([federation.site(each, work, _Trainer) for each in federation.studies])
    coordinator = _coordinator_of(federation)
    rounds = [_round(coordinator, engine) for _ in range(_ROUNDS)][1:]
    client, training, of_coordinator, sent = (
        statistics.median(column) for column in zip(*rounds, strict=True)
    )
    _, peak = resident_and_peak_bytes()
    return {
        ("client CPU", "s"): client,
        ("training", "s"): training,
        ("coordinator CPU", "s"): of_coordinator,
        ("sent by a client", "bytes a parameter"): sent / coordinator.state.model.size,
        ("peak memory", "MB"): peak / 1e6,
    }


def _round(
    coordinator: RoundCoordinator, engine: _TimedEngine
) -> tuple[float, float, float, float]:
    """CPU seconds of a client, of its training and of the coordinator, and bytes from a client."""
    sites = len(engine.sites)
    client, training, sent = engine.cpu_s, _Trainer.cpu_s, engine.sent_bytes
    start = time.process_time()
    record = run_round(coordinator, engine)
    everything = time.process_time() - start
    if set(record.sites.values()) != {"ok"}:
        raise ProtocolError(f"a round lost sites, so it measures nothing: {record.sites}")
    client = engine.cpu_s - client
    return (
        client / sites,
        (_Trainer.cpu_s - training) / sites,
        everything - client,
        (engine.sent_bytes - sent) / sites,
    )


def _coordinator_of(federation: Federation) -> RoundCoordinator:
    """As fedhash_sim.federation.train_federation, without checkpoints."""
    model = federation.first_model()
    layout = Layout.of(model)
    plan = federation.plan(layout)
    state = CoordinatorState.start(plan, federation.agreement, layout.flatten(model))
    return coordinator_of(plan, federation.agreement, state)


class _Trainer(SiteTrainer):
    """Counts the CPU seconds of all sites' training together."""

    cpu_s = 0.0

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:
        start = time.process_time()
        try:
            return super().train(request, carried)
        finally:
            _Trainer.cpu_s += time.process_time() - start


class _TimedEngine:
    """As fedhash_sim.engines.inprocess, with the CPU seconds and bytes of all sites together."""

    def __init__(self, agents: Sequence[SiteAgent]) -> None:
        self._agents = {agent.site: agent for agent in agents}
        self.sites = tuple(sorted(self._agents))
        self.cpu_s = 0.0
        self.sent_bytes = 0

    def ask(
        self,
        stage: str,  # noqa: ARG002 - the port's signature
        requests: Mapping[str, Message],
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Iterator[Answer]:
        encoded = {id(message): message.encode() for message in requests.values()}
        for site in sorted(requests):
            agent, request = self._agents[site], encoded[id(requests[site])]
            start = time.process_time()
            reply = agent.handle(Message.decode(request, max_bytes=len(request))).encode()
            self.cpu_s += time.process_time() - start
            self.sent_bytes += len(reply)
            yield Answer(site, Message.decode(reply, max_bytes=len(reply)))
