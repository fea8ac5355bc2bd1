from __future__ import annotations

import pytest
from small_federation import AGREEMENT, round_settings

from fedhash.learning.settings import LossSettings
from fedhash.rounds.settings import RoundSettings, check_round


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
