"""Queries, hits and their one order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.codes import pack_signs
from fedhash.errors import QueryError
from fedhash.search import (
    WEIGHT_SCALE,
    Hit,
    Query,
    abstains,
    make_query,
    merge,
    radius_from_kappa,
)


def query(**changes: object) -> Query:
    fields = {
        "release_id": "r1",
        "modality": "image",
        "code": bytes(8),
        "weights": np.zeros(64, dtype=np.int16),
        "k": 10,
    }
    return Query(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": b""}, "0 bits; a code has 16 to 256"),
        ({"code": b"x"}, "8 bits; a code has 16 to 256"),
        ({"code": bytes(33)}, "264 bits"),
        ({"code": bytes(16)}, r"int16 of shape \(64,\); a code of 128 bits needs .*\(128,\)"),
        ({"weights": np.zeros(63, dtype=np.int16)}, r"shape \(63,\)"),
        ({"weights": np.full(64, 4097, dtype=np.int16)}, "4097 in size; at most 4096"),
        ({"weights": np.full(64, -32768, dtype=np.int16)}, "32768 in size"),
        ({"k": 0}, "k is 0; ask for at least 1"),
        ({"k": -5}, "k is -5"),
        ({"radius": -1}, "radius is -1; expected 0 to 64"),
        ({"radius": 65}, "radius is 65"),
        ({"filters": {str(n): "x" for n in range(17)}}, "17 attributes; at most 16"),
    ],
)
def test_a_query_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        query(**changes)


def test_the_limits_themselves_are_allowed() -> None:
    query(radius=0)
    query(radius=64, k=1)
    query(weights=np.full(64, -WEIGHT_SCALE, dtype=np.int16))
    query(filters={str(n): "x" for n in range(16)})


def test_a_query_holds_the_signs_and_the_rounded_outputs() -> None:
    outputs = np.linspace(-0.3, 0.4, 16)
    made = make_query(outputs, release_id="r1", modality="report", k=3, filters={"sex": "f"})
    assert made.code == pack_signs(outputs[None]).tobytes()
    assert made.weights.tolist() == [round(4096 * value) for value in outputs.tolist()]
    assert (made.radius, made.filters) == (None, {"sex": "f"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.01, -7.0])
def test_outputs_that_are_not_normalised_are_refused(bad: float) -> None:
    outputs = np.zeros(16)
    outputs[3] = bad
    with pytest.raises(QueryError, match="queries are made from normalised outputs"):
        make_query(outputs, release_id="r1", modality="image", k=1)


def test_an_output_one_rounding_step_above_1_still_makes_a_query() -> None:
    outputs = np.zeros(16, dtype=np.float32)
    outputs[0] = np.nextafter(np.float32(1), np.float32(2))
    assert make_query(outputs, release_id="r", modality="image", k=1).weights[0] == WEIGHT_SCALE


@pytest.mark.parametrize(
    ("kappa", "radius"), [(1.0, 0), (0.5, 8), (0.0, 16), (-1.0, 32), (0.95, 0), (0.9, 1)]
)
def test_the_radius_follows_kappa(kappa: float, radius: int) -> None:
    assert radius_from_kappa(kappa, code_bits=64) == radius


@pytest.mark.parametrize("kappa", [1.1, -1.1, float("nan")])
def test_a_kappa_out_of_range_is_refused(kappa: float) -> None:
    with pytest.raises(QueryError, match="expected -1 to 1"):
        radius_from_kappa(kappa, code_bits=64)


def test_abstaining_compares_the_two_best_anchors() -> None:
    anchors = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]], dtype=np.int8)
    clear = anchors[1] / 2  # cosines 0, 1, 0
    between = (anchors[1] + anchors[2]) / 4  # cosines 0, .5, .5
    assert not abstains(clear, anchors, 0.99)
    assert abstains(clear, anchors, 1.01)
    assert abstains(between, anchors, 0.01)
    assert not abstains(between, anchors, 0.0)


@pytest.mark.parametrize("margin", [float("nan"), -0.1, 2.1])
def test_an_abstention_margin_out_of_range_is_refused(margin: float) -> None:
    anchors = np.eye(2, 4, dtype=np.int8)
    with pytest.raises(QueryError, match=r"expected 0 .* to 2"):
        abstains(np.zeros(4), anchors, margin)


hits = st.builds(
    Hit,
    st.sampled_from(["a", "b"]),
    st.text("01", min_size=2, max_size=2),
    st.integers(0, 2),
    st.integers(-1, 1),
)


@given(st.lists(st.lists(hits)), st.integers(1, 5))
def test_merging_gives_the_first_k_of_the_total_order(lists: list[list[Hit]], k: int) -> None:
    everything = [hit for hits_of_site in lists for hit in hits_of_site]
    merged = merge(lists, k)
    assert len(merged) == min(k, len(everything))
    rest = list(everything)
    for hit in merged:
        best = min((h.distance, -h.score, h.site, h.handle) for h in rest)
        assert (hit.distance, -hit.score, hit.site, hit.handle) == best
        rest.remove(hit)


def test_merging_needs_a_positive_k() -> None:
    with pytest.raises(QueryError, match="k is 0"):
        merge([], 0)
