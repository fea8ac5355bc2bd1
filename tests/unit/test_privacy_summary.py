"""What a release states of its patients' privacy is what a ledger of the same steps comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_federation import AGREEMENT, round_settings
from small_releases import release_into

from fedhash.privacy.accountant import epsilon_after
from fedhash.privacy.reservation import margin_release
from fedhash.privacy.settings import DistributedPrivacySettings, SitePrivacySettings
from fedhash.registry import load_release
from fedhash.registry.privacy_summary import PrivacySummary, TrainingPrivacy, summarised
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.settings import RoundSettings

TERMS = AGREEMENT.privacy
PRIVATE = round_settings(
    privacy=SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.5)
)


def of(settings: RoundSettings, before: tuple[TrainingPrivacy, ...] = ()) -> PrivacySummary:
    return summarised(settings, "run", rounds=4, terms=TERMS, before=before)


def after(spent: object = (), **steps: float) -> float:
    assert TERMS is not None
    return epsilon_after(spent, delta=TERMS.delta, **steps)


def test_it_counts_every_step_of_every_round() -> None:
    summary = of(PRIVATE)
    wanted = after(noise_multiplier=2.0, sampling_rate=0.5, steps=8)
    assert summary.epsilon == pytest.approx(wanted)
    assert summary.delta == 1e-5
    assert f"epsilon {wanted:.4g} at delta 1e-05" in summary.in_words()


def test_margin_statistics_and_earlier_runs_add_up() -> None:
    schedule = MarginScheduleSettings(every_rounds=2, noise_multiplier=4.0)
    with_statistics = of(PRIVATE.model_copy(update={"margin_schedule": schedule}))
    releases = [margin_release("0" * 64, "r", 0, 4.0)] * 2
    steps = {"noise_multiplier": 2.0, "sampling_rate": 0.5}
    assert with_statistics.epsilon == pytest.approx(after(releases, steps=8, **steps))
    both = of(PRIVATE, before=with_statistics.trainings)
    assert both.epsilon == pytest.approx(after(releases, steps=16, **steps))
    assert [each.run_id for each in both.trainings] == ["run", "run"]


def test_noise_that_sites_share_says_so() -> None:
    shared = DistributedPrivacySettings(
        mode="distributed", clip_norm=1.0, noise_multiplier=8.0, expected_patients=10
    )
    summary = of(
        round_settings(
            privacy=shared, learning={"local_steps": 1}, aggregation="secure", weighting="uniform"
        )
    )
    wanted = after(noise_multiplier=8.0, sampling_rate=1.0, steps=4)
    assert summary.epsilon == pytest.approx(wanted)
    assert "while no more sites work together" in summary.in_words()


def test_one_training_without_noise_in_the_line_leaves_no_bound() -> None:
    unknown = TrainingPrivacy(run_id="old", mode="unstated")
    for summary in (
        of(round_settings()),
        of(PRIVATE, of(round_settings()).trainings),
        of(PRIVATE, (unknown,)),
    ):
        assert summary.epsilon is None
        assert "may remember patients" in summary.in_words()


def test_a_release_keeps_it_under_its_id(tmp_path: Path) -> None:
    summary = of(PRIVATE)
    release = release_into(tmp_path, 1, privacy=summary)
    assert load_release(tmp_path / release.release_id).privacy == summary
    assert release.describe()["privacy"] == summary.in_words()
    assert release.release_id != release_into(tmp_path, 1).release_id
