"""What a coordinator is told of a run's sums before the first round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_sites import MODEL_SIZE, consortium, plan_of

from fedhash.errors import PrivacyError
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.rounds.training_messages import RunPlan
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.outlook import SumOutlook, sum_outlook
from fedhash.secagg.terms import SecureAggregationTerms


def outlook_of(sites: int, smallest_cohort: int = 3, **terms: object) -> SumOutlook:
    agreement, _ = consortium(sites, SecureAggregationTerms(**terms), smallest_cohort)
    return sum_outlook(plan_of(agreement), MODEL_SIZE, agreement)


def test_shared_noise_is_foretold_or_refused() -> None:
    assert outlook_of(5).shared_noise is None
    agreement, _ = consortium(5, SecureAggregationTerms())
    privacy = DistributedPrivacySettings(
        mode="distributed", clip_norm=1.0, noise_multiplier=3.0, expected_patients=900
    )
    plan = plan_of(agreement)
    changes = {"privacy": privacy, "weighting": "uniform"}
    plan = plan.model_copy(update={"settings": plan.settings.model_copy(update=changes)})
    shared = sum_outlook(plan, MODEL_SIZE, agreement).shared_noise
    assert shared is not None
    assert shared.guaranteed_noise_multiplier == pytest.approx(3.0, rel=1e-6)
    assert shared.sum_noise_multiplier == pytest.approx(3.0 * (5 / 2) ** 0.5, rel=1e-6)
    coarse, _ = consortium(5, SecureAggregationTerms(ring_bits=16))
    with pytest.raises(PrivacyError, match="below 8 shares do not add up to a Gaussian"):
        sum_outlook(plan, MODEL_SIZE, coarse)


@pytest.mark.parametrize(("ring_bits", "weight"), [(16, 31), (24, 1), (32, 1)])
def test_the_rounding_foretold_is_that_of_the_mean(ring_bits: int, weight: int) -> None:
    """Against the mean over sites that all hold the same values, at the smallest weight."""
    agreement, _ = consortium(100, SecureAggregationTerms(ring_bits=ring_bits))
    plan = plan_of(agreement)
    sds = sum_outlook(plan, 4000, agreement).rounding_sd
    assert list(sds) == [weight, 10_000]
    encoding = round_encoding(plan, {"update": 4000}, agreement.secure_aggregation)
    rng = np.random.default_rng(1)
    # half way between two integers, where rounding has its largest variance
    vector = np.full(encoding.length - 2, 0.5 / encoding.fewest_levels, np.float32)
    total = sum(encoding.decode(encoding.encode(vector, 1.0, rng)).vector for _ in range(100))
    found = (total / (100 * weight) - vector)[:4000].std()
    assert found == pytest.approx(sds[weight]["update"], rel=0.05)


@pytest.mark.parametrize(
    ("ring_bits", "sites", "largest_weight", "is_coarse"),
    [
        (32, 40, 10_000, False),
        (24, 50, 10_000, False),  # 16.8 levels
        (24, 53, 10_000, True),  # 15.8
        (16, 3, 10_000, True),
        (16, 3, 600, False),
    ],
)
def test_a_ring_that_leaves_small_sites_few_levels_is_warned_of(
    ring_bits: int, sites: int, largest_weight: float, is_coarse: bool
) -> None:
    warnings = outlook_of(sites, ring_bits=ring_bits, largest_weight=largest_weight).warnings
    assert [each.startswith(f"ring_bits is {ring_bits}: ") for each in warnings] == [
        True
    ] * is_coarse


def test_with_equal_weights_a_narrow_ring_is_fine() -> None:
    agreement, _ = consortium(10, SecureAggregationTerms(ring_bits=16))
    plan = plan_of(agreement)
    uniform = plan.settings.model_copy(update={"weighting": "uniform"})
    outlook = sum_outlook(plan.model_copy(update={"settings": uniform}), MODEL_SIZE, agreement)
    assert list(outlook.rounding_sd) == [1.0]
    assert outlook.warnings == ()


def test_cohorts_without_a_graph_are_warned_of_from_the_smallest_on() -> None:
    shares = {"largest_corrupt_share": 0.2, "largest_dropout_share": 0.3}
    (warning,) = outlook_of(9, **shares).warnings
    assert warning.startswith("no graph joins 4, 5, 7 sites: a round in which just so many")
    (warning,) = outlook_of(9, smallest_cohort=6, **shares).warnings
    assert warning.startswith("no graph joins 7 sites")
    assert outlook_of(9, smallest_cohort=8, **shares).warnings == ()
    (warning,) = outlook_of(99, largest_corrupt_share=0.0, largest_dropout_share=0.33).warnings
    assert " 34, 37 and 20 other numbers of sites: a round" in warning


@given(
    sites=st.integers(1, 1000),
    terms=st.builds(
        SecureAggregationTerms,
        ring_bits=st.sampled_from([16, 20, 24, 32]),
        largest_weight=st.floats(1, 1e15),
        largest_update=st.floats(1e-9, 1e9),
    ),
)
def test_no_agreement_has_too_narrow_a_ring(sites: int, terms: SecureAggregationTerms) -> None:
    plan: RunPlan = plan_of(consortium(3)[0])
    names = tuple(f"site-{number:04}" for number in range(sites))
    encoding = round_encoding(
        plan.model_copy(update={"sites": names}), {"update": MODEL_SIZE}, terms
    )
    assert encoding.largest >= 32
    assert encoding.fewest_levels > 0.999
