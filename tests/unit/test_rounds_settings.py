from __future__ import annotations

import pytest
from small_federation import AGREEMENT, SECURE_AGREEMENT, round_settings

from fedhash.learning.settings import LossSettings
from fedhash.rounds.settings import RoundSettings, check_roster, check_round
from fedhash.secagg.terms import SecureAggregationTerms


def test_a_round_within_the_agreement_has_no_problems() -> None:
    assert check_round(round_settings(), AGREEMENT) == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (round_settings(loss=LossSettings(margin=0.7)), "loss.margin is 0.7, the agreement's"),
        (round_settings(learning={"local_steps": 51}), "learning.local_steps is 51"),
    ],
)
def test_what_every_site_would_refuse_is_told_before(settings: RoundSettings, problem: str) -> None:
    ((key, message),) = check_round(settings, AGREEMENT)
    assert problem.startswith(".".join(map(str, key)))
    assert message.startswith(problem)


def test_a_tower_for_a_modality_outside_the_agreement_is_a_problem() -> None:
    agreement = AGREEMENT.model_copy(update={"modalities": ("image", "signal")})
    assert check_round(round_settings(), agreement) == [
        (
            ("model", "towers", "report"),
            "model.towers has 'report', the agreement's modalities are image, signal",
        )
    ]


def test_a_roster_that_no_round_can_have_is_told_before() -> None:
    plain, secure = round_settings(), round_settings(aggregation="secure")
    assert check_roster(plain, AGREEMENT, 1) == (
        "1 sites are fewer than the agreement's smallest_cohort, 2: no round could be finished; "
        "enrol more sites"
    )
    assert check_roster(plain, AGREEMENT, 1000) is None
    assert check_roster(secure, SECURE_AGREEMENT, 3) is None
    assert str(check_roster(secure, SECURE_AGREEMENT, 1000)).startswith("no graph of 1000 sites")
    terms = SecureAggregationTerms(largest_corrupt_share=0.2, largest_dropout_share=0.3)
    unsteady = SECURE_AGREEMENT.model_copy(update={"secure_aggregation": terms})
    assert check_roster(secure, unsteady, 3) is None
    assert str(check_roster(secure, unsteady, 4)).startswith("no graph of 4 sites")
