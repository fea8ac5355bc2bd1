"""Fixed point: sums decode to the weighted sum, rounding has the right mean, nothing ever wraps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import ProtocolError
from fedhash.secagg import fixed_point
from fedhash.secagg.fixed_point import Block, DecodedSum, FixedPoint
from fedhash.secagg.packing import Words, add_packed, pack, reduced, word_dtype

RING = FixedPoint((Block("update", 3, 1.0),), 32, 2, 100.0)
VECTOR = np.array([0.5, 0.0, -0.25], np.float32)


class Draws(np.random.Generator):
    """Draws one word of 32 bits again and again."""

    def __init__(self, word: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.word = word

    def integers(self, low: int, high: int, size: int, dtype: type) -> np.ndarray:  # type: ignore[override]
        assert (low, high, dtype) == (0, 1 << 64, np.uint64)
        return np.full(size, self.word << 32 | self.word, dtype)


ALWAYS_UP = Draws(2**32 - 1)  # whatever is no integer


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def added(ring: FixedPoint, vectors: list[Words]) -> Words:
    """The sum as the coordinator makes it."""
    total = np.zeros(ring.length, word_dtype(ring.ring_bits))
    for words in vectors:
        add_packed(total, pack(words, ring.ring_bits), ring.ring_bits)
    return total


@st.composite
def scales(draw: st.DrawFn) -> tuple:
    """What a FixedPoint is made of; beartype draws random numbers, so it is made in the test."""
    clips = draw(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=3))
    blocks = tuple(
        Block(f"block-{number}", draw(st.integers(1, 5)), clip) for number, clip in enumerate(clips)
    )
    return (
        blocks,
        draw(st.sampled_from([16, 20, 24, 32])),
        draw(st.integers(1, 40)),
        draw(st.one_of(st.integers(1, 100_000).map(float), st.floats(1, 1e5))),
    )


def clips_of(ring: FixedPoint) -> np.ndarray:
    return np.concatenate([np.full(block.length, block.clip) for block in ring.blocks])


@given(scales(), st.data())
def test_the_sum_of_sites_decodes_to_their_weighted_sum(drawn: tuple, data: st.DataObject):
    ring = FixedPoint(*drawn)
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    clips = clips_of(ring)
    sites = data.draw(st.integers(1, ring.sites))
    encodings, expected, weight, clipped = [], np.zeros(len(clips)), 0.0, 0
    for _ in range(sites):
        vector = (draws.normal(size=len(clips)) * clips).astype(np.float32)
        asked = float(draws.uniform(0, ring.largest_weight)) or 1.0
        words = ring.encode(vector, asked, draws)
        counted = ring.decode(words).weight
        assert abs(counted - asked) <= ring.weight_step  # near the largest weight, and near zero
        encodings.append(words)
        expected += counted * np.clip(vector.astype(np.float64), -clips, clips)
        weight += counted
        clipped += int(np.count_nonzero(np.abs(vector) > clips))
    found = ring.decode(added(ring, encodings))
    unit = clips * ring.largest_weight / ring.largest  # each site's rounding errs by less than one
    assert (np.abs(found.vector - expected) <= sites * unit * (1 + 1e-6)).all()
    assert found.weight == weight
    assert found.clipped == clipped


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.sampled_from([16, 20, 24, 32]))
def test_whole_weights_are_exact_where_the_ring_has_room(weights: list[int], ring_bits):
    ring = FixedPoint((Block("update", 1, 1.0),), ring_bits, 20, 500.0)
    assert ring.largest >= ring.largest_weight
    assert ring.weight_step == 1
    zero = np.zeros(1, np.float32)
    total = added(ring, [ring.encode(zero, float(weight), rng()) for weight in weights])
    assert ring.decode(total).weight == sum(weights)


def test_a_narrow_ring_counts_weights_in_steps_and_no_site_as_nothing():
    ring = FixedPoint((Block("update", 1, 1.0),), 16, 20, 10_000.0)
    assert (ring.largest, ring.weight_step) == (1638, 7)
    zero = np.zeros(1, np.float32)
    for weight, counted in ((1, 7), (10, 7), (11, 14), (700, 700), (10_000, 9_996)):
        assert ring.decode(ring.encode(zero, float(weight), rng())).weight == counted


def test_vector_and_weight_are_rounded_together():
    """A constant vector has itself as its weighted mean, however coarse the weights are."""
    ring = FixedPoint((Block("update", 1000, 1.0),), 16, 3, 1_000_000.0)
    vector = np.full(1000, 0.75, np.float32)
    encodings = [ring.encode(vector, weight, rng()) for weight in (40_000.0, 299_990.0, 777_777.0)]
    found = ring.decode(added(ring, encodings))
    bound = ring.rounding_sd(found.weight, 3)["update"]
    assert abs(found.vector.mean() / found.weight - 0.75) < 5 * bound / np.sqrt(1000)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.0001, -0.9999, 12.5, -12.5])
def test_rounding_is_unbiased_and_no_wider_than_it_says(value: float):
    count = 200_000
    ring = FixedPoint((Block("update", count, 2.0),), 16, 1, 1.0)
    unit = 2.0 / ring.largest
    vector = np.full(count, value * unit, np.float32)
    found = ring.decode(ring.encode(vector, 1.0, rng())).vector
    bound = ring.rounding_sd(1.0, 1)["update"]
    assert bound == pytest.approx(unit / 2)
    assert abs(found.mean() - vector[0]) < 5 * bound / np.sqrt(count)
    assert set(np.round(found / unit)) == {np.floor(value), np.floor(value) + 1}
    fraction = value - np.floor(value)
    assert found.std() == pytest.approx(unit * np.sqrt(fraction * (1 - fraction)), rel=0.3)
    assert found.std() <= bound * 1.001


@given(scales())
def test_the_extremes_of_all_sites_do_not_wrap(drawn: tuple):
    ring = FixedPoint(*drawn)
    past = np.nextafter(clips_of(ring).astype(np.float32), np.float32(np.inf))
    for sign in (1, -1):
        words = ring.encode(sign * past, ring.largest_weight, ALWAYS_UP)
        one = reduced(words, ring.ring_bits).astype(np.int64)
        total = reduced(added(ring, [words] * ring.sites), ring.ring_bits)
        assert (total == ring.sites * one).all()
        assert (np.abs(one) <= ring.largest).all()
        assert one[-1] == min(len(past), ring.largest)
        # the largest weight may not be a multiple of the step
        share = one[-2] * ring.weight_step / ring.largest_weight
        assert (np.abs(one[:-2] - sign * ring.largest * share) < 1).all()


@pytest.mark.parametrize("ring_bits", [16, 20, 24, 32])
@pytest.mark.parametrize("clip", [1.0, 0.1, 1 / 3, 1e-3, 123.456])
def test_the_clip_at_the_largest_weight_is_the_largest_integer(ring_bits, clip: float):
    ring = FixedPoint((Block("update", 2, clip),), ring_bits, 7, 1000.0)
    vector = np.array([2 * clip, -2 * clip], np.float32)
    for draws in (ALWAYS_UP, rng()):
        integers = reduced(ring.encode(vector, 1000.0, draws), ring_bits)
        assert integers[:2].tolist() == [ring.largest, -ring.largest]


@given(st.integers(-(2**24), 2**24))
def test_an_integer_is_not_rounded(integer: int):
    largest = 2**31 - 1
    ring = FixedPoint((Block("update", 1, float(largest)),), 32, 1, 1.0)
    vector = np.array([integer], np.float32)
    # the division by the clip errs in the last bit, too little to change the integer at this draw
    assert reduced(ring.encode(vector, 1.0, rng()), 32)[0] == integer


@given(st.floats(-(2.0**23), 2.0**23, width=32), st.integers(0, 2**32 - 1))
def test_a_value_is_rounded_up_in_the_share_of_the_draws_that_is_its_fraction(
    value: float, word: int
):
    ring = FixedPoint(
        (Block("update", 1, float(2**31 - 1)),), 32, 1, 1.0
    )  # an integer stands for 1
    found = reduced(ring.encode(np.array([value], np.float32), 1.0, Draws(word)), 32)[0]
    assert found == (int(Fraction(value) * 2**32) + word) // 2**32


def test_clipped_values_are_counted_up_to_the_largest_integer():
    ring = FixedPoint((Block("a", 3, 0.5), Block("b", 5000, 2.0)), 16, 20, 10.0)
    vector = np.full(5003, 0.5, np.float32)  # a's clip itself is not clipped
    assert ring.decode(ring.encode(vector, 10.0, rng())).clipped == 0
    vector[1:4] = -0.6  # one value of a stays at the clip
    assert ring.decode(ring.encode(vector, 10.0, rng())).clipped == 2
    words = ring.encode(vector * 100, 10.0, rng())
    assert ring.decode(words).clipped == ring.largest == 1638
    assert ring.decode(added(ring, [words] * 20)).clipped == 20 * 1638


def test_how_a_vector_is_cut_into_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    ring = FixedPoint((Block("a", 11, 0.5), Block("b", 1, 9.0), Block("c", 7, 2.0)), 32, 3, 10.0)
    vector = rng().normal(size=19).astype(np.float32)
    whole = ring.encode(vector, 4.0, rng())
    monkeypatch.setattr(fixed_point, "_CHUNK", 4)
    assert (ring.encode(vector, 4.0, rng()) == whole).all()
    parts = ring.decode(whole)
    monkeypatch.undo()
    assert isinstance(parts, DecodedSum)
    assert (ring.decode(whole).vector == parts.vector).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_vector_that_is_not_finite_is_refused(bad: float, place: int):
    vector = VECTOR.copy()
    vector[place] = bad
    with pytest.raises(ProtocolError, match="block 'update' holds values that are not finite"):
        RING.encode(vector, 1.0, rng())


@pytest.mark.parametrize("weight", [0.0, -1.0, 100.001, np.inf, np.nan])
def test_a_weight_out_of_range_is_refused(weight: float):
    with pytest.raises(ProtocolError, match=r"above 0 and up to the agreement's 100\.0; cap"):
        RING.encode(VECTOR, weight, rng())


def test_another_layout_is_refused():
    with pytest.raises(ProtocolError, match=r"shape \(2,\), expected 3 values"):
        RING.encode(VECTOR[:2], 1.0, rng())
    with pytest.raises(ProtocolError, match=r"shape \(6,\), expected 5 words"):
        RING.decode(np.zeros(6, np.uint32))


@pytest.mark.parametrize(
    "tail", [(0, 0), (201, 0), (2**32 - 1, 0), (5, 2**32 - 1), (0x9E3779B9, 0x7F4A7C15)]
)
def test_a_sum_that_still_holds_a_mask_is_refused(tail: tuple[int, int]):
    """201 is more than two sites of weight 100."""
    words = np.array([1, 2, 3, *tail], np.uint32)
    with pytest.raises(ProtocolError, match="a mask was left in it"):
        RING.decode(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (Block("a", 0, 1.0),)}, "'a'.*expected a length from 1"),
        ({"blocks": (Block("a", 1, 0.0),)}, "a finite clip above 0"),
        ({"blocks": (Block("a", 1, float("nan")),)}, "a finite clip above 0"),
        ({"blocks": (Block("a", 1, float("inf")),)}, "a finite clip above 0"),
        ({"sites": 0}, "0 sites of weight 100.0 in 32 bits"),
        ({"sites": 32768, "ring_bits": 16}, "fewer sites or a wider ring"),
        ({"largest_weight": 0.5}, "finite largest weight from 1"),
        ({"largest_weight": float("nan")}, "finite largest weight from 1"),
        ({"largest_weight": float("inf")}, "finite largest weight from 1"),
    ],
)
def test_scales_out_of_range_are_refused(change: dict, message: str):
    with pytest.raises(ProtocolError, match=message):
        replace(RING, **change)


def test_the_digest_stands_for_everything():
    text = b'[[["update", 3, 1.0, true]], 32, 2, 100.0]'
    assert RING.digest() == hashlib.sha256(text).hexdigest()
    others = [
        replace(RING, ring_bits=24),
        replace(RING, sites=3),
        replace(RING, largest_weight=101.0),
        replace(RING, blocks=(Block("updates", 3, 1.0),)),
        replace(RING, blocks=(Block("update", 4, 1.0),)),
        replace(RING, blocks=(Block("update", 3, 1.5),)),
        replace(RING, blocks=(Block("update", 3, 1.0, weighted=False),)),
        replace(RING, blocks=(Block("update", 2, 1.0), Block("loss", 1, 1.0))),
    ]
    assert len({ring.digest() for ring in [RING, *others]}) == 9


@given(
    ring_bits=st.sampled_from([16, 20, 24, 32]),
    weights=st.lists(st.floats(1, 1000), min_size=1, max_size=8),
    values=st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
)
def test_a_block_without_weights_sums_to_the_values_themselves(
    ring_bits: int, weights: list[float], values: list[float]
) -> None:
    """As fine as the ring's integers allow, whatever the sites weigh; the other block as ever."""
    blocks = (Block("update", 1, 1.0), Block("statistics", 3, 50.0, weighted=False))
    ring = FixedPoint(blocks, ring_bits, len(weights), 1000.0)
    vector = np.array([0.5, *values], np.float32)
    words = [ring.encode(vector, weight, rng()) for weight in weights]
    found = ring.decode(added(ring, words))
    step = 50.0 / ring.largest
    np.testing.assert_allclose(
        found.vector[1:], len(weights) * vector[1:].astype(float), atol=len(weights) * step
    )
    assert found.vector[0] == pytest.approx(
        0.5 * found.weight, abs=len(weights) * 1000.0 / ring.largest
    )
    assert ring.rounding_sd(found.weight, len(weights))["statistics"] == pytest.approx(
        step * len(weights) ** 0.5 / 2
    )


def test_a_block_without_weights_is_clipped_and_counted_at_its_clip() -> None:
    blocks = (Block("statistics", 3, 10.0, weighted=False),)
    ring = FixedPoint(blocks, 32, 2, 100.0)
    words = ring.encode(np.array([12.0, -10.0, 3.0], np.float32), 1.0, rng())
    found = ring.decode(added(ring, [words]))
    np.testing.assert_allclose(found.vector, [10, -10, 3], atol=1e-6)
    assert found.clipped == 1
