"""Private rounds between coordinator and sites: what is reserved, what is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from small_federation import (
    AGREEMENT,
    MODEL,
    SECURE_AGREEMENT,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    secure_half,
    site_agent,
    site_studies,
)

from fedhash.learning.settings import _READ
from fedhash.models.hash_model import build_model
from fedhash.models.prepared import prepare_studies
from fedhash.privacy import PrivacyTerms, epsilon, read_ledger
from fedhash.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.reservation import model_update, reserve_model_update
from fedhash.privacy.settings import NoPrivacySettings, SitePrivacySettings
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.run import run_rounds
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState, MemorySiteState
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.rounds.training_messages import Refusal, TrainReply, TrainRequest
from fedhash_sim.engines.inprocess import InProcessEngine

PRIVACY = SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=0.8, sampling_rate=0.5)
PRIVATE = round_settings(privacy=PRIVACY, weighting="uniform")
Reserved = tuple[str, int, PrivateSteps]


def private_site(
    site: str = "site-0",
    reserved: list[Reserved] | None = None,
    noise: Callable[[str, int], NoiseSource] = lambda run, number: SecureNoise(),
    *,
    secure: bool = False,
) -> SiteAgent:
    def reserve(*steps: object) -> None:
        if reserved is not None:
            reserved.append(steps)

    agreement = SECURE_AGREEMENT if secure else AGREEMENT
    model = build_model(MODEL, agreement.code_bits, seed=0)
    prepared = prepare_studies(model, site_studies(site), agreement.findings)
    trainer = SiteTrainer(site, agreement, MODEL, prepared, 7, SitePrivacy(noise, reserve))
    aggregation = secure_half(site) if secure else PlainSiteAggregation()
    return SiteAgent(site, agreement, trainer, MemorySiteState(), aggregation)


def request(settings: RoundSettings = PRIVATE) -> TrainRequest:
    stage = next(new_coordinator(settings).round(SITES))
    return TrainRequest.from_message(stage.requests["site-0"])


def refusal(agent: SiteAgent, asked: TrainRequest) -> Refusal:
    return Refusal.from_message(agent.handle(asked.to_message()))


LOSS_ENDS = {
    "scale": (1e-3, 1e3),
    "beta": (0.0, 1e3),
    "gamma": (0.0, 1e3),
    "kappa": (1e-6, 1e3),
    "margin": (0.05, 2.0),
    "temperature": (1e-3, 1e3),
}
ENDS = [
    *(
        ("loss", {"name": name}, key, *LOSS_ENDS[key])
        for name, constants in _READ.items()
        for key in constants
    ),
    ("learning", {}, "learning_rate", 1e-9, 1e3),
    ("learning", {}, "weight_decay", 0.0, 1e3),
    ("learning", {}, "proximal_weight", 0.0, 1e3),
    ("learning", {}, "batch_patients", 1, 1_000_000),
    ("learning", {}, "gradient_clip_norm", 1e-6, 1e6),
    ("coordinator_optimiser", {}, "learning_rate", 1e-9, 1e3),
    ("coordinator_optimiser", {}, "tau", 1e-9, 1e3),
]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize(("section", "beside", "key", "low", "high"), ENDS)
def test_no_number_of_a_round_file_leaves_what_tensors_hold(
    section: str,
    beside: dict[str, str],
    key: str,
    low: float,
    high: float,
    optimiser: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is allowed trains, or diverges; what overflows is refused when the request is read."""
    kept = PRIVATE.model_copy(
        update={"learning": PRIVATE.learning.model_copy(update={"optimiser": optimiser})}
    )
    told = kept.model_dump(mode="json")
    told[section] |= beside
    for value in (low, high):
        text = json.dumps(told | {section: told[section] | {key: value}})
        private = RoundSettings.model_validate_json(text)
        plain = private.model_copy(update={"privacy": NoPrivacySettings()})
        for agent, settings in ((private_site(), private), (site_agent("site-0"), plain)):
            agent.handle(request(settings).to_message())
    assert "OverflowError" not in caplog.text
    assert "RuntimeError" not in caplog.text
    beyond = {key: high * 10}
    with pytest.raises(ValidationError, match=f"{section}.{key}\n.*less than or equal to"):
        RoundSettings.model_validate_json(json.dumps(told | {section: told[section] | beyond}))


def test_a_private_reply_holds_no_loss_and_its_steps_are_reserved() -> None:
    reserved: list[Reserved] = []
    asked = request()
    reply = TrainReply.from_message(
        private_site(reserved=reserved).handle(asked.to_message()), asked
    )
    assert reserved == [("run-1", 1, PrivateSteps(0.8, 0.5, 2))]
    assert reply.vector[-1] == 0
    assert reply.weight == 1
    assert reply.vector[:-1].all()  # noise everywhere, in the control variate too


def test_a_round_asked_again_is_reserved_again_and_draws_anew() -> None:
    reserved: list[Reserved] = []
    agent, asked = private_site(reserved=reserved), request()
    first, again = (
        TrainReply.from_message(agent.handle(asked.to_message()), asked).vector for _ in range(2)
    )
    assert len(reserved) == 2
    assert (first[:-1] != again[:-1]).mean() > 0.99


def test_what_the_ledger_refuses_is_answered_with_its_reason_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, asked = tmp_path / "ledger.sqlite", request()
    event = model_update("0f" * 32, "run-1", 1, PrivateSteps(0.8, 0.5, 2))
    terms = PrivacyTerms(epsilon_cap=epsilon([event], 1e-5), delta=1e-5)
    agent = private_site()
    reserve = partial(reserve_model_update, ledger, [terms], "0f" * 32)
    agent._trainer._privacy = SitePrivacy(lambda run, number: SecureNoise(), reserve)
    assert agent.handle(asked.to_message()).kind == "train_reply"

    def looked_at(*_: object) -> None:
        raise AssertionError("a patient was looked at")

    monkeypatch.setattr("fedhash.privacy.dp_sgd.rows_by_patient", looked_at)
    answer = refusal(agent, replace(asked, round_number=2))
    assert answer.reason == "epsilon_cap"
    assert answer.detail.startswith("'model update' of run run-1, round 2, would bring epsilon")
    assert agent._state.newest_round("run-1") == 1
    assert [entry.event for entry in read_ledger(ledger)] == [event]


def test_a_private_round_needs_the_agreement_s_terms() -> None:
    reserved: list[Reserved] = []
    agent = private_site(reserved=reserved)
    without = AGREEMENT.model_copy(update={"privacy": None})
    agent._agreement = without
    asked = request()
    plan = asked.plan.model_copy(update={"agreement_digest": without.digest()})
    answer = refusal(agent, replace(asked, plan=plan))
    assert answer.reason == "unsound_privacy"
    assert "the agreement has no section privacy" in answer.detail
    assert reserved == []


def test_a_private_round_never_starts_from_what_rounds_without_noise_left(tmp_path: Path) -> None:
    """A site whose privacy is turned on between two starts, under a run id that trained before."""
    open_round = request(round_settings(weighting="uniform"))
    assert site_agent("site-0", tmp_path).handle(open_round.to_message()).kind == "train_reply"
    reserved: list[Reserved] = []

    def restarted() -> SiteAgent:
        agent = private_site(reserved=reserved)
        agent._state = FileSiteState(tmp_path / "site-0")
        return agent

    second = {"round_number": 2, "counted": {"site-0": 1}}
    answer = refusal(restarted(), replace(request(), **second))
    assert answer.reason == "state_lost"
    assert "was made under another plan" in answer.detail
    assert reserved == []
    # while a plan goes on from its own state, after a restart too
    first = replace(request(), plan=request().plan.model_copy(update={"run_id": "run-2"}))
    for asked in (first, replace(first, **second)):
        assert restarted().handle(asked.to_message()).kind == "train_reply"
    assert [number for _, number, _ in reserved] == [1, 2]


def test_site_and_round_must_mean_the_same_privacy() -> None:
    reserved: list[Reserved] = []
    assert refusal(private_site(reserved=reserved), request(round_settings())).reason == (
        "not_private"
    )
    assert refusal(site_agent("site-0"), request()).reason == "no_privacy_here"
    assert reserved == []


def test_a_coordinator_cannot_ask_for_privacy_that_guarantees_nothing() -> None:
    reserved: list[Reserved] = []
    asked = request()
    weighted = asked.plan.settings.model_copy(update={"weighting": "patients"})
    changed = replace(asked, plan=asked.plan.model_copy(update={"settings": weighted}))
    answer = refusal(private_site(reserved=reserved), changed)
    assert answer.reason == "unsound_privacy"
    assert "set weighting: uniform" in answer.detail
    assert reserved == []


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_private_run_ends_and_its_record_has_no_loss(aggregation: str) -> None:
    settings = PRIVATE.model_copy(update={"aggregation": aggregation, "rounds": 2})
    coordinator = new_coordinator(settings)
    reserved: dict[str, list[Reserved]] = {site: [] for site in SITES}
    agents = [private_site(site, reserved[site], secure=aggregation == "secure") for site in SITES]
    vector = run_rounds(coordinator, InProcessEngine(agents))
    assert (vector != model_and_layout()[0]).any()
    for record in coordinator.state.records:
        assert (record.failure, record.mean_loss, record.weight) == (None, None, 3)
    for each in reserved.values():
        assert [number for _, number, _ in each] == [1, 2]


def test_simulated_noise_repeats_a_run_and_secure_noise_does_not() -> None:
    def run(noise_of: Callable[[str, str, int], NoiseSource]) -> np.ndarray:
        agents = [
            private_site(site, noise=lambda run, number, site=site: noise_of(site, run, number))
            for site in SITES
        ]
        return run_rounds(new_coordinator(PRIVATE), InProcessEngine(agents))

    def simulated(site: str, run: str, number: int) -> NoiseSource:
        return SimulatedNoise(3, run, site, number)

    assert (run(simulated) == run(simulated)).all()
    assert (run(simulated) != run(lambda *_: SecureNoise())).any()


def test_no_privacy_is_the_default() -> None:
    assert round_settings().privacy == NoPrivacySettings()
    assert NoPrivacySettings.tells_loss
    assert not SitePrivacySettings.tells_loss
