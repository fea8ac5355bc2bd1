"""Shamir's sharing: the field of FIPS 197, shares worked by hand, and what too few shares tell."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import ProtocolError
from fedhash.secagg.shamir import _INVERSE, _PRODUCT, combine, split


def product(a: int, b: int) -> int:
    """Multiply the polynomials, then divide by x^8 + x^4 + x^3 + x + 1 (FIPS 197, 4.2)."""
    whole = 0
    for bit in range(8):
        if b >> bit & 1:
            whole ^= a << bit
    for bit in range(14, 7, -1):
        if whole >> bit & 1:
            whole ^= 0x11B << (bit - 8)
    return whole


def fix_coefficients(patch: pytest.MonkeyPatch, coefficients: bytes) -> None:
    """From the highest power down, for all bytes of the secret at a time."""

    def fixed(count: int) -> bytes:
        assert count == len(coefficients)
        return coefficients

    patch.setattr(os, "urandom", fixed)


def test_products_of_fips_197():
    assert _PRODUCT[0x57, 0x83] == 0xC1  # 4.2
    powers = [_PRODUCT[0x57, x] for x in (0x02, 0x04, 0x08, 0x10, 0x13)]  # 4.2.1
    assert powers == [0xAE, 0x47, 0x8E, 0x07, 0xFE]


def test_all_products_and_inverses():
    expected = [[product(a, b) for b in range(256)] for a in range(256)]
    assert (expected == _PRODUCT).all()
    assert all(product(a, int(_INVERSE[a])) == 1 for a in range(1, 256))


def test_a_line_worked_by_hand(monkeypatch: pytest.MonkeyPatch):
    """57 + 83 x: 83 x 2 = 1d and 83 x 3 = 9e."""
    fix_coefficients(monkeypatch, b"\x83")
    shares = split(b"\x57", threshold=2, points=3)
    assert shares.tolist() == [[0xD4], [0x4A], [0xC9]]


def test_two_parabolas_worked_by_hand(monkeypatch: pytest.MonkeyPatch):
    """01 + 02 x + 03 x^2 and 57 + 00 x + 01 x^2."""
    fix_coefficients(monkeypatch, bytes([0x03, 0x01, 0x02, 0x00]))
    shares = split(b"\x01\x57", threshold=3, points=4)
    assert shares.tolist() == [[0x00, 0x56], [0x09, 0x53], [0x08, 0x52], [0x39, 0x47]]
    assert combine([4, 1, 3], shares[[3, 0, 2]]) == b"\x01\x57"


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, int, list[int]]:
    points = draw(st.integers(1, 255))
    threshold = draw(st.integers(1, min(points, 60)))
    chosen = draw(
        st.lists(
            st.integers(1, points),
            unique=True,
            min_size=threshold,
            max_size=min(points, threshold + 3),
        )
    )
    return draw(st.binary(max_size=40)), threshold, points, chosen


@given(sharings())
def test_any_threshold_of_shares_in_any_order_give_the_secret(
    drawn: tuple[bytes, int, int, list[int]],
):
    secret, threshold, points, chosen = drawn
    shares = split(secret, threshold, points)
    assert shares.shape == (points, len(secret))
    assert combine(chosen, shares[[point - 1 for point in chosen]]) == secret


def test_every_choice_of_three_of_six():
    secret = os.urandom(32)
    shares = split(secret, 3, 6)
    for chosen in itertools.permutations(range(1, 7), 3):
        assert combine(chosen, shares[[point - 1 for point in chosen]]) == secret


@pytest.mark.parametrize("secret", [0x00, 0x01, 0xA7])
def test_two_shares_of_three_are_alike_for_all_secrets(
    secret: int, monkeypatch: pytest.MonkeyPatch
):
    """Over all 65,536 polynomials each pair of values of two shares appears exactly once."""
    slope, curve = np.divmod(np.arange(1 << 16), 256)
    fix_coefficients(monkeypatch, np.concatenate([curve, slope]).astype(np.uint8).tobytes())
    shares = split(bytes([secret]) * (1 << 16), threshold=3, points=4).astype(np.int64)
    for one, other in itertools.combinations(range(4), 2):
        pairs = np.bincount(256 * shares[one] + shares[other], minlength=1 << 16)
        assert (pairs == 1).all()


def test_coefficients_are_drawn_anew():
    secret = bytes(32)
    assert (split(secret, 2, 3) != split(secret, 2, 3)).any()
    assert split(secret, 2, 3)[0].any()


def test_too_few_shares_or_a_changed_one_give_other_bytes(monkeypatch: pytest.MonkeyPatch):
    secret = bytes(range(32))
    fix_coefficients(monkeypatch, bytes(range(1, 65)))
    shares = split(secret, 3, 5)
    assert combine([1, 2, 3], shares[:3]) == secret
    assert combine([1, 2], shares[:2]) != secret
    assert combine([1, 2, 4], shares[:3]) != secret
    changed = shares.copy()
    changed[1, 7] ^= 0x10
    assert combine([1, 2, 3], changed[:3]) != secret


@pytest.mark.parametrize(("threshold", "points"), [(0, 3), (4, 3), (-1, 3), (1, 0), (3, 256)])
def test_a_sharing_that_cannot_be_is_refused(threshold: int, points: int):
    with pytest.raises(ProtocolError, match=f"{points} shares with threshold {threshold} cannot"):
        split(bytes(32), threshold, points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([1, 2, 1], "no point twice"),
        ([1, 2], "one share for each point"),
        ([1, 2, 3, 4], "one share for each point"),
        ([], "at least one"),
        ([1, 0, 2], "expected points from 1 to 255"),
        ([1, 256, 2], "expected points from 1 to 255"),
        ([1, -1, 2], "expected points from 1 to 255"),
    ],
)
def test_points_that_cannot_be_are_refused(points: list[int], message: str):
    shares = split(bytes(32), 3, 3)
    with pytest.raises(ProtocolError, match=message):
        combine(points, shares)


def test_no_shares_at_all_are_refused():
    with pytest.raises(ProtocolError, match="at least one"):
        combine([], np.zeros((0, 32), np.uint8))
