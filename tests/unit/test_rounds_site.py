from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import sleep

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_federation import (
    AGREEMENT,
    MODEL,
    SITES,
    PullTrainer,
    new_coordinator,
    round_settings,
    run_plan,
    site_agent,
    site_studies,
)

from fedhash.errors import DataError, DivergedError
from fedhash.learning.local_training import LocalResult
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.losses import LOSSES, build_loss
from fedhash.learning.settings import LossName, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.prepared import prepare_studies
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState, MemorySiteState, SiteState
from fedhash.rounds.trainer import SiteTrainer
from fedhash.rounds.training_messages import Refusal, TrainReply, TrainRequest

PLAN = run_plan(round_settings())


def request(**changes: object) -> TrainRequest:
    stage = next(new_coordinator(PLAN.settings).round(SITES))
    return replace(TrainRequest.from_message(stage.requests["site-0"]), **changes)


def agent(trainer: PullTrainer, state: SiteState | None = None) -> SiteAgent:
    return SiteAgent(
        "site-0", AGREEMENT, trainer, state or MemorySiteState(), PlainSiteAggregation()
    )


def plan_with(**changes: object) -> object:
    return PLAN.model_copy(update={"settings": PLAN.settings.model_copy(update=changes)})


def test_a_request_within_the_agreement_is_answered() -> None:
    asked = request()
    reply = TrainReply.from_message(
        agent(PullTrainer(2.0, patients=5)).handle(asked.to_message()), asked
    )
    update, control, loss = np.split(reply.vector, [asked.model.size, 2 * asked.model.size])
    np.testing.assert_array_equal(update, ((2.0 - asked.model) / 2).astype(np.float32))
    np.testing.assert_array_equal(control, np.full(asked.model.size, 2.0, np.float32))
    assert loss.tolist() == [2.0]
    assert reply.weight == 5


def test_a_rounded_weight_tells_no_exact_number() -> None:
    asked = request(plan=plan_with(weighting="rounded_patients"))
    answer = agent(PullTrainer(2.0, patients=5)).handle(asked.to_message())
    assert TrainReply.from_message(answer, asked).weight == 10  # of 5 patients


def test_under_uniform_weighting_each_site_weighs_one() -> None:
    asked = request(plan=plan_with(weighting="uniform"))
    answer = agent(PullTrainer(2.0, patients=5)).handle(asked.to_message())
    assert TrainReply.from_message(answer, asked).weight == 1


OTHER_MODEL = MODEL.model_copy(
    update={"towers": {"report": MODEL.towers["report"].model_copy(update={"options": {}})}}
)
MARGINS = Margins.constant(3, 0.3)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        (
            {"plan": PLAN.model_copy(update={"agreement_digest": "0" * 64})},
            "other_agreement",
            "names the agreement 000000000000, this site signed",
        ),
        ({"plan": plan_with(model=OTHER_MODEL)}, "other_model", "use the same model settings"),
        (
            {"plan": PLAN.model_copy(update={"layout_digest": "0" * 64})},
            "other_model",
            "layout 000000000000",
        ),
        (
            {"model": np.zeros(3, np.float32), "control": np.zeros(3, np.float32)},
            "other_model",
            "a model of 3 parameters",
        ),
        ({"cohort": ("site-0",)}, "bad_cohort", "names 1 sites; .* at least 2 sites"),
        ({"cohort": ()}, "bad_cohort", "names 0 sites"),
        ({"cohort": ("site-1", "site-2")}, "bad_cohort", "hold 'site-0'"),
        ({"cohort": ("site-0", "site-0")}, "bad_cohort", "must be sorted"),
        ({"cohort": ("site-0", "stranger")}, "bad_cohort", "part of the run's roster"),
        ({"round_number": 5}, "stale_round", "round 5 was asked for"),
        ({"counted": {"site-0": 1}}, "stale_round", "after round 1 counted"),
        (
            {"margins": replace(MARGINS, mu=np.array([0.3, 0.61, 0.3], np.float32))},
            "margin_out_of_range",
            "3 values of the margin, 1 of them outside 0.05..0.6",
        ),
        (
            {"margins": replace(MARGINS, w=np.array([1, 2, 2.1], np.float32))},
            "margin_out_of_range",
            "1 of them outside 0.5..2.0",
        ),
        ({"margins": Margins.constant(4, 0.3)}, "margin_out_of_range", "expected 3 values"),
        (
            {"counted": {"site-0": 1}, "round_number": 2},
            "state_lost",
            "does not have what it carried from round 1",
        ),
    ],
)
def test_each_limit_is_checked_before_any_work(changes: dict, reason: str, detail: str) -> None:
    trainer = PullTrainer(1.0)
    refusal = Refusal.from_message(agent(trainer).handle(request(**changes).to_message()))
    assert refusal.reason == reason
    assert re.search(detail, refusal.detail)
    assert trainer.trained == 0


def test_the_ends_of_the_margin_range_are_inside() -> None:
    for margin in AGREEMENT.margin_range:
        plan = plan_with(loss=LossSettings(margin=margin))
        asked = request(plan=plan, margins=Margins.constant(3, margin))
        assert agent(PullTrainer(1.0)).handle(asked.to_message()).kind == "train_reply"


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"contrastive", "learned_prototypes"}))
def test_a_site_trains_with_every_loss(name: LossName) -> None:
    """But for those that need two modalities, or a head of their own."""
    coordinator = new_coordinator(round_settings(loss=LossSettings(name=name)))
    asked = TrainRequest.from_message(next(coordinator.round(SITES)).requests["site-0"])
    reply = TrainReply.from_message(site_agent("site-0").handle(asked.to_message()), asked)
    assert np.isfinite(reply.vector).all()
    assert reply.vector.any()


def test_hashnet_s_codes_sharpen_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    sharpened = []

    def build(settings: LossSettings, anchors: Anchors, progress: float, *more: None) -> Loss:
        sharpened.append(progress)
        return build_loss(settings, anchors, progress, *more)

    monkeypatch.setattr("fedhash.rounds.trainer.build_loss", build)
    settings = round_settings(loss=LossSettings(name="hashnet"), rounds=4)
    low = Margins.constant(3, AGREEMENT.margin_range[0])
    for number in (1, 3):
        asked = request(plan=run_plan(settings), margins=low, round_number=number)
        assert site_agent("site-0").handle(asked.to_message()).kind == "train_reply"
    assert sharpened == [0, 0.5]


def test_local_work_above_the_agreed_cap_is_refused() -> None:
    trainer = PullTrainer(1.0)
    asked = request(plan=run_plan(round_settings(learning={"local_steps": 51})))
    refusal = Refusal.from_message(agent(trainer).handle(asked.to_message()))
    assert (refusal.reason, trainer.trained) == ("too_much_work", 0)
    assert "asks for 51 local steps, the agreement allows 50" in refusal.detail


def vector(trains: SiteAgent, **changes: object) -> np.ndarray:
    asked = request(**changes)
    return TrainReply.from_message(trains.handle(asked.to_message()), asked).vector


def plain_site() -> SiteAgent:
    """Five patients with three findings, in batches of two."""
    return site_agent("site-2", agreement=AGREEMENT)


def test_epochs_are_cut_at_the_cap_and_the_answer_does_not_tell() -> None:
    """A refusal would tell in how many batches the patients go."""
    cut, capped = (
        vector(plain_site(), plan=run_plan(round_settings(learning=learning)))
        for learning in ({"local_steps": None, "local_epochs": 26}, {"local_steps": 50})
    )
    np.testing.assert_array_equal(cut, capped)


def test_one_round_is_the_same_when_asked_again_and_another_in_another_run() -> None:
    """Two runs that differ in one site alone would show that site in the difference of the sums."""
    plan = run_plan(round_settings(learning={"local_steps": 10}))
    first, again = (vector(plain_site(), plan=plan) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other_run = vector(plain_site(), plan=plan.model_copy(update={"run_id": "run-2"}))
    assert not np.array_equal(first, other_run)


def test_messages_are_answered_one_at_a_time() -> None:
    running, most = 0, 0

    class Watched(PullTrainer):
        def train(self, request: TrainRequest, carried: object) -> LocalResult:
            nonlocal running, most
            running += 1
            most = max(most, running)
            sleep(0.01)
            running -= 1
            return super().train(request, carried)

    site = agent(Watched(1.0))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(site.handle, [request().to_message()] * 4))
    assert [answer.kind for answer in answers] == ["train_reply"] * 4
    assert most == 1


class OtherAggregation:
    name = "masked"

    def answer(self, message: Message, contribute: object) -> Message:
        return Refusal("unused", "").to_message() if contribute(read(message), None) else message


def read(message: Message) -> TrainRequest:
    return TrainRequest.from_message(message)


def test_the_coordinator_cannot_lower_the_aggregation() -> None:
    site = SiteAgent(
        "site-0", AGREEMENT, PullTrainer(1.0), MemorySiteState(), aggregation=OtherAggregation()
    )
    refusal = Refusal.from_message(site.handle(request().to_message()))
    assert refusal.reason == "other_aggregation"
    assert "asks for 'plain' aggregation, this site takes part in 'masked' only" in refusal.detail


class FailingTrainer(PullTrainer):
    def train(self, request: TrainRequest, carried: object) -> object:
        raise DataError("study of Mrs Miller has no image")


class DivergingTrainer(PullTrainer):
    def train(self, request: TrainRequest, carried: object) -> object:
        raise DivergedError("the loss is nan at Mrs Miller's study")


class FullDisk(MemorySiteState):
    def keep(self, *args: object, **named: object) -> None:
        raise OSError(28, "No space left on device", "/var/lib/fedhash/run-1")


def test_what_the_operating_system_refuses_is_a_typed_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = agent(PullTrainer(1.0), FullDisk()).handle(request().to_message())
    assert Refusal.from_message(answer).reason == "training_failed"
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("trainer", "detail"),
    [
        (FailingTrainer, "see the site's own log"),
        (DivergingTrainer, "the training left the finite numbers"),
    ],
)
def test_a_failed_training_tells_the_log_and_not_the_coordinator(
    trainer: type[PullTrainer], detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = agent(trainer(1.0)).handle(request().to_message())
    refusal = Refusal.from_message(answer)
    assert (refusal.reason, refusal.detail) == ("training_failed", detail)
    assert "Mrs Miller" in caplog.text


class OverflowingTrainer(PullTrainer):
    def __init__(self, error: Exception) -> None:
        super().__init__(1.0)
        self.error = error

    def train(self, request: TrainRequest, carried: object) -> object:
        raise self.error


@pytest.mark.parametrize("error", [OverflowError("too large"), RuntimeError("without overflow")])
def test_numbers_that_torch_and_python_refuse_are_a_typed_refusal(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = agent(OverflowingTrainer(error)).handle(request().to_message())
    assert Refusal.from_message(answer).reason == "training_failed"
    assert str(error) in caplog.text


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, -1, 0]])
def test_a_study_that_cannot_train_is_told_before_any_round(labels: list[int]) -> None:
    model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
    studies = prepare_studies(model, site_studies("site-0"), AGREEMENT.findings)
    SiteTrainer("site-0", AGREEMENT, MODEL, studies, seed=7)
    studies.labels[1] = torch.tensor(labels)
    with pytest.raises(DataError, match="site-0-study-1 has no positive finding"):
        SiteTrainer("site-0", AGREEMENT, MODEL, studies, seed=7)


def test_a_training_that_diverges_is_not_sent() -> None:
    refusal = Refusal.from_message(agent(PullTrainer(np.inf)).handle(request().to_message()))
    assert refusal.reason == "training_failed"


@given(
    kind=st.sampled_from(["train", "train_reply", "refusal", "unmask"]),
    header=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)),
    length=st.integers(0, 3),
)
def test_whatever_a_peer_sends_the_answer_is_a_message(
    kind: str, header: dict, length: int
) -> None:
    message = Message(kind, header, {"model": np.zeros(length, np.float32)})
    assert Refusal.from_message(agent(PullTrainer(1.0)).handle(message)).reason == "bad_message"


@pytest.fixture(params=["memory", "files"])
def state(request: pytest.FixtureRequest, tmp_path: object) -> SiteState:
    return MemorySiteState() if request.param == "memory" else FileSiteState(tmp_path)


def test_a_site_keeps_the_counted_and_the_newest_state(state: SiteState) -> None:
    arrays = {number: {"control": np.full(3, number, np.float32)} for number in range(1, 5)}
    assert state.newest_round("run-1") == 0
    for number, counted in ((1, 0), (2, 1), (3, 1), (4, 1)):
        state.keep("run-1", number, arrays[number], counted_round=counted)
        assert state.newest_round("run-1") == number
    kept = {number: state.carried("run-1", number) for number in range(1, 5)}
    assert [number for number, carried in kept.items() if carried is not None] == [1, 4]
    np.testing.assert_array_equal(kept[4]["control"], arrays[4]["control"])
    assert state.newest_round("run-2") == 0


def test_a_round_asked_again_gives_the_same_reply(state: SiteState) -> None:
    site = agent(PullTrainer(2.0), state)
    first = request(round_number=1)
    second = request(round_number=2, counted={"site-0": 1})
    site.handle(first.to_message())
    once, again = (site.handle(second.to_message()) for _ in range(2))
    assert once.encode() == again.encode()
    # the control variate of round 1 was 2 already
    control = TrainReply.from_message(once, second).vector[first.model.size : -1]
    assert set(control.tolist()) == {0.0}


def test_what_did_not_count_is_dropped(state: SiteState) -> None:
    site = agent(PullTrainer(2.0), state)
    site.handle(request(round_number=1).to_message())
    second = request(round_number=2, counted={"site-1": 1})
    reply = TrainReply.from_message(site.handle(second.to_message()), second)
    assert set(reply.vector[second.model.size : -1].tolist()) == {2.0}


def test_a_round_older_than_one_already_trained_is_refused(state: SiteState) -> None:
    site = agent(PullTrainer(2.0), state)
    site.handle(request(round_number=3).to_message())
    refusal = Refusal.from_message(site.handle(request(round_number=2).to_message()))
    assert refusal.reason == "stale_round"
    assert "has trained up to round 3 of 4" in refusal.detail


def test_training_is_drawn_from_the_site_and_the_round() -> None:
    asked = request()
    replies = {
        (site, number): site_agent(site)
        .handle(replace(asked, round_number=number).to_message())
        .arrays["vector"]
        for site in ("site-0", "site-1")
        for number in (1, 2)
    }
    again = site_agent("site-0").handle(asked.to_message()).arrays["vector"]
    np.testing.assert_array_equal(replies["site-0", 1], again)
    assert len({vector.tobytes() for vector in replies.values()}) == 4
