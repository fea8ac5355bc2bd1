from __future__ import annotations

from pathlib import Path

import pytest
from small_federation import AGREEMENT, SECURE_AGREEMENT, round_settings

from fedhash.configuration import read_settings
from fedhash.errors import ConfigurationError
from fedhash.learning.settings import LossSettings
from fedhash.privacy.settings import NoPrivacySettings, SitePrivacySettings
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


PRIVATE = SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.5)


def test_a_private_round_has_no_problems() -> None:
    assert check_round(round_settings(privacy=PRIVATE, weighting="uniform"), AGREEMENT) == []


@pytest.mark.parametrize(
    ("settings", "key", "problem"),
    [
        (round_settings(privacy=PRIVATE), "weighting", "set weighting: uniform"),
        (
            round_settings(
                privacy=PRIVATE,
                weighting="uniform",
                learning={"local_steps": None, "local_epochs": 1},
            ),
            "learning.local_epochs",
            "set local_steps and local_epochs: null",
        ),
        (
            round_settings(
                privacy=PRIVATE, weighting="uniform", learning={"gradient_clip_norm": 2.0}
            ),
            "learning.gradient_clip_norm",
            "privacy.clip_norm clips each patient",
        ),
        (
            round_settings(
                privacy=PRIVATE, weighting="uniform", loss=LossSettings(name="contrastive")
            ),
            "loss.name",
            "use a sum of patient terms: anchor_margin",
        ),
    ],
)
def test_what_breaks_privacy_is_told_with_the_remedy(
    settings: RoundSettings, key: str, problem: str
) -> None:
    ((found, message),) = check_round(settings, AGREEMENT)
    assert ".".join(map(str, found)) == key
    assert problem in message
    without = settings.model_copy(update={"privacy": NoPrivacySettings()})
    assert check_round(without, AGREEMENT) == []


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{mode: site}", "privacy.*clip_norm"),
        ("{mode: global}", "global"),
        ("{mode: none, clip_norm: 1.0}", "clip_norm"),
        ("{mode: site, clip_norm: 0.0, noise_multiplier: 1.0, sampling_rate: 0.1}", "clip_norm"),
        ("{mode: site, clip_norm: 1.0, noise_multiplier: 1.0, sampling_rate: 1.5}", "sampling_r"),
    ],
)
def test_a_wrong_privacy_section_is_told_with_its_line(
    section: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(
        "model: {towers: {report: {name: report_ngrams}}}\n"
        f"learning: {{}}\nrounds: 3\nprivacy: {section}\n"
    )
    with pytest.raises(ConfigurationError, match=rf"round\.yaml:4: .*{problem}"):
        read_settings(path, RoundSettings)
