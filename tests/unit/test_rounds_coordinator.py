from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_federation import AGREEMENT, SITES, PullTrainer, new_coordinator, round_settings

from fedhash.errors import AggregationError, CohortError, MessageError, ProtocolError
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.rounds.aggregation import PlainSiteAggregation, Stage, SumRecord
from fedhash.rounds.coordinator import RoundCoordinator, RoundRecord
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_round, run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import MemorySiteState
from fedhash.rounds.training_messages import (
    Refusal,
    TrainRequest,
)

TARGETS = {"site-0": 1.0, "site-1": 2.0, "site-2": 4.0}
PATIENTS = {"site-0": 1, "site-1": 2, "site-2": 5}
LATE = SiteFailure("late", "no answer within 600 s")


class ScriptedEngine:
    """Reaches pulling sites; `faults` may replace a site's answer in each round."""

    def __init__(self, *faults: Mapping[str, Callable[[Message], Message | SiteFailure]]) -> None:
        self.agents = {
            site: SiteAgent(
                site,
                AGREEMENT,
                PullTrainer(TARGETS[site], PATIENTS[site]),
                MemorySiteState(),
                PlainSiteAggregation(),
            )
            for site in SITES
        }
        self.sites: tuple[str, ...] = SITES
        self.faults = list(faults)

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Iterator[Answer]:
        faults = self.faults.pop(0) if self.faults else {}
        for site in requests:
            answer = self.agents[site].handle(requests[site])
            yield Answer(site, faults[site](answer) if site in faults else answer)


def late(answer: Message) -> SiteFailure:
    return LATE


def refusing(answer: Message) -> Message:
    return Refusal("too_much_work", "51 steps").to_message()


def truncated(answer: Message) -> Message:
    return Message(answer.kind, answer.header, {"vector": np.zeros(1, np.float32)})


def poisoned(answer: Message) -> Message:
    arrays = {name: np.full_like(array, np.nan) for name, array in answer.arrays.items()}
    return Message(answer.kind, answer.header, arrays)


def of_another_round(answer: Message) -> Message:
    return Message(answer.kind, answer.header | {"round_number": 9}, answer.arrays)


def without_kind(answer: Message) -> Message:
    return Message("surprise", answer.header, answer.arrays)


FAULTS = {
    late: "late: no answer within 600 s",
    refusing: "refused: too_much_work: 51 steps",
    truncated: "nonsense: a 'train_reply' message must have the arrays",
    poisoned: "nonsense: the array",
    of_another_round: "nonsense: the reply is for run 'run-1' round 9, asked was run 'run-1'",
    without_kind: "nonsense: expected a message of kind 'train_reply', found 'surprise'",
}


@pytest.mark.parametrize("weighting", ["patients", "uniform"])
def test_the_model_moves_by_the_weighted_mean(weighting: str) -> None:
    coordinator = new_coordinator(round_settings(weighting=weighting))
    before = coordinator.state.model
    record = run_round(coordinator, ScriptedEngine())
    weights = PATIENTS if weighting == "patients" else dict.fromkeys(SITES, 1)
    mean = sum(weights[s] * TARGETS[s] for s in SITES) / sum(weights.values())
    np.testing.assert_allclose(coordinator.state.model, (before + mean) / 2, rtol=1e-6)
    np.testing.assert_allclose(coordinator.state.control, mean, rtol=1e-6)
    assert record.mean_loss == pytest.approx(mean)
    assert record.weight == sum(weights.values())
    assert record.sites == dict.fromkeys(SITES, "ok")
    assert (record.round_number, record.failure) == (1, None)
    assert coordinator.state.records == (record,)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_site_at_fault_is_left_out_with_the_reason(fault: Callable) -> None:
    coordinator = new_coordinator(round_settings(weighting="uniform"))
    before = coordinator.state.model
    record = run_round(coordinator, ScriptedEngine({"site-1": fault}))
    assert record.sites["site-1"].startswith(FAULTS[fault])
    assert record.sites["site-0"] == record.sites["site-2"] == "ok"
    np.testing.assert_allclose(coordinator.state.model, (before + 2.5) / 2, rtol=1e-6)
    # the control variate moves by the share of the roster that counted
    np.testing.assert_allclose(coordinator.state.control, 2.5 * 2 / 3, rtol=1e-6)


def test_a_site_without_an_answer_is_left_out() -> None:
    coordinator = new_coordinator(round_settings())
    steps = coordinator.round(SITES)
    stage = next(steps)
    engine = ScriptedEngine()
    answers = list(engine.ask(stage.name, stage.requests, 1.0))
    with pytest.raises(StopIteration) as end:
        steps.send(answers[:2])
    assert end.value.value.sites["site-2"] == "no_answer: none came"


def test_a_site_that_cannot_be_reached_is_not_asked() -> None:
    coordinator = new_coordinator(round_settings())
    stage = next(coordinator.round(["site-2", "site-0", "stranger"]))
    assert set(stage.requests) == {"site-0", "site-2"}
    assert TrainRequest.from_message(stage.requests["site-0"]).cohort == ("site-0", "site-2")


def test_below_the_smallest_cohort_nobody_is_asked() -> None:
    coordinator = new_coordinator(round_settings())
    with pytest.raises(
        CohortError, match=r"1 of 3 sites count in round 1.*asks for 2.*site-2: not"
    ):
        next(coordinator.round(["site-0"]))


def test_a_failed_round_leaves_the_model_and_the_next_may_start() -> None:
    coordinator = new_coordinator(round_settings())
    engine = ScriptedEngine({"site-0": late, "site-2": refusing})
    before = coordinator.state
    with pytest.raises(CohortError, match=r"1 of 3 sites count.*site-0: late.*site-2: refused"):
        run_round(coordinator, engine)
    after = coordinator.state
    assert after.model is before.model
    assert after.control is before.control
    assert after.counted == {}
    assert after.records[0].failure is not None
    assert after.records[0].sites["site-1"] == "ok"
    assert after.records[0].mean_loss is None
    record = run_round(coordinator, engine)
    assert (record.round_number, record.failure) == (2, None)
    assert coordinator.state.counted == dict.fromkeys(SITES, 2)


class HalfASum:
    """Notes what it found out, and then fails."""

    name = "plain"

    def aggregate(self, request: TrainRequest, record: SumRecord) -> Iterator[Stage]:
        yield Stage("train", {})
        record.left_out["site-1"] = "train: late"
        record.notes["site-2"] = "sent nonsense"
        record.facts["graph"] = "complete"
        raise AggregationError("too few shares")


def test_a_failed_sum_leaves_its_record() -> None:
    plan = new_coordinator(round_settings()).plan
    state = new_coordinator(round_settings()).state
    coordinator = RoundCoordinator(plan, AGREEMENT, state, HalfASum())
    with pytest.raises(AggregationError):
        run_round(coordinator, ScriptedEngine())
    (record,) = coordinator.state.records
    assert record.failure == "too few shares"
    assert record.sites == {"site-0": "ok", "site-1": "train: late", "site-2": "ok"}
    assert (record.aggregation, record.notes) == (
        {"graph": "complete"},
        {"site-2": "sent nonsense"},
    )


def test_the_order_of_arrival_does_not_matter() -> None:
    models = []
    for order in (1, -1):
        coordinator = new_coordinator(round_settings())
        steps = coordinator.round(SITES)
        stage = next(steps)
        answers = ScriptedEngine().ask(stage.name, stage.requests, 1.0)
        with pytest.raises(StopIteration):
            steps.send(list(answers)[::order])
        models.append(coordinator.state.model.tobytes())
    assert models[0] == models[1]


LEFT = "refused: training_failed: the training left the finite numbers"


@pytest.mark.parametrize(
    ("failure", "sites", "diverged"),
    [
        (None, {"a": "ok", "b": LEFT}, False),
        ("1 of 2 sites count", {"a": "ok", "b": LEFT}, True),
        ("0 of 2 sites count", {"a": LEFT, "b": LEFT}, True),
        ("0 of 2 sites count", {"a": LEFT, "b": "not reachable"}, False),
        ("0 of 2 sites count", {"a": LEFT, "b": "refused: training_failed: disk"}, False),
        ("the sites' mean left the finite numbers", {"a": "ok", "b": "ok"}, True),
        ("the sum cannot be opened", {"a": "ok", "b": "ok"}, False),
    ],
)
def test_a_round_diverged_if_nothing_else_went_wrong(
    failure: str | None, sites: dict[str, str], diverged: bool
) -> None:
    assert RoundRecord(1, failure, sites, 0.0, None, 1.0).diverged == diverged


def test_a_mean_outside_the_finite_numbers_fails_the_round() -> None:
    def huge(answer: Message) -> Message:
        vector = np.full_like(answer.arrays["vector"], 3e38)
        return Message(answer.kind, answer.header, answer.arrays | {"vector": vector})

    settings = round_settings(
        coordinator_optimiser=CoordinatorOptimiserSettings(learning_rate=10.0)
    )
    coordinator = new_coordinator(settings)
    before = coordinator.state.model
    with pytest.raises(ProtocolError, match="left the finite numbers, so the model stays"):
        run_round(coordinator, ScriptedEngine(dict.fromkeys(SITES, huge)))
    assert coordinator.state.model is before


def test_an_interrupted_round_leaves_no_trace() -> None:
    coordinator = new_coordinator(round_settings())
    before = coordinator.state
    steps = coordinator.round(SITES)
    next(steps)
    steps.close()
    assert coordinator.state is before


def test_no_round_follows_the_last() -> None:
    coordinator = new_coordinator(round_settings(rounds=1))
    run_round(coordinator, ScriptedEngine())
    assert coordinator.finished
    with pytest.raises(ProtocolError, match="all 1 rounds have ended"):
        next(coordinator.round(SITES))


def test_a_run_reports_every_round_and_outlives_a_bad_one() -> None:
    coordinator = new_coordinator(round_settings())
    records: list[RoundRecord] = []
    engine = ScriptedEngine({}, dict.fromkeys(SITES, late))
    vector = run_rounds(coordinator, engine, on_round=records.append)
    assert [record.failure is None for record in records] == [True, False, True, True]
    assert vector is coordinator.state.model


def test_a_run_without_a_single_completed_round_ends_in_an_error() -> None:
    coordinator = new_coordinator(round_settings(rounds=2))
    engine = ScriptedEngine(*[dict.fromkeys(SITES, late)] * 2)
    for _ in range(2):  # and again where it goes on from its end
        with pytest.raises(ProtocolError, match="none of the 2 rounds was completed"):
            run_rounds(coordinator, engine)


def test_three_failed_rounds_in_a_row_end_the_run() -> None:
    coordinator = new_coordinator(round_settings(rounds=10))
    engine = ScriptedEngine({}, *[dict.fromkeys(SITES, late)] * 5)
    with pytest.raises(CohortError, match="0 of 3 sites count in round 4"):
        run_rounds(coordinator, engine)


def test_an_engine_that_cannot_send_ends_the_run_at_once() -> None:
    class BrokenEngine(ScriptedEngine):
        def ask(
            self, stage: str, requests: Mapping[str, Message], timeout_s: float
        ) -> Iterator[Answer]:
            raise MessageError("cannot be sent")

    coordinator = new_coordinator(round_settings())
    with pytest.raises(MessageError, match="cannot be sent"):
        run_rounds(coordinator, BrokenEngine())
    assert coordinator.state.records == ()


@given(
    st.lists(
        st.dictionaries(st.sampled_from(SITES), st.sampled_from(list(FAULTS))),
        min_size=6,
        max_size=6,
    )
)
def test_whatever_fails_the_model_is_that_of_the_counted_sites(faults: list[dict]) -> None:
    """Against a few lines that know nothing of messages."""
    coordinator = new_coordinator(round_settings(rounds=6))
    model = coordinator.state.model.astype(np.float64)
    own = dict.fromkeys(SITES, 0.0)
    shared = 0.0
    engine = ScriptedEngine(*faults)
    for fault in faults:
        counted = [site for site in SITES if site not in fault]
        try:
            run_round(coordinator, engine)
        except CohortError:
            assert len(counted) < AGREEMENT.smallest_cohort
            continue
        weight = sum(PATIENTS[site] for site in counted)
        mean = sum(PATIENTS[site] * TARGETS[site] for site in counted) / weight
        delta = sum(PATIENTS[s] * (TARGETS[s] - own[s]) for s in counted) / weight
        model = model + (mean - model) / 2
        shared += len(counted) / len(SITES) * delta
        own |= {site: TARGETS[site] for site in counted}
    np.testing.assert_allclose(coordinator.state.model, model, atol=1e-5)
    np.testing.assert_allclose(coordinator.state.control, shared, atol=1e-5)
    assert [record.round_number for record in coordinator.state.records] == [1, 2, 3, 4, 5, 6]
