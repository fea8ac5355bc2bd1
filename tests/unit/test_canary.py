from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedhash.errors import PrivacyError
from fedhash.evaluation import canary, canary_shared_noise
from fedhash.evaluation.canary import (
    CanaryAudit,
    NoNoise,
    audit_mechanism,
    audit_site_dp_sgd,
    epsilon_lower_bound,
    guessing_p_value,
    releases_of,
)
from fedhash.evaluation.canary_shared_noise import audit_shared_noise
from fedhash.learning.gradients import NoPrivacy
from fedhash.learning.loss import Loss, Margins
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy import distributed, dp_sgd
from fedhash.privacy.accountant import epsilon_after, smallest_noise_multiplier
from fedhash.privacy.dp_sgd import SiteDpSgd, clipped_sum
from fedhash.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise
from fedhash.privacy.public_count import published_patients
from fedhash.privacy.settings import DistributedPrivacySettings, SitePrivacySettings
from fedhash_sim.cli import app

DELTA = 1e-5


def of_theorem(m: int, r: int, v: int, accuracy: Fraction, delta: Fraction) -> float:
    """Theorem 3.1 word for word, in exact fractions: f by summation, i over all of 1..m."""

    def f(least: int) -> Fraction:
        return sum(
            (
                math.comb(r, k) * accuracy**k * (1 - accuracy) ** (r - k)
                for k in range(max(0, least), r + 1)
            ),
            Fraction(0),
        )

    steepest = max((f(v - i) - f(v)) / i for i in range(1, m + 1))
    return float(min(Fraction(1), f(v) + 2 * m * delta * steepest))


@given(
    data=st.data(),
    canaries=st.integers(1, 30),
    accuracy=st.fractions(Fraction(1, 2), Fraction(99, 100), max_denominator=100),
    delta=st.fractions(0, Fraction(1, 10), max_denominator=1000),
)
def test_the_p_value_is_that_of_the_theorem(
    data: st.DataObject, canaries: int, accuracy: Fraction, delta: Fraction
) -> None:
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(0, guesses))
    epsilon = math.log(accuracy / (1 - accuracy))
    found = guessing_p_value(canaries, guesses, right, epsilon, float(delta))
    expected = of_theorem(canaries, guesses, right, accuracy, delta)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_simple_p_values() -> None:
    # delta 0: the tail of a binomial; a coin's guesser is right ten times of ten in 2^-10
    assert guessing_p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
    assert guessing_p_value(50, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
    assert guessing_p_value(10, 2, 1, math.log(3), 0.0) == pytest.approx(1 - 1 / 16)
    assert guessing_p_value(10, 0, 0, 1.0, 0.1) == 1.0
    # one guess: f(1) = q, and f(0) - f(1) = 1 - q at the step 1
    assert guessing_p_value(4, 1, 1, math.log(3), 0.01) == pytest.approx(0.75 + 8 * 0.01 * 0.25)


@given(
    data=st.data(),
    canaries=st.integers(1, 400),
    delta=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]),
    error=st.sampled_from([0.05, 0.01]),
)
def test_the_bound_is_the_first_epsilon_that_is_not_refuted(
    data: st.DataObject, canaries: int, delta: float, error: float
) -> None:
    """So a true claim is below the bound only if it is itself refuted: the error is kept."""
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(guesses // 2, guesses))
    bound = epsilon_lower_bound(canaries, guesses, right, delta, error)
    for epsilon in np.linspace(0, bound, 25) if bound else ():
        assert guessing_p_value(canaries, guesses, right, float(epsilon), delta) < error
    for epsilon in np.linspace(bound + 2e-6, bound + 5, 25):
        assert guessing_p_value(canaries, guesses, right, float(epsilon), delta) >= error


def test_simple_bounds() -> None:
    # all r of r right at delta 0: q^r = error
    accuracy = 0.05 ** (1 / 100)
    assert epsilon_lower_bound(100, 100, 100, 0.0, 0.05) == pytest.approx(
        math.log(accuracy / (1 - accuracy)), abs=2e-6
    )
    assert epsilon_lower_bound(100, 100, 50, 0.0, 0.05) == 0
    assert epsilon_lower_bound(100, 0, 0, 0.0, 0.05) == 0
    assert epsilon_lower_bound(1000, 100, 100, 1e-3, 0.05) < epsilon_lower_bound(
        1000, 100, 100, 1e-6, 0.05
    )


def test_impossible_numbers_are_told() -> None:
    with pytest.raises(PrivacyError, match="3 right ones of 2 guesses about 5 canaries"):
        guessing_p_value(5, 2, 3, 1.0, 0.0)
    with pytest.raises(PrivacyError, match=r"epsilon -1\.0 and delta 0\.0 were given"):
        guessing_p_value(5, 2, 1, -1.0, 0.0)
    with pytest.raises(PrivacyError, match="99 canaries were asked for, expected 100 to 5000"):
        audit_site_dp_sgd(private(1.0), steps=1, delta=DELTA, canaries=99)
    with pytest.raises(PrivacyError, match=r"clip_norm is 2\.0, expected at most 1"):
        audit_site_dp_sgd(private(1.0, clip=2.0), steps=1, delta=DELTA)


def private(sigma: float, rate: float = 1.0, clip: float = 1.0) -> SitePrivacySettings:
    return SitePrivacySettings(
        mode="site", clip_norm=clip, noise_multiplier=sigma, sampling_rate=rate
    )


def small_audit(sigma: float, rate: float = 1.0, noise: NoiseSource | None = None) -> CanaryAudit:
    return audit_site_dp_sgd(
        private(sigma, rate), steps=5, delta=DELTA, canaries=400, patients=30, noise=noise
    )


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_sound_run_is_not_refuted_and_something_is_told(rate: float) -> None:
    found = small_audit(1.0, rate)
    claimed = epsilon_after((), noise_multiplier=1.0, sampling_rate=rate, steps=5, delta=DELTA)
    assert found.claimed_epsilon == claimed
    assert 0.5 < found.best.epsilon <= found.ceiling < claimed
    assert found.holds
    assert [each.guesses for each in found.tried] == [50, 100, 200]
    assert small_audit(1.0, rate, SecureNoise()).holds
    # with so much noise, the coins are all that is left
    assert small_audit(1000.0, rate).best.epsilon < 0.3


@pytest.mark.parametrize("unformed", [True, False])
def test_both_ways_of_clipping_give_the_same_audit(
    unformed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small_audit(1.0, 0.5)
    monkeypatch.setattr(dp_sgd, "_pays_unformed", lambda _: unformed)
    found = small_audit(1.0, 0.5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.holds


def test_the_score_of_a_canary_is_what_its_steps_put_in() -> None:
    """Without noise and with all patients: C a step where it took part, nothing elsewhere."""
    found = small_audit(1.0, noise=NoNoise(0, "samples"))
    assert math.isinf(found.claimed_epsilon)
    divisor = published_patients(int(found.taken.sum()) + 30)
    expected = np.where(found.taken, 5 * 0.999 / divisor, 0.0)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)


def test_a_run_without_noise_gives_all_that_the_audit_can_show() -> None:
    found = small_audit(1.0, noise=NoNoise(0, "samples"))
    assert all(each.right == each.guesses for each in found.tried)
    assert found.best.epsilon == found.ceiling > 3.5
    assert found.holds
    assert found.as_json()["claimed_epsilon"] is None


class TenthOfTheNoise(SimulatedNoise):
    """A fault: ten times less than was claimed."""

    def gaussians(self, count: int) -> np.ndarray:
        return super().gaussians(count) / 10


def test_a_tenth_of_the_claimed_noise_is_refuted() -> None:
    found = small_audit(10.0, noise=TenthOfTheNoise(0, "noise"))
    assert found.claimed_epsilon < 1
    assert found.best.epsilon > 1.5
    assert not found.holds
    assert small_audit(10.0).holds


def test_a_sum_without_clipping_is_refuted() -> None:
    """Noise of the claimed size on gradients that nobody clipped; any gradient source will do."""
    noise = SimulatedNoise(0, "noise")
    plain = releases_of(NoPrivacy(), steps=20, learning_rate=1e-3, seed=0)

    def unclipped(
        model: HashModel, studies: PreparedStudies, loss: Loss, margins: Margins
    ) -> Iterator[np.ndarray]:
        for gradient in plain(model, studies, loss, margins):
            noised = 32 * gradient + 6 * noise.gaussians(len(gradient))  # 32 patients a batch
            yield noised.astype(np.float32)

    found = audit_mechanism(
        unclipped,
        lambda: epsilon_after((), noise_multiplier=6.0, sampling_rate=1.0, steps=20, delta=DELTA),
        delta=DELTA,
        canaries=400,
        patients=10,
        seed=0,
    )
    assert found.best.epsilon > found.claimed_epsilon
    assert not found.holds


def test_directions_are_those_of_opacus_and_clipping_leaves_canaries_at_c() -> None:
    rng = np.random.default_rng(0)
    birds = canary._canaries(100, rng).select(range(0, 200, 2))
    model = canary._model(100)
    layout = Layout.of(model)
    layout.load(model, 0.01 * rng.normal(size=layout.size).astype(np.float32))
    agreement = canary.Agreement(
        name="audit", findings=canary._FINDINGS, code_bits=16, modalities=("image",)
    )
    loss = canary.AnchorMarginLoss(canary.Anchors.build(agreement), canary.LossSettings())
    released = rng.normal(size=layout.size)
    directions = []
    for row in range(5):
        gradient = clipped_sum(model, birds.select([row]), loss, canary._MARGINS, 1.0)
        assert np.linalg.norm(gradient) == pytest.approx(0.999, rel=1e-4)
        directions.append(gradient / np.linalg.norm(gradient))
    products = np.array(directions) @ np.array(directions).T
    np.testing.assert_allclose(products, np.eye(5), atol=1e-6)
    found = canary._alignment(model, birds, loss, torch.from_numpy(released.astype(np.float32)))
    np.testing.assert_allclose(found[:5], np.array(directions) @ released, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_audit_and_another_one_others() -> None:
    one, two = (small_audit(1.0) for _ in range(2))
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.taken, two.taken)
    other = audit_site_dp_sgd(private(1.0), steps=5, delta=DELTA, canaries=400, patients=30, seed=1)
    assert (other.taken != one.taken).any()
    assert 0.4 < one.taken.mean() < 0.6


def test_the_guesser_knows_no_coin() -> None:
    """Scores of a mechanism that ignores its patients are as good as none."""

    def deaf(
        model: HashModel, studies: PreparedStudies, loss: Loss, margins: Margins
    ) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(10):
            yield rng.normal(size=Layout.of(model).size).astype(np.float32)

    found = audit_mechanism(deaf, lambda: 0.0, delta=DELTA, canaries=1000, patients=0, seed=4)
    assert found.best.epsilon == 0
    assert found.holds


ARGUMENTS = [
    *("audit", "canary", "--canaries", "200", "--patients", "20"),
    *("--steps", "3", "--sampling-rate", "1"),
]


def test_the_command_tells_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "canary.png"
    done = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(plot)])
    assert done.exit_code == 0, done.output
    assert "claimed epsilon" in done.stdout
    assert "not refuted" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    told = json.loads(CliRunner().invoke(app, [*ARGUMENTS, "--json"]).stdout)
    assert told["canaries"] == 200
    assert told["epsilon_lower_bound"] <= told["ceiling"]
    assert told["claimed_epsilon"] == pytest.approx(
        epsilon_after((), noise_multiplier=1.6, sampling_rate=1.0, steps=3, delta=DELTA)
    )
    done = CliRunner().invoke(app, [*ARGUMENTS, "--noise-multiplier", "0"])
    assert done.exit_code == 0, done.output
    assert "none, there is no noise" in done.stdout


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("--noise-multiplier", "1e-7"), "1e-07 is below the smallest that a round may have"),
        (("--noise-multiplier", "0", "--shared-by", "5"), "shares of no noise are no discrete"),
    ],
)
def test_noise_that_no_round_can_have_is_refused(given: tuple[str, ...], problem: str) -> None:
    done = CliRunner().invoke(app, [*ARGUMENTS, *given])
    assert done.exit_code == 2
    assert problem in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())


@pytest.mark.parametrize("option", ["--noise-multiplier", "--sampling-rate", "--clip-norm"])
def test_the_command_refuses_what_is_no_number(option: str) -> None:
    done = CliRunner().invoke(app, [*ARGUMENTS, option, "nan"], catch_exceptions=False)
    assert done.exit_code == 1
    assert f"{option} is no number; give one" in done.stderr


def test_the_command_fails_where_the_claim_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(SiteDpSgd):
        def __init__(self, settings: SitePrivacySettings, _: object, reserve: object) -> None:
            super().__init__(settings, TenthOfTheNoise(0, "noise"), reserve)  # type: ignore[arg-type]

    monkeypatch.setattr(canary, "SiteDpSgd", Faulty)
    done = CliRunner().invoke(app, [*ARGUMENTS, "--noise-multiplier", "10", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["epsilon_lower_bound"] > told["claimed_epsilon"]
    assert not told["holds"]
    assert "The run leaks more than it claims" in done.stderr


def shared(noise_multiplier: float) -> DistributedPrivacySettings:
    return DistributedPrivacySettings(
        mode="distributed",
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        expected_patients=1000,
    )


def test_noise_that_sites_share_keeps_its_claim_and_is_seen_by_canaries() -> None:
    sigma = smallest_noise_multiplier(8.0, 1e-5, steps=10)
    found = audit_shared_noise(shared(sigma), steps=10, delta=1e-5, canaries=1000, patients=50)
    assert found.claimed_epsilon == pytest.approx(8.0, rel=2e-3)
    assert 1.0 < found.best.epsilon < found.claimed_epsilon
    assert found.holds


def test_shares_that_are_too_small_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all sites but this one kept their share to themselves, and it a tenth of its own."""
    monkeypatch.setattr(
        canary_shared_noise,
        "discrete_gaussians",
        lambda source, sigma, count: np.zeros(count, np.int64),
    )
    own = distributed.discrete_gaussians
    monkeypatch.setattr(distributed, "discrete_gaussians", lambda n, s, c: own(n, s / 10, c))
    sigma = smallest_noise_multiplier(1.0, 1e-5, steps=10)
    found = audit_shared_noise(shared(sigma), steps=10, delta=1e-5, canaries=1000, patients=50)
    assert not found.holds
