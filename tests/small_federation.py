"""A consortium of three small sites: reports of a few words, a model of a few hundred parameters.

`PullTrainer` stands in for training where a test is about the protocol: it moves every parameter
halfway to its site's target, so the right answer can be computed by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from fedhash.agreement import Agreement
from fedhash.data.study import InMemory, Study
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.learning.local_training import LocalResult
from fedhash.learning.settings import LearningSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import prepare_studies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.terms import AgreedPrivacy
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.run import coordinator_of, run_rounds
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState, MemorySiteState
from fedhash.rounds.trainer import SiteTrainer
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.opened_rounds import MemoryOpenedRounds
from fedhash.secagg.site import SecureSiteAggregation
from fedhash_sim.engines.inprocess import InProcessEngine

SITES = ("site-0", "site-1", "site-2")
AGREEMENT = Agreement(
    name="test",
    findings=("no_finding", "effusion", "nodule"),
    modalities=("report",),
    code_bits=16,
    smallest_cohort=2,
    largest_local_steps=50,
    privacy=AgreedPrivacy(epsilon_cap=20.0, delta=1e-5, modes=("site", "distributed")),
)
MODEL = ModelSettings(
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 32, "character_features": 32, "hidden": 8},
        )
    }
)
IDENTITIES = {site: SiteIdentity.from_seed(site.encode().ljust(32)) for site in SITES}
SECURE_AGREEMENT = AGREEMENT.model_copy(
    update={
        "smallest_cohort": 3,
        "sites": {site: identity.public_hex for site, identity in IDENTITIES.items()},
    }
)
_REPORTS = {"no_finding": "Clear lungs.", "effusion": "Effusion, left.", "nodule": "A nodule."}


def round_settings(*, learning: dict[str, Any] | None = None, **changes: Any) -> RoundSettings:
    steps = {"local_steps": 2, "batch_patients": 2, "learning_rate": 0.05} | (learning or {})
    changes = {"rounds": 4, "aggregation": "plain"} | changes
    return RoundSettings(model=MODEL, learning=LearningSettings(**steps), **changes)


def model_and_layout() -> tuple[np.ndarray, Layout]:
    model = build_model(MODEL, AGREEMENT.code_bits, seed=7, anchors=Anchors.build(AGREEMENT))
    layout = Layout.of(model)
    return layout.flatten(model), layout


def agreement_of(settings: RoundSettings) -> Agreement:
    return SECURE_AGREEMENT if settings.aggregation == "secure" else AGREEMENT


def run_plan(settings: RoundSettings, sites: Sequence[str] = SITES) -> RunPlan:
    return RunPlan(
        run_id="run-1",
        agreement_digest=agreement_of(settings).digest(),
        layout_digest=model_and_layout()[1].digest(),
        sites=tuple(sites),
        settings=settings,
    )


def new_coordinator(settings: RoundSettings, sites: Sequence[str] = SITES) -> RoundCoordinator:
    plan = run_plan(settings, sites)
    agreement = agreement_of(settings)
    state = CoordinatorState.start(plan, agreement, model_and_layout()[0])
    return coordinator_of(plan, agreement, state)


def outcomes(answers: Iterable[Answer]) -> dict[str, Message | SiteFailure]:
    """Site to what came of asking it."""
    return {answer.site: answer.outcome for answer in answers}


def site_studies(site: str) -> list[Study]:
    """Site i has i + 3 patients, most of them with the finding i."""
    place = SITES.index(site)
    findings = [AGREEMENT.findings[place]] * 2 + list(AGREEMENT.findings)[: place + 1]
    return [
        Study(
            f"{site}-study-{i}",
            f"{site}-patient-{i}",
            {"report": InMemory(_REPORTS[finding])},
            frozenset({finding}),
        )
        for i, finding in enumerate(findings)
    ]


def site_agent(
    site: str, folder: Path | None = None, *, agreement: Agreement = AGREEMENT
) -> SiteAgent:
    """An agent that really trains; with a folder, its state outlives the process."""
    model = build_model(MODEL, agreement.code_bits, seed=0, anchors=Anchors.build(agreement))
    prepared = prepare_studies(model, site_studies(site), agreement.findings)
    state = MemorySiteState() if folder is None else FileSiteState(folder / site)
    trainer = SiteTrainer(site, agreement, MODEL, prepared, seed=7)
    aggregation = PlainSiteAggregation() if agreement.smallest_cohort < 3 else secure_half(site)
    return SiteAgent(site, agreement, trainer, state, aggregation)


def secure_half(site: str) -> SecureSiteAggregation:
    return SecureSiteAggregation(
        site, SECURE_AGREEMENT, IDENTITIES[site], MemoryOpenedRounds(), seed=7
    )


def run_small_federation(folder: Path) -> np.ndarray:
    """Sixty rounds of real training that go on from whatever `folder` holds."""
    torch.set_num_threads(1)
    optimiser = CoordinatorOptimiserSettings(name="fedavgm", momentum=0.5)
    coordinator = new_coordinator(round_settings(rounds=60, coordinator_optimiser=optimiser))
    checkpoints = Checkpoints(folder / "checkpoints")
    coordinator.state = checkpoints.load(coordinator.plan) or coordinator.state
    engine = InProcessEngine([site_agent(site, folder) for site in SITES])
    vector = run_rounds(coordinator, engine, checkpoints)
    with (folder / "final.tmp").open("wb") as file:
        np.save(file, vector)
    (folder / "final.tmp").rename(folder / "final.npy")
    return vector


@dataclass
class PullTrainer:
    """Update = (target - model) / 2; control delta = target - own variate; loss = target."""

    target: float
    patients: int = 1
    trained: int = 0

    model_settings = MODEL
    layout_digest = model_and_layout()[1].digest()
    model_size = model_and_layout()[1].size

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:
        self.trained += 1
        update = ((self.target - request.model) / 2).astype(np.float32)
        if request.control is None:
            return LocalResult(update, None, 1, self.target, {})
        after = np.full_like(request.model, self.target)
        delta = after - carried.get("control", np.zeros_like(after))
        return LocalResult(update, delta, 1, self.target, {"control": after})

    def shared_step(self, request: TrainRequest, cohort: object) -> NoReturn:
        raise AssertionError("no gradient is known here")


if __name__ == "__main__":
    run_small_federation(Path(sys.argv[1]))
