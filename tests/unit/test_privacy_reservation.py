"""Private steps as entries of a site's ledger, and the fingerprint of what they were about."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhash import __version__
from fedhash.errors import BudgetError, PrivacyError
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy import (
    FullBatchGaussianSteps,
    PoissonGaussianSteps,
    PrivacyTerms,
    epsilon,
    read_ledger,
)
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.reservation import data_fingerprint, model_update, reserve_model_update

FINGERPRINT = "0f" * 32
STEPS = PrivateSteps(noise_multiplier=1.1, sampling_rate=0.25, steps=4)
STUDIES = PreparedStudies(
    study_ids=("s-2", "s-1", "s-3"),
    patient_ids=("p", "p", "ö"),
    labels=torch.tensor([[1, 0], [-1, 1], [0, 1]], dtype=torch.int8),
    inputs={
        "report": torch.tensor([[0.5, -2.0], [0.0, 0.0], [3.0, 4.0]]),
        "image": torch.arange(6.0).reshape(3, 1, 2),
    },
    present={
        "report": torch.tensor([True, False, True]),
        "image": torch.tensor([True, True, True]),
    },
    attributes=({"sex": "f"}, {}, {}),
)


def test_a_round_s_steps_are_an_event_that_says_all() -> None:
    event = model_update(FINGERPRINT, "run-7", 3, STEPS)
    assert event == PoissonGaussianSteps(
        data_fingerprint=FINGERPRINT,
        code_version=__version__,
        run_id="run-7",
        round_number=3,
        purpose="model update",
        noise_multiplier=1.1,
        sampling_rate=0.25,
        steps=4,
    )
    whole = model_update(FINGERPRINT, "run-7", 3, replace(STEPS, sampling_rate=1.0))
    assert isinstance(whole, FullBatchGaussianSteps)
    assert (whole.noise_multiplier, whole.steps) == (1.1, 4)


def test_steps_that_no_event_can_say_are_an_error_that_names_them() -> None:
    with pytest.raises(PrivacyError, match=r"round 3 of 'run-7' asks for .*steps=2000000.*bounds"):
        model_update(FINGERPRINT, "run-7", 3, replace(STEPS, steps=2_000_000))


def test_steps_are_reserved_up_to_the_cap_and_again_when_asked_again(tmp_path: Path) -> None:
    path, event = tmp_path / "kept" / "ledger.sqlite", model_update(FINGERPRINT, "run-7", 1, STEPS)
    terms = [PrivacyTerms(epsilon_cap=epsilon([event] * 2, 1e-5), delta=1e-5)]
    for _ in range(2):
        reserve_model_update(path, terms, FINGERPRINT, "run-7", 1, STEPS)
    with pytest.raises(BudgetError, match="'model update' of run run-7, round 2"):
        reserve_model_update(path, terms, FINGERPRINT, "run-7", 2, STEPS)
    assert [entry.event for entry in read_ledger(path)] == [event, event]


def test_nothing_is_reserved_without_a_limit(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="without a limit"):
        reserve_model_update(tmp_path / "ledger.sqlite", [], FINGERPRINT, "run-7", 1, STEPS)


def test_the_fingerprint_is_over_the_bytes_that_the_module_names() -> None:
    expected = hashlib.sha256(
        b"fedhash data set 1"
        b'[2,{"image":[1,2],"report":[2]}]\n'
        b'["s-1","p"]\n' + struct.pack("<2b?2f?", -1, 1, True, 2, 3, False)
        + b'["s-2","p"]\n' + struct.pack("<2b?2f?2f", 1, 0, True, 0, 1, True, 0.5, -2)
        + json.dumps(["s-3", "ö"], separators=(",", ":")).encode()
        + b"\n" + struct.pack("<2b?2f?2f", 0, 1, True, 4, 5, True, 3, 4)
    )  # fmt: skip
    assert data_fingerprint(STUDIES) == expected.hexdigest()


@given(st.permutations(range(3)))
def test_the_order_of_the_manifest_does_not_count(order: list[int]) -> None:
    assert data_fingerprint(STUDIES.select(order)) == data_fingerprint(STUDIES)


def test_attributes_and_what_a_study_lacks_do_not_count() -> None:
    inputs = {**STUDIES.inputs, "report": STUDIES.inputs["report"].clone()}
    inputs["report"][1] = 7.0
    same = replace(STUDIES, attributes=({}, {}, {"sex": "m"}), inputs=inputs)
    assert data_fingerprint(same) == data_fingerprint(STUDIES)


@pytest.mark.parametrize(
    "change",
    [
        {"study_ids": ("s-2", "s-1", "s-4")},
        {"patient_ids": ("p", "q", "ö")},
        {"labels": STUDIES.labels * 0},
        {"inputs": {**STUDIES.inputs, "image": STUDIES.inputs["image"] + 1e-6}},
        {"inputs": {**STUDIES.inputs, "image": STUDIES.inputs["image"].reshape(3, 2, 1)}},
        {"present": {**STUDIES.present, "image": torch.tensor([True, True, False])}},
    ],
)
def test_all_that_is_trained_on_counts(change: dict[str, Any]) -> None:
    assert data_fingerprint(replace(STUDIES, **change)) != data_fingerprint(STUDIES)


def test_one_study_less_is_another_data_set() -> None:
    assert data_fingerprint(STUDIES.select([0, 1])) != data_fingerprint(STUDIES)
