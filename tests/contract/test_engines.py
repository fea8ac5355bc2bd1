"""What every engine promises (fedhash.rounds.engine), by one test body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import pytest
from distributed_sites import SETTINGS as SHARED_NOISE
from distributed_sites import distributed_site, rate_of_round, sum_of_round
from small_federation import (
    AGREEMENT,
    SECURE_AGREEMENT,
    SITES,
    new_coordinator,
    outcomes,
    round_settings,
    site_agent,
)

from fedhash.audit_log import read_audit_log
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import RoundCoordinator
from fedhash.rounds.engine import Answer, Engine, SiteFailure
from fedhash.rounds.margin_audit import verify_margin_audit
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash_sim.engines.flower import run_in_flower
from fedhash_sim.engines.inprocess import InProcessEngine

T = TypeVar("T")
Blueprints: TypeAlias = Mapping[str, Callable[[], SiteAgent]]

SETTINGS = round_settings(rounds=3)
OTHER_AGREEMENT = AGREEMENT.model_copy(update={"version": 2})
BLUEPRINTS: Blueprints = {
    "site-0": partial(site_agent, "site-0"),
    "site-1": partial(site_agent, "site-1"),
    "site-2": partial(site_agent, "site-2", agreement=OTHER_AGREEMENT),
}


SECURE_SETTINGS = round_settings(rounds=3, aggregation="secure")
SECURE_BLUEPRINTS: Blueprints = {
    site: partial(site_agent, site, agreement=SECURE_AGREEMENT) for site in SITES
}


def in_process(run: Callable[[Engine], T], sites: Blueprints) -> T:
    return run(InProcessEngine([blueprint() for blueprint in sites.values()]))


ENGINES = [
    pytest.param(in_process, id="inprocess"),
    pytest.param(run_in_flower, id="flower", marks=pytest.mark.xdist_group("ray")),
]
# what the secure sum over Flower leaves open; each Ray takes seconds to start
SELDOM = [
    ENGINES[0],
    pytest.param(
        run_in_flower, id="flower", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")]
    ),
]


@pytest.fixture(scope="module")
def expected() -> RoundCoordinator:
    """The run by hand: state machines that pass each other objects, without any engine."""
    agents = {site: blueprint() for site, blueprint in BLUEPRINTS.items()}
    coordinator = new_coordinator(SETTINGS)
    while not coordinator.finished:
        steps = coordinator.round(SITES)
        stage = next(steps)
        with pytest.raises(StopIteration):
            steps.send(Answer(site, agents[site].handle(m)) for site, m in stage.requests.items())
    return coordinator


@pytest.mark.parametrize("with_engine", SELDOM)
def test_an_engine_keeps_its_promises(
    with_engine: Callable[[Callable[[Engine], None], Blueprints], None],
    expected: RoundCoordinator,
) -> None:
    def run(engine: Engine) -> None:
        assert engine.sites == SITES
        every_asked_site_has_one_answer(engine)
        peers_share_no_memory(engine)
        the_run_is_that_of_the_state_machines(engine, expected)

    with_engine(run, BLUEPRINTS)


@pytest.mark.parametrize("with_engine", ENGINES)
def test_the_secure_sum_is_the_same_over_every_engine(
    with_engine: Callable[[Callable[[Engine], None], Blueprints], None],
) -> None:
    """By another path: the plain run, which differs by the rounding of a 32-bit ring alone."""
    plain = new_coordinator(SETTINGS)
    run_rounds(plain, InProcessEngine([site_agent(site) for site in SITES]))

    def run(engine: Engine) -> None:
        coordinator = new_coordinator(SECURE_SETTINGS)
        run_rounds(coordinator, engine)
        np.testing.assert_allclose(coordinator.state.model, plain.state.model, atol=1e-4)
        expected = new_coordinator(SECURE_SETTINGS)
        agents = [blueprint() for blueprint in SECURE_BLUEPRINTS.values()]
        run_rounds(expected, InProcessEngine(agents))
        np.testing.assert_array_equal(coordinator.state.model, expected.state.model)
        stages = [each.stage for record in coordinator.state.records for each in record.exchanges]
        assert stages[:: len(SITES)] == ["advertise", "share"] + 3 * ["mask", "unmask"]

    with_engine(run, SECURE_BLUEPRINTS)


@pytest.mark.parametrize("with_engine", SELDOM)
def test_the_margin_schedule_is_the_same_over_every_engine(
    with_engine: Callable[[Callable[[Engine], None], Blueprints], None], tmp_path: Path
) -> None:
    """Every step of a secure run with its sums, against the same run without any engine."""
    settings = SECURE_SETTINGS.model_copy(
        update={"margin_schedule": MarginScheduleSettings(every_rounds=1)}
    )
    expected = new_coordinator(settings)
    agents = {site: blueprint() for site, blueprint in SECURE_BLUEPRINTS.items()}
    steps = []
    while not expected.finished:
        stages = expected.round(SITES)
        stage = next(stages)
        try:
            while True:
                stage = stages.send(
                    [Answer(site, agents[site].handle(m)) for site, m in stage.requests.items()]
                )
        except StopIteration:
            steps.append(expected.last_step)

    def run(engine: Engine) -> None:
        coordinator, checkpoints = new_coordinator(settings), Checkpoints(tmp_path)
        run_rounds(coordinator, engine, checkpoints)
        log = read_audit_log(checkpoints.margin_audit, noted=coordinator.state.audit_head)
        assert list(verify_margin_audit(log, SECURE_AGREEMENT).entries) == steps
        assert coordinator.state.margins.mu.tolist() == expected.state.margins.mu.tolist()
        assert coordinator.state.margins.mu.tolist() != [0.3] * 3

    with_engine(run, SECURE_BLUEPRINTS)


@pytest.mark.parametrize("with_engine", SELDOM)
def test_shared_noise_is_the_same_over_every_engine(
    with_engine: Callable[[Callable[[Engine], None], Blueprints], None],
) -> None:
    """By another path: gradients clipped by hand and noise of the same seeds, without masks."""

    def run(engine: Engine) -> None:
        coordinator = new_coordinator(SHARED_NOISE)
        model = coordinator.state.model
        run_rounds(coordinator, engine)
        for number in (1, 2):
            step = rate_of_round(SHARED_NOISE, number) / 12 * sum_of_round(model, number)
            model = np.asarray(model + step, np.float32)
        np.testing.assert_allclose(coordinator.state.model, model, atol=1e-5)
        assert [record.failure for record in coordinator.state.records] == [None, None]

    with_engine(run, {site: partial(distributed_site, site) for site in SITES})


def every_asked_site_has_one_answer(engine: Engine) -> None:
    request = first_request()
    answers = outcomes(
        engine.ask("train", dict.fromkeys([*SITES, "nowhere"], request), timeout_s=60)
    )
    assert set(answers) == {*SITES, "nowhere"}
    missing = answers["nowhere"]
    assert isinstance(missing, SiteFailure)
    assert missing.reason == "unreachable"
    kinds = {site: message_of(answers, site).kind for site in SITES}
    assert kinds == {"site-0": "train_reply", "site-1": "train_reply", "site-2": "refusal"}
    assert set(outcomes(engine.ask("train", {"site-1": request}, timeout_s=60))) == {"site-1"}


def peers_share_no_memory(engine: Engine) -> None:
    request = first_request()
    before = request.encode()
    first = message_of(outcomes(engine.ask("train", {"site-0": request}, timeout_s=60)), "site-0")
    bytes_of_first = first.encode()
    first.arrays["vector"] += 1
    again = message_of(outcomes(engine.ask("train", {"site-0": request}, timeout_s=60)), "site-0")
    assert again.encode() == bytes_of_first
    assert request.encode() == before


def the_run_is_that_of_the_state_machines(engine: Engine, expected: RoundCoordinator) -> None:
    coordinator = new_coordinator(SETTINGS)
    vector = run_rounds(coordinator, engine)
    np.testing.assert_array_equal(vector, expected.state.model)
    for record, other in zip(coordinator.state.records, expected.state.records, strict=True):
        assert record.sites == other.sites
        assert record.mean_loss == other.mean_loss
        assert record.sites["site-2"].startswith("refused: other_agreement")


def first_request() -> Message:
    return next(new_coordinator(SETTINGS).round(SITES)).requests["site-0"]


def message_of(answers: Mapping[str, Message | SiteFailure], site: str) -> Message:
    answer = answers[site]
    assert isinstance(answer, Message)
    return answer
