"""Public keys that cannot be a site's, against exact arithmetic on the curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.secagg.ed25519 import _ORDER_8, _SMALL_ORDER, key_fault
from fedhash.secagg.identity import SiteIdentity, verify_signature

# RFC 8032, section 5.1: p, d, and the order of the points without a small part
P = 2**255 - 19
D = 37095705934669439343138083508754565189542113879843219016388785533085940283555
L = 2**252 + 27742317777372353535851937790883648493
NEUTRAL = (0, 1)
Point = tuple[int, int]


def points(y: int) -> set[Point]:
    """The points of this height: two, one or none. The root is that of RFC 8032, 5.1.3."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return {(root, y), (-root % P, y)} if root * root % P == square else set()


def add(one: Point, other: Point) -> Point:
    (a, b), (c, d) = one, other
    part = D * a * b * c * d % P
    x = (a * d + b * c) * pow(1 + part, -1, P)
    return x % P, (b * d + a * c) * pow(1 - part, -1, P) % P


def times(factor: int, point: Point) -> Point:
    result = NEUTRAL
    for bit in f"{factor:b}":
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def encoded(y: int, negative: int = 0) -> bytes:
    return (y | negative << 255).to_bytes(32, "little")


def test_the_listed_heights_are_those_of_all_points_of_small_order() -> None:
    (point, _) = sorted(points(_ORDER_8))
    multiples = {times(factor, point) for factor in range(8)}
    assert len(multiples) == 8, "a point of order 8: its multiples are all points of small order"
    assert times(8, point) == NEUTRAL
    assert {y for _, y in multiples} == _SMALL_ORDER


@pytest.mark.parametrize("negative", [0, 1])
@pytest.mark.parametrize("y", sorted(_SMALL_ORDER))
def test_keys_of_small_order_are_told(y: int, negative: int) -> None:
    assert "small order" in str(key_fault(encoded(y, negative)))


@pytest.mark.parametrize("negative", [0, 1])
def test_no_number_is_written_in_two_ways(negative: int) -> None:
    for y in range(P, 2**255):
        assert key_fault(encoded(y, negative)) == "is not written as RFC 8032 writes points"


@given(st.binary())
def test_under_a_key_of_small_order_one_signature_fits_every_message(message: bytes) -> None:
    verify_signature(encoded(1).hex(), encoded(1) + bytes(32), message)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_has_no_fault_only_if_it_is_a_point(key: bytes) -> None:
    y = int.from_bytes(key, "little") % 2**255
    expected = y < P and y not in _SMALL_ORDER and bool(points(y))
    assert (key_fault(key) is None) == expected


@given(st.binary(min_size=32, max_size=32))
def test_every_site_s_key_is_a_point_of_the_large_order(seed: bytes) -> None:
    key = bytes.fromhex(SiteIdentity.from_seed(seed).public_hex)
    assert key_fault(key) is None
    for point in points(int.from_bytes(key, "little") % 2**255):
        assert times(L, point) == NEUTRAL
