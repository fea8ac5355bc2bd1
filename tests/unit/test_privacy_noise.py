"""Noise: its distribution, against a scalar reference, and that no draw repeats another.

Statistical checks compare with thresholds that sound noise passes but for one run in 10^9, and
each is shown to notice noise that is slightly wrong.
"""

from __future__ import annotations

import math
import os
import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, kstest, norm

from fedhash.privacy import noise as noise_module
from fedhash.privacy.noise import (
    NoiseSource,
    SecureNoise,
    SimulatedNoise,
    gaussians_of,
    one_of_each,
    poisson_sample,
    uniforms_of,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
COUNT = 1 << 19
FALSE_ALARM = 1e-9
SOURCES = [SecureNoise(), SimulatedNoise(7, "test")]
LIMIT = norm.isf(FALSE_ALARM / 2)


def stream(key: bytes, count: int) -> list[int]:
    data = Cipher(AES256(key), GCM(bytes(12))).encryptor().update(bytes(8 * count))
    return list(struct.unpack(f"={count}Q", data))


def gaussians_by_hand(key: bytes, count: int) -> list[float]:
    """One chunk: radii first, then angles, four of each a pair."""
    pairs = math.ceil(count / 2)
    words = [word >> 11 for word in stream(key, 8 * pairs)]
    cosines, sines = [], []
    for pair in range(pairs):
        normals = []
        for draw in range(4):
            radius_word = words[draw * pairs + pair]
            angle_word = words[(4 + draw) * pairs + pair]
            radius = math.sqrt(-2 * math.log((2**53 - radius_word) / 2**53))
            angle = 2 * math.pi * angle_word / 2**53
            normals.append((radius * math.cos(angle), radius * math.sin(angle)))
        cosines.append(sum(one for one, _ in normals) / 2)
        sines.append(sum(other for _, other in normals) / 2)
    return (cosines + sines)[:count]


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_gaussians_are_half_of_four_box_muller_normals(count: int) -> None:
    np.testing.assert_allclose(gaussians_of(KEY, count), gaussians_by_hand(KEY, count), atol=1e-13)


def test_uniforms_are_the_first_53_bits_of_each_word() -> None:
    assert uniforms_of(KEY, 50).tolist() == [(word >> 11) / 2**53 for word in stream(KEY, 50)]


def test_a_long_draw_goes_on_with_the_stream_chunk_by_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise_module, "_CHUNK_NUMBERS", 16)
    whole = gaussians_of(KEY, 40)
    assert whole[:16].tolist() == gaussians_of(KEY, 16).tolist()
    assert len(set(whole.tolist())) == 40
    used = 0
    for chunk in (whole[:16], whole[16:32], whole[32:]):
        uniforms = np.array(stream(KEY, 160)[used : used + 4 * len(chunk)], np.uint64) >> 11
        radii, angles = (uniforms / 2**53).reshape(2, 4, -1)
        radii = np.sqrt(-2 * np.log(1 - radii))
        by_hand = [(radii * wave(2 * np.pi * angles)).sum(axis=0) / 2 for wave in (np.cos, np.sin)]
        np.testing.assert_allclose(chunk, np.concatenate(by_hand), atol=1e-13)
        used += 4 * len(chunk)


def moment_alarms(draws: np.ndarray) -> list[str]:
    """Which of the first four moments, and of three correlations, are too far off."""
    half = len(draws) // 2
    deviations = {
        "mean": draws.mean() * math.sqrt(len(draws)),
        "variance": (np.mean(draws**2) - 1) * math.sqrt(len(draws) / 2),
        "skew": np.mean(draws**3) * math.sqrt(len(draws) / 15),
        "tails": (np.mean(draws**4) - 3) * math.sqrt(len(draws) / 96),
        "neighbours": np.mean(draws[1:] * draws[:-1]) * math.sqrt(len(draws) - 1),
        # the two numbers that share their uniforms stand half a chunk apart
        "halves": np.mean(draws[:half] * draws[half:]) * math.sqrt(half),
        "squares": np.mean((draws[:half] ** 2 - 1) * (draws[half:] ** 2 - 1)) * math.sqrt(half) / 2,
    }
    return [name for name, deviation in deviations.items() if abs(deviation) > LIMIT]


@pytest.mark.parametrize("source", SOURCES)
def test_moments_of_the_normal_distribution(source: NoiseSource) -> None:
    draws = source.gaussians(COUNT)
    assert moment_alarms(draws) == []
    chunks = draws.reshape(-1, noise_module._CHUNK_NUMBERS)
    first, second = np.split(chunks, 2, axis=1)
    assert moment_alarms(np.concatenate([first.ravel(), second.ravel()])) == []


def test_the_moments_notice_noise_that_is_a_little_wrong() -> None:
    draws = SimulatedNoise(1).gaussians(COUNT)
    assert "variance" in moment_alarms(draws * 1.01)
    assert "mean" in moment_alarms(draws + 0.01)
    assert "halves" in moment_alarms(np.tile(draws[: COUNT // 2], 2))
    assert "neighbours" in moment_alarms(np.repeat(draws[: COUNT // 2], 2))
    assert "tails" in moment_alarms(np.clip(draws, -2.5, 2.5))


@pytest.mark.parametrize("source", SOURCES)
def test_kolmogorov_and_smirnov_see_a_normal_and_a_uniform(source: NoiseSource) -> None:
    assert kstest(source.gaussians(COUNT), "norm").pvalue > FALSE_ALARM
    assert kstest(source.uniforms(COUNT), "uniform").pvalue > FALSE_ALARM


def test_kolmogorov_and_smirnov_notice_noise_that_is_a_little_wrong() -> None:
    draws = SimulatedNoise(1).gaussians(COUNT)
    assert kstest(draws * 1.03, "norm").pvalue < FALSE_ALARM
    assert kstest(np.round(draws * 8) / 8, "norm").pvalue < FALSE_ALARM


@given(st.binary(min_size=32, max_size=32), st.integers(0, 300))
def test_a_key_decides_its_numbers(key: bytes, count: int) -> None:
    for numbers_of in (gaussians_of, uniforms_of):
        draws = numbers_of(key, count)
        assert draws.tolist() == numbers_of(key, count).tolist()
        assert draws.shape == (count,)
        assert np.isfinite(draws).all()
    other = bytes([key[0] ^ 1]) + key[1:]
    assert not set(gaussians_of(key, count)) & set(gaussians_of(other, count))


@pytest.mark.parametrize("source", SOURCES)
def test_no_draw_repeats_another(source: NoiseSource) -> None:
    for draw in (source.gaussians, source.uniforms):
        assert len(set(np.concatenate([draw(1000) for _ in range(20)]).tolist())) == 20_000


def test_a_simulation_repeats_and_its_streams_differ() -> None:
    def draws(*name: str | int) -> list[float]:
        source = SimulatedNoise(*name)
        return [*source.gaussians(3), *source.uniforms(3), *source.gaussians(3)]

    assert draws(7, "site-1", 2) == draws(7, "site-1", 2)
    streams = [draws(7, "site-1", 2), draws(8, "site-1", 2), draws(7, "site-12"), draws(7)]
    assert len({number for each in streams for number in each}) == 4 * 9


def test_every_secure_draw_asks_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    monkeypatch.setattr(os, "urandom", urandom)
    source = SecureNoise()
    torch.manual_seed(0)
    first, second = source.gaussians(5), source.gaussians(5)
    assert asked == [32, 32]
    assert first.tolist() == gaussians_of(b"\x01" * 32, 5).tolist()
    assert second.tolist() == gaussians_of(b"\x02" * 32, 5).tolist()
    assert SecureNoise.secure
    assert not SimulatedNoise.secure


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rate", [0.003, 0.3, 1.0])
def test_a_poisson_sample_takes_each_place_with_the_rate(source: NoiseSource, rate: float) -> None:
    population, times = 500, 400
    taken = np.zeros(population)
    for _ in range(times):
        sample = poisson_sample(source, population, rate)
        assert (np.diff(sample) > 0).all()
        taken[sample] += 1
    total = binom(population * times, rate)
    assert total.ppf(FALSE_ALARM / 2) <= taken.sum() <= total.isf(FALSE_ALARM / 2)
    each = binom(times, rate)
    share = FALSE_ALARM / population
    assert (taken <= each.isf(share)).all()
    assert (taken >= each.ppf(share)).all()


def test_one_of_each_is_uniform_within_its_list() -> None:
    sizes = np.tile(np.array([1, 2, 5]), 20_000)
    places = one_of_each(SimulatedNoise(3), sizes).reshape(-1, 3)
    assert not places[:, 0].any()
    for column, size in ((1, 2), (2, 5)):
        counts = np.bincount(places[:, column], minlength=size)
        assert len(counts) == size
        expected = binom(len(places), 1 / size)
        assert (counts >= expected.ppf(FALSE_ALARM / size)).all()
        assert (counts <= expected.isf(FALSE_ALARM / size)).all()


def test_a_key_of_another_length_is_refused() -> None:
    for numbers_of in (gaussians_of, uniforms_of):
        with pytest.raises(ValueError, match="Invalid key size"):
            numbers_of(KEY[:16], 3)
