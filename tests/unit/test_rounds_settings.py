from __future__ import annotations

from pathlib import Path

import pytest
from privacy_events import full_batch, poisson
from small_federation import AGREEMENT, SECURE_AGREEMENT, round_settings

from fedhash.configuration import KeyPath, read_settings
from fedhash.errors import ConfigurationError
from fedhash.learning.losses import LOSSES, PRIVATE_LOSSES
from fedhash.learning.settings import LossName, LossSettings
from fedhash.models.settings import TowerSettings
from fedhash.privacy import AgreedPrivacy, epsilon
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.settings import NoPrivacySettings, SitePrivacySettings
from fedhash.rounds.settings import (
    RoundSettings,
    check_roster,
    check_round,
    private_steps,
    starting_margins,
)
from fedhash.secagg.terms import SecureAggregationTerms

WITH_IMAGES = AGREEMENT.model_copy(update={"modalities": ("image", "report")})


def with_head(settings: RoundSettings, name: LossName) -> RoundSettings:
    """The settings with a loss, and the head or the second tower that it needs."""
    head = "prototypes" if name == "learned_prototypes" else "sign"
    towers = dict(settings.model.towers)
    if name == "contrastive":
        towers["image"] = TowerSettings(name="image_hog")
    model = settings.model.model_copy(update={"head": head, "towers": towers})
    return settings.model_copy(update={"loss": LossSettings(name=name), "model": model})


def test_a_loss_of_pairs_needs_a_second_tower() -> None:
    alone = round_settings(loss=LossSettings(name="contrastive"))
    ((key, message),) = check_round(alone, AGREEMENT)
    assert key == ("loss", "name")
    assert "pairs modalities, and model.towers has only report; add a tower" in message
    assert check_round(with_head(alone, "contrastive"), WITH_IMAGES) == []


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
    for weighting in ("uniform", "rounded_patients"):
        assert check_round(round_settings(privacy=PRIVATE, weighting=weighting), AGREEMENT) == []


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
            round_settings(privacy=PRIVATE, weighting="uniform", loss=LossSettings(name="supcon")),
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


@pytest.mark.parametrize("name", LOSSES)
def test_private_rounds_take_sums_of_patient_terms_alone(name: LossName) -> None:
    settings = with_head(round_settings(privacy=PRIVATE, weighting="uniform"), name)
    found = [key for key, _ in check_round(settings, WITH_IMAGES)]
    assert found == ([] if name in PRIVATE_LOSSES else [("loss", "name")])


@pytest.mark.parametrize("name", LOSSES)
def test_the_range_of_margins_is_for_losses_that_have_them(name: LossName) -> None:
    wide = WITH_IMAGES.model_copy(update={"margin_range": (0.4, 0.5)})
    settings = with_head(round_settings(), name)
    found = [message for _, message in check_round(settings, wide)]
    default = {"anchor_margin": 0.3, "orthohash": 0.2}.get(name)
    refused = f"loss.margin is {default}, the agreement's margin_range is 0.4 to 0.5"
    assert found == ([] if default is None else [refused])
    margins = starting_margins(settings.loss, wide)
    assert margins.mu.tolist() == pytest.approx([0.4 if default is None else default] * 3)
    assert margins.w.tolist() == [1, 1, 1]


def test_a_private_round_needs_the_agreement_s_cap_and_delta() -> None:
    without = AGREEMENT.model_copy(update={"privacy": None})
    ((key, message),) = check_round(round_settings(privacy=PRIVATE, weighting="uniform"), without)
    assert key == ("privacy", "mode")
    assert message.startswith("privacy.mode is site, and the agreement has no section privacy")
    assert check_round(round_settings(), without) == []


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_run_that_the_cap_would_end_is_told_before(rate: float) -> None:
    privacy = PRIVATE.model_copy(update={"sampling_rate": rate})
    steps = [poisson(1.1, rate, 2) if rate < 1 else full_batch(1.1, 2)]
    delta = 1e-6
    fits = AgreedPrivacy(epsilon_cap=epsilon(steps * 4, delta), delta=delta)
    agreement = AGREEMENT.model_copy(update={"privacy": fits})

    def problems(rounds: int) -> list[tuple[KeyPath, str]]:
        settings = round_settings(privacy=privacy, weighting="uniform", rounds=rounds)
        return check_round(settings, agreement)

    assert problems(rounds=4) == []
    ((key, message),) = problems(rounds=5)
    assert key == ("privacy", "noise_multiplier")
    assert f"5 rounds of 2 steps come to epsilon {epsilon(steps * 5, delta):.4g}" in message
    assert len(problems(rounds=100_000)) == 1


def test_a_round_s_private_steps() -> None:
    private = round_settings(privacy=PRIVATE)
    assert private_steps(private) == PrivateSteps(1.1, 0.5, 2)
    assert private_steps(round_settings()) is None
    epochs = round_settings(privacy=PRIVATE, learning={"local_steps": None, "local_epochs": 1})
    assert private_steps(epochs) is None


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
