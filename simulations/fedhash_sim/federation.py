"""Training one federation of simulated sites over the chosen engine, and what it releases.

Each site of a private federation keeps a ledger under the agreement's cap, as a real one does, but
of this federation alone: methods and seeds are worlds of their own. It stays with the checkpoints,
so a round that a killed run had begun is counted again when it goes on.

>>> outcome = train_federation(federation, "inprocess", Path("work"), on_round)
>>> outcome.model
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from fedhash.agreement import Agreement
from fedhash.audit_log import START, read_audit_log
from fedhash.errors import CheckpointError, DivergedError, ProtocolError
from fedhash.learning.local_training import carried_names
from fedhash.learning.loss import Margins
from fedhash.learning.own_layers import own_places, with_own_layers
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy import PrivacyEvent, read_ledger
from fedhash.privacy.noise import SimulatedNoise
from fedhash.privacy.reservation import data_fingerprint, reserve_model_update
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.registry.release import Release, save_release
from fedhash.rounds.aggregation import PlainSiteAggregation, SiteAggregation
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator, RoundRecord
from fedhash.rounds.engine import Engine
from fedhash.rounds.margin_audit import MarginEntry, verify_margin_audit
from fedhash.rounds.run import coordinator_of, run_rounds
from fedhash.rounds.settings import RoundSettings, starting_margins
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.rounds.training_messages import RunPlan
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.opened_rounds import FileOpenedRounds
from fedhash.secagg.outlook import sum_outlook
from fedhash.secagg.site import SecureSiteAggregation
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.engines.vectorised import VectorisedSites
from fedhash_sim.run_folder import explained, file_name

__all__ = ["Federation", "Outcome", "simulated_identity", "train_federation", "untrained"]

_ROUNDS = "rounds"  # where sites keep what they carry from round to round


def simulated_identity(seed: int, site: str) -> SiteIdentity:
    """An identity that anyone can compute: a simulated site has nothing to prove to anyone."""
    return SiteIdentity.from_seed(hashlib.sha256(repr((seed, "identity", site)).encode()).digest())


OnRound = Callable[[RoundRecord, Callable[[], Mapping[str, np.ndarray]]], None]


@dataclass(frozen=True)
class Federation:
    """Sites with their studies, and what they agreed to train.

    Attributes:
        model_of: Whose model it is: a site, `central` or `consortium`.
        run_id: Names the run at the sites.
        agreement: The consortium's agreement.
        settings: The round file.
        studies: Site to the studies that it trains on.
        seed: Of the first model and of the sites' batches.
        frozen: Modality to what its frozen tower reads.
    """

    model_of: str
    run_id: str
    agreement: Agreement
    settings: RoundSettings
    studies: Mapping[str, PreparedStudies]
    seed: int
    frozen: Mapping[str, FrozenFeatures] = field(default_factory=dict)

    def first_model(self) -> HashModel:
        """The model before the first round."""
        return build_model(
            self.settings.model,
            self.agreement.code_bits,
            self.seed,
            anchors=Anchors.build(self.agreement),
            frozen=self.frozen,
        )

    def plan(self, layout: Layout) -> RunPlan:
        """The run's plan for a model of this layout."""
        return RunPlan(
            run_id=self.run_id,
            agreement_digest=self.agreement.digest(),
            layout_digest=layout.digest(),
            sites=tuple(sorted(self.studies)),
            settings=self.settings,
        )

    def alone(self, name: str) -> Federation:
        """The same with the studies of one site only: what that site's process is given."""
        return replace(self, studies={name: self.studies[name]}, frozen={})

    def site(
        self, name: str, state_folder: Path, trainer_type: type[SiteTrainer] = SiteTrainer
    ) -> SiteAgent:
        """The agent of one site; its memory between rounds is kept in `state_folder`."""
        is_private = not isinstance(self.settings.privacy, NoPrivacySettings)
        trainer = trainer_type(
            name,
            self.agreement,
            self.settings.model,
            self.studies[name],
            self.seed,
            self._privacy(name, state_folder) if is_private else None,
        )
        aggregation: SiteAggregation = (
            SecureSiteAggregation(
                name,
                self.agreement,
                simulated_identity(self.seed, name),
                FileOpenedRounds(state_folder / "opened" / file_name(name)),
                self.seed,
            )
            if self.settings.aggregation == "secure"
            else PlainSiteAggregation()
        )
        return SiteAgent(
            name, self.agreement, trainer, _site_state(state_folder, name), aggregation
        )

    def _privacy(self, name: str, state_folder: Path) -> SitePrivacy:
        """A true ledger, and noise that anyone can compute: the study repeats, nobody is safe."""
        terms = self.agreement.privacy
        return SitePrivacy(
            noise=lambda run, number: SimulatedNoise(self.seed, run, name, number),
            reserve=partial(
                reserve_model_update,
                _ledger(state_folder, name),
                [] if terms is None else [terms],
                data_fingerprint(self.studies[name]),
            ),
            modes=("site", "distributed"),
        )


@dataclass(frozen=True)
class Outcome:
    """What a federation made.

    Attributes:
        federation: The federation.
        model: The coordinator's model vector.
        models: The models to ask with, by name: that vector under `federation.model_of`, or under
            each site's name what it is there, where normalisation layers stay at their site.
        margins: Those of the last round.
        records: One record a round.
        spent: Site to the events of its ledger; none without privacy.
        margin_steps: The steps of the margin schedule; none without one.
    """

    federation: Federation
    model: np.ndarray
    models: Mapping[str, np.ndarray]
    margins: Margins
    records: tuple[RoundRecord, ...]
    spent: Mapping[str, tuple[PrivacyEvent, ...]]
    margin_steps: tuple[MarginEntry, ...]

    def save_release(
        self, folder: Path, agreement: Agreement, metrics: Mapping[str, float]
    ) -> Release:
        """Release the model.

        Args:
            folder: Of the release.
            agreement: The study's own, without the identities of simulated sites.
            metrics: What the release says of itself.

        Raises:
            ReleaseError: The folder holds another release.
        """
        return save_release(
            folder,
            agreement=agreement,
            model_settings=self.federation.settings.model,
            vector=self.model,
            margins=self.margins,
            metrics=metrics,
            run_id=self.federation.run_id,
            frozen=self.federation.frozen,
        )


def untrained(federation: Federation) -> Outcome:
    """The model before its first round, as if it had been trained."""
    model = federation.first_model()
    vector = Layout.of(model).flatten(model)
    margins = starting_margins(federation.settings.loss, federation.agreement)
    return Outcome(federation, vector, {federation.model_of: vector}, margins, (), {}, ())


@contextmanager
def _divergence_told(coordinator: RoundCoordinator) -> Iterator[None]:
    """Turn the end of rounds that failed by divergence into a DivergedError."""
    known = len(coordinator.state.records)
    try:
        yield
    except ProtocolError as error:
        records = coordinator.state.records
        if len(records) > known and records[-1].diverged:
            raise DivergedError(str(error)) from error
        raise


def train_federation(
    federation: Federation, engine: str, folder: Path, on_round: OnRound
) -> Outcome:
    """Train all rounds, going on from the checkpoint in `folder` where there is one.

    Args:
        federation: The sites and the plan.
        engine: `inprocess`, `vectorised` or `flower`.
        folder: For checkpoints and the sites' memory.
        on_round: Called after each round with its record and what tells `Outcome.models`.

    Raises:
        DivergedError: Three rounds in a row failed, or all, for trainings that left the finite
            numbers.
        ProtocolError: They failed for another reason.
        PrivacyError: Every site would refuse to share noise in the run's secure sums.
        CheckpointError: The folder belongs to another run, or what the sites carried is gone.
        LedgerError: A site's ledger was altered.
        AuditError: The margin schedule's log was altered, or is gone.
    """
    model = federation.first_model()
    layout = Layout.of(model)
    plan = federation.plan(layout)
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.load(plan) or CoordinatorState.start(
        plan, federation.agreement, layout.flatten(model)
    )
    if federation.settings.aggregation == "secure":
        sum_outlook(plan, layout.size, federation.agreement)  # tells at once what all would refuse
    sites = folder / "sites"
    at_once = None
    if engine == "vectorised":
        at_once = VectorisedSites(
            plan, federation.agreement, federation.studies, federation.seed, sites / _ROUNDS
        )
        coordinator = RoundCoordinator(plan, federation.agreement, state, at_once)
    else:
        coordinator = coordinator_of(plan, federation.agreement, state)

    carries = carried_names(federation.settings.learning)
    if carries and state.counted and not coordinator.finished and not (sites / _ROUNDS).exists():
        raise CheckpointError(
            f"{folder} has a checkpoint of round {state.round_number}, and what the sites carried "
            "from it was removed behind the last round; remove the folder, and its rounds are "
            "trained anew"
        )
    own = own_places(model, federation.settings.learning)

    def models() -> dict[str, np.ndarray]:
        state = coordinator.state
        if not own.any():
            return {federation.model_of: state.model}
        found = {}
        for name in plan.sites:
            counted = state.counted.get(name, 0)
            carried = (
                _carried(sites, plan.run_id, name, counted)
                if at_once is None
                else at_once.carried(name, counted, state.model)
            )
            found[name] = with_own_layers(state.model, own, carried)
        return found

    if state.records:  # killed after the checkpoint, perhaps before its round was evaluated
        on_round(state.records[-1], models)

    def run(over: Engine) -> np.ndarray:
        with _divergence_told(coordinator):
            return run_rounds(
                coordinator,
                over,
                checkpoints,
                lambda record: on_round(record, models),
            )

    if at_once is not None:
        vector = run(at_once)
    elif engine == "flower" and not coordinator.finished:
        from fedhash_sim.engines.flower import run_in_flower  # Ray takes seconds to import

        vector = run_in_flower(
            run, {name: partial(federation.alone(name).site, name, sites) for name in plan.sites}
        )
    else:
        vector = run(InProcessEngine([federation.site(name, sites) for name in plan.sites]))
    state = coordinator.state
    spent = {
        name: tuple(entry.event for entry in read_ledger(_ledger(sites, name)))
        for name in plan.sites
    }
    steps: tuple[MarginEntry, ...] = ()
    if state.audit_head != START or checkpoints.margin_audit.exists():
        log = read_audit_log(checkpoints.margin_audit, noted=state.audit_head)
        steps = verify_margin_audit(log, federation.agreement).entries
    outcome = Outcome(federation, vector, models(), state.margins, state.records, spent, steps)
    # several times the model's size a site, for which only a further round would ask
    if not own.any() and (sites / _ROUNDS).exists():
        with explained(sites):
            shutil.rmtree(sites / _ROUNDS)
    return outcome


def _site_state(state_folder: Path, site: str) -> FileSiteState:
    return FileSiteState(state_folder / _ROUNDS / file_name(site))


def _carried(state_folder: Path, run_id: str, site: str, counted: int) -> Mapping[str, np.ndarray]:
    """What a site carries after the round that last counted; nothing before its first."""
    if counted == 0:
        return {}
    carried = _site_state(state_folder, site).carried(run_id, counted)
    if carried is None:
        raise CheckpointError(
            f"what {site!r} carried after round {counted} of {run_id!r} is gone; remove the run's "
            "folder, or choose another --out"
        )
    return carried


def _ledger(state_folder: Path, site: str) -> Path:
    return state_folder / "ledgers" / f"{file_name(site)}.sqlite"
