from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_federation import AGREEMENT, SITES, new_coordinator, round_settings, run_plan

from fedhash.errors import MessageError
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import (
    Refusal,
    RunPlan,
    TrainReply,
    TrainRequest,
    largest_message_bytes,
    reply_blocks,
    slices,
)
from fedhash.secagg.roster import SEALED_BYTES

PLAN = run_plan(round_settings())


def train_request() -> TrainRequest:
    """What the coordinator of a run with control variates asks of a site."""
    stage = next(new_coordinator(PLAN.settings).round(SITES))
    return TrainRequest.from_message(stage.requests[SITES[0]])


def train_reply(request: TrainRequest, weight: float = 3.0) -> TrainReply:
    length = sum(request.blocks.values())
    return TrainReply("run-1", request.round_number, np.ones(length, np.float32), weight)


def altered(message: Message, header: dict | None = None, **arrays: np.ndarray | None) -> Message:
    changed = {
        name: array for name, array in (message.arrays | arrays).items() if array is not None
    }
    return Message(message.kind, message.header | (header or {}), changed)


def test_a_request_survives_its_message() -> None:
    request = replace(train_request(), counted={"site-0": 3}, round_number=4)
    data = request.to_message().encode()
    assert len(data) <= largest_message_bytes(request.model.size)
    read = TrainRequest.from_message(Message.decode(data, max_bytes=len(data)))
    assert (read.plan, read.round_number, read.counted) == (PLAN, 4, {"site-0": 3})
    assert read.cohort == SITES
    np.testing.assert_array_equal(read.model, request.model)
    np.testing.assert_array_equal(read.margins.mu, np.full(3, 0.3, np.float32))
    np.testing.assert_array_equal(read.margins.w, np.ones(3, np.float32))
    np.testing.assert_array_equal(read.control, np.zeros_like(request.model))


def test_a_run_without_control_variates_sends_none() -> None:
    plan = run_plan(round_settings(learning={"control_variates": False}))
    request = replace(train_request(), plan=plan, control=None)
    message = request.to_message()
    assert set(message.arrays) == {"model", "margin", "margin_weight"}
    assert TrainRequest.from_message(message).control is None
    assert reply_blocks(plan, 1, 10, 3) == {"update": 10, "loss": 1}
    assert reply_blocks(PLAN, 1, 10, 3) == {"update": 10, "control": 10, "loss": 1}
    scheduled = PLAN.settings.model_copy(update={"margin_schedule": MarginScheduleSettings()})
    plan = PLAN.model_copy(update={"settings": scheduled})
    blocks = {"update": 10, "control": 10, "statistics": 12, "loss": 1}
    assert (reply_blocks(plan, 4, 10, 3), reply_blocks(plan, 5, 10, 3)) == (
        {"update": 10, "control": 10, "loss": 1},
        blocks,
    )
    assert slices(blocks) == {
        "update": slice(0, 10),
        "control": slice(10, 20),
        "statistics": slice(20, 32),
        "loss": slice(32, 33),
    }


@pytest.mark.parametrize(
    ("header", "arrays", "problem"),
    [
        ({"round_number": 0}, {}, "round_number: Input should be greater than or equal to 1"),
        ({"round_number": "1"}, {}, "round_number: Input should be a valid integer"),
        ({"counted": {"site-0": 0}}, {}, "counted.site-0: Input should be greater than"),
        ({"cohort": ["a\x1b[2J"]}, {}, "cohort.0: String should match pattern"),
        ({"surprise": 1}, {}, "surprise: Extra inputs are not permitted"),
        ({"plan": {}}, {}, "plan.run_id: Field required"),
        ({}, {"surprise": np.zeros(1, np.float32)}, "found: control, margin"),
        ({}, {"control": None}, "must have the arrays"),
        ({}, {"model": np.zeros(4)}, "'model' is float64 of shape"),
        ({}, {"model": np.zeros((4, 1), np.float32)}, "expected a float32 vector"),
        ({}, {"model": np.array([np.nan], np.float32)}, "'model' holds values that are not"),
        ({}, {"control": np.array([np.inf], np.float32)}, "'control' holds values that are not"),
        ({}, {"control": np.zeros(1, np.float32)}, "must have the same length"),
        ({}, {"margin_weight": np.ones(2, np.float32)}, "must have the same length"),
    ],
)
def test_a_malformed_request_names_its_fault(header: dict, arrays: dict, problem: str) -> None:
    message = altered(train_request().to_message(), header, **arrays)
    with pytest.raises(MessageError, match=problem):
        TrainRequest.from_message(message)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"run_id": "../../etc"}, "run_id"),
        ({"run_id": "x" * 65}, "run_id"),
        ({"agreement_digest": "no digest"}, "agreement_digest"),
        ({"sites": ["site-1", "site-0"]}, "sites must be sorted and each named once"),
        ({"sites": ["site-0", "site-0"]}, "sites must be sorted and each named once"),
        ({"sites": []}, "plan.sites"),
        ({"settings": {"rounds": 3}}, "plan.settings.model: Field required"),
    ],
)
def test_a_malformed_plan_is_refused(changes: dict, problem: str) -> None:
    plan = PLAN.model_dump(mode="json") | changes
    with pytest.raises(MessageError, match=problem):
        TrainRequest.from_message(altered(train_request().to_message(), {"plan": plan}))


def test_a_reply_survives_its_message() -> None:
    request = train_request()
    read = TrainReply.from_message(train_reply(request).to_message(), request)
    assert read.weight == 3.0
    assert read.vector.size == 2 * request.model.size + 1


def test_a_reply_must_answer_the_very_request() -> None:
    request = train_request()
    message = train_reply(request).to_message()
    with pytest.raises(MessageError, match="is for run 'other' round 1, asked was run 'run-1'"):
        TrainReply.from_message(altered(message, {"run_id": "other"}), request)
    with pytest.raises(MessageError, match="run 'run-1' round 2, asked was run 'run-1' round 1"):
        TrainReply.from_message(altered(message, {"round_number": 2}), request)
    with pytest.raises(MessageError, match="expected a message of kind 'train_reply'"):
        TrainReply.from_message(request.to_message(), request)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"vector": np.zeros(5, np.float32)}, "a vector of 5 and a weight of 1 numbers"),
        ({"weight": np.ones(2, np.float32)}, "a weight of 2 numbers"),
        ({"weight": np.array([0.5], np.float32)}, "the weight is 0.5"),
        ({"weight": np.array([-3], np.float32)}, "the weight is -3"),
        ({"weight": np.array([np.nan], np.float32)}, "not finite"),
        ({"weight": None}, "must have the arrays"),
    ],
)
def test_a_malformed_reply_names_its_fault(arrays: dict, problem: str) -> None:
    request = train_request()
    with pytest.raises(MessageError, match=problem):
        TrainReply.from_message(altered(train_reply(request).to_message(), **arrays), request)


def test_uniform_weighting_allows_no_other_weight_than_one() -> None:
    request = replace(train_request(), plan=run_plan(round_settings(weighting="uniform")))
    assert TrainReply.from_message(train_reply(request, 1.0).to_message(), request).weight == 1
    with pytest.raises(MessageError, match="'uniform' does not allow"):
        TrainReply.from_message(train_reply(request, 2.0).to_message(), request)


def test_a_refusal_is_one_printable_line() -> None:
    refusal = Refusal("too_much_work", "steps\n\x1b[31mred\x00" + "x" * 5000)
    read = Refusal.from_message(refusal.to_message())
    assert read.detail.startswith("steps  [31mred x")
    assert len(read.detail) == 500
    with pytest.raises(MessageError, match="reason"):
        Refusal.from_message(Message("refusal", {"reason": "Red!", "detail": ""}, {}))
    with pytest.raises(MessageError, match="detail"):
        Refusal.from_message(Message("refusal", {"reason": "red", "detail": "\x1b"}, {}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    field=st.sampled_from(["plan", "round_number", "counted", "cohort", "drift"]),
    plan_field=st.sampled_from(sorted(RunPlan.model_fields)),
    value=json_values,
)
def test_any_header_is_read_or_refused(field: str, plan_field: str, value: object) -> None:
    message = train_request().to_message()
    plan = message.header["plan"] | {plan_field: value}
    for header in ({field: value}, {"plan": plan}):
        try:
            request = TrainRequest.from_message(altered(message, header))
        except MessageError:
            continue
        assert request.plan.sites == tuple(sorted(request.plan.sites))
        assert len(AGREEMENT.findings) == request.margins.mu.size
        assert 0 <= request.drift <= 9


def test_a_header_of_many_faults_is_refused_without_listing_them() -> None:
    message = Message("train", {"cohort": [1] * 50_000, "plan": {}}, {})
    with pytest.raises(MessageError, match=r"has 50\d{3} faults$"):
        TrainRequest.from_message(message)


def test_the_largest_message_holds_the_shares_of_the_largest_roster() -> None:
    assert largest_message_bytes(1) > 1000 * 255 * SEALED_BYTES
