"""Events keep their text and their meaning for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privacy_events import distributed, full_batch, poisson, release
from pydantic import ValidationError

from fedhash.privacy import canonical_json, parse_event

HEAD = f'"data_fingerprint":"{"0f" * 32}",'

# Ledgers hold these texts: a change here is a new kind of event, never a new meaning of an old one.
PUBLISHED = {
    '{"code_version":"0.1.0",'
    + HEAD
    + '"kind":"poisson_gaussian_steps","noise_multiplier":1.1,"purpose":"model update",'
    '"round_number":3,"run_id":"run-7","sampling_rate":0.01,"steps":24,"unit":"patient"}': poisson(
        1.1, 0.01, 24
    ),
    '{"code_version":"0.1.0",'
    + HEAD
    + '"kind":"full_batch_gaussian_steps","noise_multiplier":4.0,"purpose":"model update",'
    '"round_number":3,"run_id":"run-7","steps":60,"unit":"patient"}': full_batch(4.0, 60),
    '{"code_version":"0.1.0",'
    + HEAD
    + '"kind":"gaussian_release","noise_multiplier":9.5,"purpose":"margin statistics",'
    '"round_number":3,"run_id":"run-7","unit":"patient"}': release(
        9.5, purpose="margin statistics"
    ),
    '{"code_version":"0.1.0","colluding_sites":2,'
    + HEAD
    + '"guaranteed_noise_multiplier":5.0,"kind":"distributed_gaussian_step",'
    '"purpose":"model update","round_number":3,"run_id":"run-7",'
    '"share_sigma_integer_steps":1000.0,"sum_noise_multiplier":10.0,"unit":"patient"}': distributed(
        5.0
    ),
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_texts_stay(text: str) -> None:
    assert canonical_json(PUBLISHED[text]) == text
    assert parse_event(text) == PUBLISHED[text]


@given(
    sigma=st.floats(1e-6, 1e6),
    rate=st.floats(1e-9, 1),
    steps=st.integers(1, 10**6),
    purpose=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200),
)
def test_every_event_survives_its_text(sigma: float, rate: float, steps: int, purpose: str) -> None:
    for event in (
        poisson(sigma, rate, steps, purpose=purpose),
        full_batch(sigma, steps, purpose=purpose),
        release(sigma, purpose=purpose),
    ):
        text = canonical_json(event)
        assert parse_event(text) == event
        assert canonical_json(parse_event(text)) == text


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        poisson(1.0, 0.1, 1).steps = 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poisson(0.0, 0.1, 1), "noise_multiplier"),
        (lambda: poisson(float("nan"), 0.1, 1), "noise_multiplier"),
        (lambda: poisson(float("inf"), 0.1, 1), "noise_multiplier"),
        (lambda: poisson(1.0, 0.0, 1), "sampling_rate"),
        (lambda: poisson(1.0, 1.01, 1), "sampling_rate"),
        (lambda: poisson(1.0, 0.1, 0), "steps"),
        (lambda: poisson(1.0, 0.1, 10**6 + 1), "steps"),
        (lambda: poisson(1.0, 0.1, True), "steps"),
        (lambda: release(1.0, unit="image"), "unit"),
        (lambda: release(1.0, data_fingerprint="0f"), "data_fingerprint"),
        (lambda: release(1.0, run_id=""), "run_id"),
        (lambda: release(1.0, round_number=-1), "round_number"),
        (lambda: distributed(1.0, share=7.9), "share_sigma_integer_steps"),
        (lambda: distributed(1.0, colluding=-1), "colluding_sites"),
        (lambda: distributed(1.0, sum_noise_multiplier=0.9), "1.0 is guaranteed, the whole sum"),
    ],
)
def test_what_is_no_event(make: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"kind":"laplace_release"}'])
def test_a_text_that_is_no_event(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_event(text)


def test_all_kinds_are_published() -> None:
    kinds = {event.kind for event in PUBLISHED.values()}
    assert len(kinds) == len(PUBLISHED) == 4
