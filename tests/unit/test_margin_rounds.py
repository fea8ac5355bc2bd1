"""Rounds with a margin schedule: what the sites send, sum, accept and reserve."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed_sites import SETTINGS as SHARED_NOISE
from distributed_sites import distributed_site
from pydantic import ValidationError
from small_federation import (
    AGREEMENT,
    MODEL,
    SECURE_AGREEMENT,
    SITES,
    PullTrainer,
    agreement_of,
    new_coordinator,
    round_settings,
    secure_half,
    site_agent,
    site_studies,
)

from fedhash.agreement import Agreement
from fedhash.learning.local_training import LocalResult
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import prepare_studies
from fedhash.privacy import (
    AgreedPrivacy,
    DistributedGaussianStep,
    PrivacyTerms,
    epsilon,
    read_ledger,
)
from fedhash.privacy.margin_statistics import SENSITIVITY, margin_statistics
from fedhash.privacy.noise import SecureNoise, SimulatedNoise
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.reservation import margin_release, model_update, reserve_model_update
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_round, run_rounds
from fedhash.rounds.settings import RoundSettings, check_round
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState, MemorySiteState
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.rounds.training_messages import Refusal, TrainReply, TrainRequest
from fedhash_sim.engines.inprocess import InProcessEngine

SCHEDULE = MarginScheduleSettings(every_rounds=2, drift_control=True)
PRIVACY = SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=0.8, sampling_rate=0.5)
EVERY_ROUND = {"every_rounds": 1, "noise_multiplier": 5.0}
PRIVATE = {
    "privacy": PRIVACY,
    "weighting": "uniform",
    "margin_schedule": SCHEDULE.model_copy(update={"noise_multiplier": 5.0}),
}


def scheduled(**changes: Any) -> RoundSettings:
    return round_settings(**({"margin_schedule": SCHEDULE} | changes))


def request(number: int = 1, settings: RoundSettings | None = None, **changes: Any) -> TrainRequest:
    stage = next(new_coordinator(settings or scheduled()).round(SITES))
    asked = TrainRequest.from_message(stage.requests["site-0"])
    return replace(asked, round_number=number, **changes)


def pulling(state: object = None) -> SiteAgent:
    return SiteAgent(
        "site-0", AGREEMENT, PullTrainer(1.0), state or MemorySiteState(), PlainSiteAggregation()
    )


def margins(asked: TrainRequest, *mu: float) -> Any:
    return replace(asked.margins, mu=np.array(mu, np.float32))


def reason(agent: SiteAgent, asked: TrainRequest) -> str:
    answer = agent.handle(asked.to_message())
    return Refusal.from_message(answer).reason if answer.kind == "refusal" else answer.kind


def own_block(site: str, asked: TrainRequest) -> np.ndarray:
    """What a site without privacy tells, from its studies and the request's model."""
    model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
    studies = prepare_studies(model, site_studies(site), AGREEMENT.findings)
    Layout.of(model).load(model, asked.model)
    noise = SimulatedNoise(7, "margin statistics", "run-1", site, asked.round_number)
    return margin_statistics(
        *(model, studies, Anchors.build(AGREEMENT), 0.1),
        noise=noise,
        noise_multiplier=None,
        largest=10_000.0,
    )


@pytest.mark.parametrize("weighting", ["uniform", "patients"])
@pytest.mark.parametrize(
    ("aggregation", "ring_bits"), [("plain", 32), ("secure", 32), ("secure", 20)]
)
def test_statistics_are_plain_sums_whatever_the_weights(
    aggregation: str, ring_bits: int, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = agreement_of(scheduled(aggregation=aggregation))
    terms = agreement.secure_aggregation.model_copy(
        update={"ring_bits": ring_bits, "largest_statistic": 100.0}
    )
    agreement = agreement.model_copy(update={"secure_aggregation": terms})
    monkeypatch.setattr("small_federation.agreement_of", lambda settings: agreement)
    monkeypatch.setattr("small_federation.SECURE_AGREEMENT", agreement)
    agents = [site_agent(site, agreement=agreement) for site in SITES]
    coordinator = new_coordinator(scheduled(aggregation=aggregation, weighting=weighting))
    run_round(coordinator, InProcessEngine(agents))
    assert coordinator.last_step is None
    model, before = coordinator.state.model, coordinator.state.margins
    run_round(coordinator, InProcessEngine(agents))
    step = coordinator.last_step
    assert step is not None
    expected = sum(own_block(site, request(2, model=model)) for site in SITES)
    found = [step.patients, step.slack, step.squared_slack, step.site_means]
    # of 3 sites in 20 bits, an integer stands for 100 / (2^19 / 3)
    exactness = {"plain": 1e-6, "secure": 3e-6 if ring_bits == 32 else 3 * 100 * 3 / 2**19}
    np.testing.assert_allclose(np.ravel(found), expected, atol=exactness[aggregation])
    assert sum(step.patients) == pytest.approx(12, abs=0.01)  # one finding each
    assert step.noise_sd == pytest.approx(
        0 if aggregation == "plain" else np.sqrt(3) / 2 * 100 / ((2 ** (ring_bits - 1) - 1) // 3)
    )
    assert (before.mu == np.float32(0.3)).all()
    assert coordinator.state.margins.mu.tolist() == list(step.margins) != before.mu.tolist()


def test_a_run_moves_its_margins_and_its_sites_follow() -> None:
    coordinator = new_coordinator(scheduled(rounds=8))
    seen = []
    engine = InProcessEngine([site_agent(site) for site in SITES])
    run_rounds(
        coordinator, engine, on_round=lambda _: seen.append(coordinator.state.margins.mu.tolist())
    )
    for record in coordinator.state.records:
        assert (record.failure, set(record.sites.values())) == (None, {"ok"})
    assert seen[0] == [np.float32(0.3)] * 3
    assert [seen[i] != seen[i - 1] for i in range(1, 8)] == [i % 2 == 1 for i in range(1, 8)]


def test_the_sites_means_become_the_next_rounds_drift() -> None:
    """Pulling sites whose mean slacks are .1, .5 and .9: a variance of .107."""

    class Telling(PullTrainer):
        def train(self, asked: TrainRequest, carried: object) -> LocalResult:
            r = self.target
            statistics = np.repeat([10.0, 10 * r, 10 * r * r, 10 * r * r], 3)
            return replace(super().train(asked, {}), statistics=statistics.astype(np.float32))

    schedule = SCHEDULE.model_copy(update={"every_rounds": 1, "reference_drift": 0.05})
    coordinator = new_coordinator(scheduled(margin_schedule=schedule))
    agents = [
        SiteAgent(site, AGREEMENT, Telling(r), MemorySiteState(), PlainSiteAggregation())
        for site, r in zip(SITES, (0.1, 0.5, 0.9), strict=True)
    ]
    run_round(coordinator, InProcessEngine(agents))
    stage = next(coordinator.round(SITES))
    told = TrainRequest.from_message(stage.requests["site-0"])
    assert told.drift == pytest.approx(0.32 / 3 / 0.05 - 1, rel=1e-5)
    assert told.margins.mu.tolist() == coordinator.state.margins.mu.tolist()


def test_only_rounds_of_the_schedule_carry_a_block() -> None:
    lengths = {}
    for number in (1, 2, 3, 4):
        asked = request(number)
        answer = site_agent("site-0").handle(asked.to_message())
        lengths[number] = TrainReply.from_message(answer, asked).vector.size - 2 * asked.model.size
    assert lengths == {1: 1, 2: 13, 3: 1, 4: 13}
    assert not round_settings().carries_statistics(2)


def test_the_first_model_is_told_of_and_training_is_as_without() -> None:
    """The statistics are of the round's first model, though they are made after the training."""
    asked, without = request(2), request(2, round_settings())
    vector = TrainReply.from_message(site_agent("site-2").handle(asked.to_message()), asked).vector
    other = TrainReply.from_message(
        site_agent("site-2").handle(without.to_message()), without
    ).vector
    d = asked.model.size
    np.testing.assert_array_equal(vector[: 2 * d], other[: 2 * d])
    stage = next(new_coordinator(scheduled()).round(SITES))
    first = TrainRequest.from_message(stage.requests["site-0"])
    np.testing.assert_array_equal(
        vector[2 * d : -1], own_block("site-2", replace(asked, model=first.model))
    )


@pytest.fixture(params=["memory", "files"])
def restarted(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SiteAgent]:
    """The same site again; with files, as a process that has just started."""
    if request.param == "memory":
        agent = pulling()
        return lambda: agent
    return lambda: pulling(FileSiteState(tmp_path))


def test_a_site_accepts_a_step_for_each_that_the_schedule_has(
    restarted: Callable[[], SiteAgent],
) -> None:
    asked = request(1, scheduled(rounds=20, learning={"control_variates": False}))
    plain = {"counted": {}}

    def at(number: int, *mu: float) -> str:
        return reason(
            restarted(), replace(asked, round_number=number, margins=margins(asked, *mu), **plain)
        )

    assert at(1, 0.3, 0.3, 0.31) == "margin_jump"  # every run begins with the loss's margin
    assert at(1, 0.3, 0.3, 0.3) == "train_reply"
    assert at(2, 0.3, 0.3, 0.31) == "margin_jump"  # the first step comes after round 2
    assert at(3, 0.3, 0.35, 0.25) == "train_reply"
    assert at(3, 0.3, 0.36, 0.25) == "margin_jump"  # asked again is asked the same
    assert at(3, 0.3, 0.35, 0.25) == "train_reply"
    assert at(4, 0.3, 0.30, 0.25) == "margin_jump"
    assert at(5, 0.35, 0.40, 0.30) == "train_reply"
    assert at(11, 0.35, 0.56, 0.30) == "margin_jump"  # three steps were missed: .15
    assert at(11, 0.35, 0.55, 0.30) == "train_reply"


def test_a_site_that_joins_late_takes_what_the_steps_so_far_allow() -> None:
    asked = request(1, scheduled(rounds=20))
    allowed = margins(asked, 0.2, 0.4, 0.3)  # two steps
    assert reason(pulling(), replace(asked, round_number=5, margins=allowed)) == "train_reply"
    assert reason(pulling(), replace(asked, round_number=4, margins=allowed)) == "margin_jump"


def test_without_a_schedule_margins_stay() -> None:
    asked = request(3, round_settings())
    assert (
        reason(pulling(), replace(asked, margins=margins(asked, 0.3, 0.3, 0.31))) == "margin_jump"
    )


@pytest.mark.parametrize("drift", [-0.1, 9.1, float("nan"), "1", None])
def test_a_drift_out_of_range_is_no_request(drift: object) -> None:
    message = request().to_message()
    agent = pulling()
    with_drift = Message(message.kind, message.header | {"drift": drift}, message.arrays)
    assert Refusal.from_message(agent.handle(with_drift)).reason == "bad_message"


def test_drift_needs_drift_control() -> None:
    off = SCHEDULE.model_copy(update={"drift_control": False})
    for settings in (round_settings(), scheduled(margin_schedule=off)):
        assert reason(pulling(), request(1, settings, drift=0.5)) == "unscheduled_drift"
    assert reason(pulling(), request(1, drift=0.5)) == "train_reply"


def test_under_drift_a_site_works_less_and_is_pulled_back() -> None:
    learning = {"local_steps": 10, "proximal_weight": 0.1}
    settings = scheduled(learning=learning)
    eased = {"local_steps": 4, "proximal_weight": 0.1 * 2.4}
    vectors = [
        site_agent("site-1").handle(asked.to_message()).arrays["vector"]
        for asked in (
            request(1, settings, drift=1.4),
            request(1, scheduled(learning=eased)),
            request(1, settings),
        )
    ]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[0] != vectors[2]).any()


# under privacy


def private_site(reserve: Callable[..., object], *, secure: bool = False) -> SiteAgent:
    agreement = SECURE_AGREEMENT if secure else AGREEMENT
    model = build_model(MODEL, agreement.code_bits, seed=0)
    prepared = prepare_studies(model, site_studies("site-0"), agreement.findings)
    privacy = SitePrivacy(lambda run, number: SecureNoise(), reserve)
    trainer = SiteTrainer("site-0", agreement, MODEL, prepared, 7, privacy)
    aggregation = secure_half("site-0") if secure else PlainSiteAggregation()
    return SiteAgent("site-0", agreement, trainer, MemorySiteState(), aggregation)


def test_steps_and_statistics_are_reserved_at_once_and_draw_their_own_noise() -> None:
    reserved: list[PrivateSteps] = []
    agent = private_site(lambda run, number, steps: reserved.append(steps))
    asked = request(2, scheduled(**PRIVATE))
    blocks = [
        TrainReply.from_message(agent.handle(asked.to_message()), asked).vector[-13:]
        for _ in range(2)
    ]
    assert reserved == [PrivateSteps(0.8, 0.5, 2, statistics_noise_multiplier=5.0)] * 2
    for block in blocks:
        assert block[-1] == 0  # no loss is told
        deviation = (block[:9] - own_block("site-0", asked)[:9]) / (5 * SENSITIVITY)
        assert 0.2 < np.abs(deviation).mean() < 3
    assert (blocks[0][:9] != blocks[1][:9]).all()
    agent.handle(replace(asked, round_number=3).to_message())
    assert reserved[-1] == PrivateSteps(0.8, 0.5, 2)


def test_under_drift_the_steps_that_are_taken_are_reserved() -> None:
    reserved: list[PrivateSteps] = []
    agent = private_site(lambda run, number, steps: reserved.append(steps))
    settings = scheduled(learning={"local_steps": 9}, **PRIVATE)
    agent.handle(request(2, settings, drift=2.0).to_message())
    assert reserved == [PrivateSteps(0.8, 0.5, 3, statistics_noise_multiplier=5.0)]


def test_where_the_statistics_do_not_fit_nothing_is_read_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap that the steps alone would keep."""
    ledger, data = tmp_path / "ledger.sqlite", "0f" * 32
    steps = model_update(data, "run-1", 2, PrivateSteps(0.8, 0.5, 2))
    both = [steps, margin_release(data, "run-1", 2, 5.0)]
    assert epsilon(both, 1e-5) > epsilon([steps], 1e-5)
    asked = request(2, scheduled(**PRIVATE))

    def agent_under(cap: float) -> SiteAgent:
        terms = [PrivacyTerms(epsilon_cap=cap, delta=1e-5)]
        return private_site(partial(reserve_model_update, ledger, terms, data))

    def looked_at(*_: object) -> None:
        raise AssertionError("a patient was looked at")

    with monkeypatch.context() as patched:
        patched.setattr("fedhash.privacy.dp_sgd.rows_by_patient", looked_at)
        patched.setattr("fedhash.privacy.margin_statistics.rows_by_patient", looked_at)
        answer = agent_under((epsilon(both, 1e-5) + epsilon([steps], 1e-5)) / 2).handle(
            asked.to_message()
        )
    refusal = Refusal.from_message(answer)
    assert refusal.reason == "epsilon_cap"
    assert refusal.detail.startswith(
        "'model update' and 'margin statistics' of run run-1, round 2, would bring"
    )
    assert read_ledger(ledger) == ()
    assert agent_under(epsilon(both, 1e-5)).handle(asked.to_message()).kind == "train_reply"
    assert [entry.event for entry in read_ledger(ledger)] == both


def test_where_noise_is_shared_the_statistics_have_the_sites_own(tmp_path: Path) -> None:
    settings = SHARED_NOISE.model_copy(
        update={"rounds": 1, "margin_schedule": SCHEDULE.model_copy(update=EVERY_ROUND)}
    )
    terms = [PrivacyTerms(epsilon_cap=50.0, delta=1e-5)]
    agents = [
        distributed_site(
            site,
            lambda *_: SecureNoise(),
            partial(reserve_model_update, tmp_path / site, terms, "0f" * 32),
        )
        for site in SITES
    ]
    coordinator = new_coordinator(settings)
    asked = TrainRequest.from_message(request(1).to_message())
    run_rounds(coordinator, InProcessEngine(agents))
    step = coordinator.last_step
    assert step is not None
    assert step.noise_sd == pytest.approx(15.0, abs=1e-3)  # 5 sqrt(3) at each of three sites
    expected = sum(own_block(site, asked) for site in SITES)[:9]
    deviation = (np.ravel([step.patients, step.slack, step.squared_slack]) - expected) / 15
    assert 0.2 < np.abs(deviation).mean() < 3
    for site in SITES:
        update, statistics = (entry.event for entry in read_ledger(tmp_path / site))
        assert isinstance(update, DistributedGaussianStep)
        assert statistics == margin_release("0f" * 32, "run-1", 1, 5.0)


def test_a_private_site_tells_no_statistics_without_noise() -> None:
    agent = private_site(lambda *_: None)
    bare = {**PRIVATE, "margin_schedule": SCHEDULE}
    assert reason(agent, request(2, scheduled(**bare))) == "unsound_privacy"


# what is told before the first round


def told(settings: RoundSettings, agreement: Agreement = AGREEMENT) -> dict[tuple, str]:
    return dict(check_round(settings, agreement))


@pytest.mark.parametrize(
    ("schedule", "changes", "key", "message"),
    [
        ({"target_margin": 0.7}, {}, "target_margin", "margin_range is 0.05 to 0.6"),
        ({"largest_step": 0.1}, {}, "largest_step", "largest_margin_step is 0.05"),
        ({"noise_multiplier": 4.0}, {}, "noise_multiplier", "protects nobody"),
        ({}, {"privacy": PRIVACY, "weighting": "uniform"}, "noise_multiplier", "needs noise_mult"),
    ],
)
def test_what_a_schedule_gets_wrong(schedule: dict, changes: dict, key: str, message: str) -> None:
    settings = scheduled(margin_schedule=SCHEDULE.model_copy(update=schedule), **changes)
    assert message in told(settings)["margin_schedule", key]
    assert told(scheduled()) == {}
    assert told(scheduled(**PRIVATE)) == {}


def test_another_loss_has_no_schedule() -> None:
    other = json.dumps(scheduled().model_dump(mode="json") | {"loss": {"name": "orthohash"}})
    with pytest.raises(ValidationError, match=r"loss.name is orthohash; set margin_schedule: null"):
        RoundSettings.model_validate_json(other)


def test_the_releases_count_in_the_budget_of_a_run() -> None:
    fits = scheduled(rounds=10, **PRIVATE)
    steps = model_update("0" * 64, "r", 0, PrivateSteps(0.8, 0.5, 20))
    spent = epsilon([steps, *[margin_release("0" * 64, "r", 0, 1.0)] * 5], 1e-5)
    terms = AgreedPrivacy(epsilon_cap=spent - 0.01, delta=1e-5)
    agreement = AGREEMENT.model_copy(update={"privacy": terms})
    assert told(fits, agreement) == {}
    schedule = SCHEDULE.model_copy(update={"noise_multiplier": 1.0})
    found = told(scheduled(rounds=10, **{**PRIVATE, "margin_schedule": schedule}), agreement)
    message = found["privacy", "noise_multiplier"]
    assert f"and 5 releases of margin statistics come to epsilon {spent:.4g}" in message
    assert "raise privacy.noise_multiplier and margin_schedule.noise_multiplier" in message
