"""How much noise a site adds: the sensitivity behind it, what a sum is sure to keep, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from privacy_events import COMMON, full_batch
from secure_sites import consortium

from fedhash.errors import PrivacyError
from fedhash.privacy import DistributedGaussianStep, epsilon
from fedhash.privacy.noise_share import integer_sensitivity, noise_share
from fedhash.privacy.private_steps import SharedNoiseStep
from fedhash.privacy.reservation import model_update
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.secagg.fixed_point import Block, FixedPoint
from fedhash.secagg.floors import SecureCohort, secure_cohort, smallest_sum
from fedhash.secagg.terms import SecureAggregationTerms

PRIVACY = DistributedPrivacySettings(
    mode="distributed", clip_norm=0.5, noise_multiplier=2.0, expected_patients=1000
)
COHORT = SecureCohort(sites=10, colluding=1, fewest_honest=6)


def ring(length: int = 1000, clip: float = 0.5 * 1000, **changes: object) -> FixedPoint:
    whole = FixedPoint((Block("update", length, clip), Block("loss", 1, 1.0)), 32, 10, 1.0)
    return replace(whole, **changes)


@hypothesis_settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 60),
    bits=st.sampled_from([16, 20, 24, 32]),
    clip_norm=st.floats(1e-3, 1e3),
    largest_weight=st.sampled_from([1.0, 30.0, 1e4]),
    size=st.floats(0, 3),
    moved=st.floats(0, 1),
)
def test_one_patient_moves_the_integers_by_less_than_the_sensitivity(
    seed: int,
    length: int,
    bits: int,
    clip_norm: float,
    largest_weight: float,
    size: float,
    moved: float,
) -> None:
    """Sums up to three times the clip, and differences of all sizes, some in few coordinates."""
    draws = np.random.default_rng(seed)
    encoding = ring(length, clip_norm * largest_weight, ring_bits=bits)
    before = draws.uniform(-size, size, length) * encoding.blocks[0].clip
    change = draws.normal(size=length) * (draws.random(length) < draws.random())
    change *= 0.999 * moved * clip_norm / (np.linalg.norm(change) or 1.0)
    words = [
        encoding.encode(np.append(vector, 0.0), 1.0, np.random.default_rng(seed))
        for vector in (before, before + change)
    ]
    signed = [each.view(f"<i{each.itemsize}").astype(float) for each in words]
    step = encoding.step(encoding.blocks[0])
    change_of_update = (signed[1] - signed[0])[:length]
    assert np.linalg.norm(change_of_update) <= integer_sensitivity(clip_norm, step, length)


def test_the_rounding_s_part_of_the_sensitivity_is_needed() -> None:
    """Ten thousand coordinates that move by a hundredth of an integer: a hundred move by one."""
    encoding = ring(10_000)
    step = encoding.step(encoding.blocks[0])
    zero = np.zeros(10_001)
    moved = np.append(np.full(10_000, 0.01 * step), 0.0)
    one, other = (encoding.encode(x, 1.0, np.random.default_rng(1)) for x in (zero, moved))
    found = np.linalg.norm((other - one).view("<i4").astype(float))
    clip_norm = float(np.linalg.norm(moved))
    assert found > 5 * clip_norm / step
    assert found <= integer_sensitivity(clip_norm, step, 10_000)


def test_the_number_of_clipped_values_is_not_told() -> None:
    vector = np.append(np.full(1000, 1e9), 0.0)
    rng = np.random.default_rng(0)
    assert ring().decode(ring().encode(vector, 1.0, rng)).clipped == 1000
    silent = ring(tells_clipped=False)
    assert silent.decode(silent.encode(vector, 1.0, rng)).clipped == 0
    assert silent.digest() != ring().digest()


def test_a_vector_in_double_precision_is_not_rounded_to_single() -> None:
    encoding = FixedPoint((Block("update", 1, 2.0**24),), 32, 1, 1.0)
    vector = np.array([2.0**23 + 0.25])
    words = encoding.encode(vector, 1.0, np.random.default_rng(0))
    found = encoding.decode(words).vector[0]
    assert abs(found - vector[0]) < 2 * 2.0**24 / encoding.largest


@given(st.floats(0.5, 50), st.integers(1, 10**6), st.integers(1, 40))
def test_a_step_counts_as_one_of_the_guaranteed_noise(z: float, length: int, honest: int) -> None:
    privacy = PRIVACY.model_copy(update={"noise_multiplier": z, "expected_patients": 1})
    cohort = SecureCohort(sites=40, colluding=4, fewest_honest=honest)
    share = noise_share(privacy, ring(length), cohort)
    event = model_update("0f" * 32, "run-7", 3, share)
    assert isinstance(event, DistributedGaussianStep)
    assert event.colluding_sites == 4
    assert event.guaranteed_noise_multiplier == pytest.approx(z, rel=1e-3)
    assert event.guaranteed_noise_multiplier >= z
    assert epsilon([event], 1e-5) == pytest.approx(epsilon([full_batch(z)], 1e-5), rel=1e-6)
    ratio = event.sum_noise_multiplier / event.guaranteed_noise_multiplier
    assert ratio == pytest.approx(math.sqrt(40 / honest))


def test_the_share_by_hand() -> None:
    encoding = ring()
    sensitivity = 0.5 / encoding.step(encoding.blocks[0]) + math.sqrt(1000)
    share = noise_share(PRIVACY, encoding, COHORT)
    variance = share.share_sigma_integer_steps**2
    assert variance == pytest.approx((2.0 * sensitivity) ** 2 / 6 + 4)
    assert share.colluding_sites == 1
    whole, left = (math.sqrt(count * variance) / sensitivity for count in (10, 6))
    assert share.sum_noise_multiplier == pytest.approx(whole)
    assert share.guaranteed_noise_multiplier == pytest.approx(left)


@pytest.mark.parametrize("corrupt", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("sites", [3, 4, 5, 7, 9, 10, 20, 31, 40])
def test_every_sum_that_is_opened_keeps_the_guaranteed_noise(sites: int, corrupt: float) -> None:
    """With one list of survivors; what other lists can do is tried in test_secagg_graph."""
    agreement, _ = consortium(sites, SecureAggregationTerms(largest_corrupt_share=corrupt))
    cohort = secure_cohort(sites, agreement)
    assert cohort.colluding == max(1, int(corrupt * sites + 1e-9))
    share = noise_share(PRIVACY, ring(), cohort)
    for survivors in range(smallest_sum(sites, agreement), sites + 1):
        known = min(cohort.colluding, survivors - 1)
        left = share.sum_noise_multiplier * math.sqrt((survivors - known) / sites)
        assert left >= share.guaranteed_noise_multiplier * (1 - 1e-12) >= PRIVACY.noise_multiplier


@pytest.mark.parametrize(
    ("sites", "expected"),
    [(3, (1, 2)), (5, (1, 2)), (10, (1, 6)), (20, (2, 5)), (40, (4, 4))],
)
def test_how_many_shares_are_sure_to_stay_secret(sites: int, expected: tuple[int, int]) -> None:
    """Of three sites one colludes; of twenty, two lists of survivors can bring it down to five."""
    agreement, _ = consortium(sites, SecureAggregationTerms())
    cohort = secure_cohort(sites, agreement)
    assert (cohort.colluding, cohort.fewest_honest) == expected
    assert cohort.fewest_honest <= smallest_sum(sites, agreement) - cohort.colluding


def test_nobody_is_left_to_trust() -> None:
    with pytest.raises(PrivacyError, match=r"of 4 sites 2 may collude .* ask more sites"):
        noise_share(PRIVACY, ring(), SecureCohort(sites=4, colluding=2, fewest_honest=0))


def test_a_share_below_eight_integers_is_refused() -> None:
    coarse = ring(length=4, clip=0.5 * 1e9)
    with pytest.raises(PrivacyError, match=r"share of the noise is 2\.\d+ integer steps .* agree"):
        noise_share(PRIVACY, coarse, COHORT)
    loud = PRIVACY.model_copy(update={"noise_multiplier": 10.0})
    assert noise_share(loud, coarse, COHORT).share_sigma_integer_steps > 8


def test_a_ring_without_room_for_the_noise_is_refused() -> None:
    full = ring(clip=0.5)  # a site counts for one patient
    with pytest.raises(PrivacyError, match=r"has room for .* a larger largest_weight"):
        noise_share(PRIVACY, full, COHORT)
    few = PRIVACY.model_copy(update={"expected_patients": 10})
    with pytest.raises(PrivacyError, match="has room for"):
        noise_share(few, full, COHORT)
    assert noise_share(PRIVACY, ring(clip=0.5 * 1000), COHORT).share_sigma_integer_steps > 8


def test_noise_in_a_ring_with_room_wraps_nothing() -> None:
    """Sixteen bits, the worst sum of N patients, and noise eight standard deviations out."""
    encoding = ring(clip=0.5 * 1000, ring_bits=16)
    share = noise_share(PRIVACY, encoding, COHORT)
    worst = 1000 * 0.5 / encoding.step(encoding.blocks[0]) + 10
    assert worst + 8 * share.share_sigma_integer_steps * math.sqrt(10) < 2**15


def test_events_of_shares_name_what_no_ledger_can_hold() -> None:
    step = SharedNoiseStep(2.0, 1, 1.0, 7.0)
    with pytest.raises(PrivacyError, match=f"round {COMMON['round_number']} of 'run-7' asks for"):
        model_update("0f" * 32, "run-7", 3, step)
