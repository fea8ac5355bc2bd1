"""This project's contender in `bench_network`: three sites' daemons, and the app that asks them.

A daemon is a thread here, behind the Unix socket that its SuperNode names; the site's agent, its
memory on disk and its half of the protocol are those of a hospital. Only the training is not: each
site adds a known number to all parameters, which takes a millisecond.

    >>> run = SecureRun(folder, rounds=4)
    >>> with run.daemons():
    ...     network.run(run.app, {"folder": str(run.runs)}, ...)
    >>> run.records()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from benchmarks.network_averaging_client import EXAMPLES, update_of
from benchmarks.network_daemon import agent_behind
from fedhash.agreement import Agreement
from fedhash.configuration import resolved
from fedhash.learning.local_training import LocalResult
from fedhash.learning.settings import LearningSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import RoundRecord
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.opened_rounds import FileOpenedRounds
from fedhash.secagg.site import SecureSiteAggregation
from fedhash_server.flower import write_app_folder

__all__ = ["PARAMETERS", "SecureRun"]

PARAMETERS = 100_000
_CODE_BITS, _SEED = 16, 0
_MODEL = ModelSettings(  # of exactly PARAMETERS
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 1032, "character_features": 1032, "hidden": 48},
        )
    }
)
_TOLERANCE = 1e-5  # float32 sums of some rounds, in fixed point of 32 bits


class SecureRun:
    """One run of the secure protocol over the network.

    Attributes:
        app: The folder of its Flower app.
        runs: The folder that the app is to keep runs in, its `folder` setting.
        checkpoints: The folder that has one file more after each round.
    """

    def __init__(self, folder: Path, sites: Sequence[str], rounds: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._identities = {site: SiteIdentity.generate() for site in sites}
        self._agreement = Agreement(
            name="bench",
            findings=("no_finding", "finding"),
            modalities=("report",),
            code_bits=_CODE_BITS,
            smallest_cohort=len(sites),
            sites={site: each.public_hex for site, each in self._identities.items()},
        )
        self._settings = RoundSettings(
            model=_MODEL,
            learning=LearningSettings(local_steps=1, control_variates=False),
            rounds=rounds,
        )
        model = build_model(_MODEL, _CODE_BITS, _SEED, anchors=Anchors.build(self._agreement))
        self._layout = Layout.of(model)
        self._first_model = self._layout.flatten(model)
        self.app, self.runs = folder / "app", folder / "runs"
        paths = [folder / f"{name}.yaml" for name in ("agreement", "round", "run")]
        run = f"{{run_id: bench, sites: [{', '.join(sites)}], seed: {_SEED}}}"
        for path, text in zip(
            paths, (resolved(self._agreement), resolved(self._settings), run), strict=True
        ):
            path.write_text(text, encoding="utf-8")
        write_app_folder(self.app, *paths)
        self.checkpoints = self.runs / "bench" / "checkpoints"

    @contextmanager
    def daemons(self, sockets: Mapping[str, Path]) -> Iterator[None]:
        """The sites' daemons, each behind its socket."""
        with ExitStack() as running:
            for place, (site, path) in enumerate(sockets.items()):
                running.enter_context(agent_behind(self._agent(place, site), path))
            yield

    def _agent(self, place: int, site: str) -> SiteAgent:
        state = self._folder / site
        half = SecureSiteAggregation(
            site,
            self._agreement,
            self._identities[site],
            FileOpenedRounds(state / "opened"),
            seed=_SEED,
        )
        trainer = _Trainer(place, self._layout.digest(), self._layout.size)
        return SiteAgent(site, self._agreement, trainer, FileSiteState(state / "rounds"), half)

    def records(self) -> tuple[RoundRecord, ...]:
        """What happened in each round, if the model at the end is the right one.

        Raises:
            RuntimeError: A round or a site failed, or a parameter is wrong.
        """
        sites = tuple(sorted(self._identities))
        plan = RunPlan(
            run_id="bench",
            agreement_digest=self._agreement.digest(),
            layout_digest=self._layout.digest(),
            sites=sites,
            settings=self._settings,
        )
        state = Checkpoints(self.checkpoints).load(plan)
        if state is None or state.round_number < self._settings.rounds:
            raise RuntimeError("the run ended before its last round")
        for record in state.records:
            if record.failure or set(record.sites.values()) != {"ok"}:
                raise RuntimeError(f"round {record.round_number}: {record.failure}, {record.sites}")
        moved = self._settings.rounds * np.mean([update_of(place) for place in range(len(sites))])
        error = float(np.abs(state.model - self._first_model - moved).max())
        if not error <= _TOLERANCE:
            raise RuntimeError(f"the model is wrong by {error:.3g}, {_TOLERANCE:g} is rounding")
        return state.records


@dataclass
class _Trainer:
    """Adds the site's number to every parameter."""

    place: int
    layout_digest: str
    model_size: int

    patients = EXAMPLES
    model_settings = _MODEL

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:  # noqa: ARG002
        update = np.full_like(request.model, update_of(self.place))
        return LocalResult(update, None, 1, 0.0, {})

    def shared_step(self, request: TrainRequest, cohort: object) -> NoReturn:  # noqa: ARG002
        raise AssertionError("the run has no privacy mode")
