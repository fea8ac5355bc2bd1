"""Searches against brute force: ties, filters, radius, deletions, any split in sites."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhash.codes import pack_signs, unpack_signs
from fedhash.index import Archive, Entry, Match, _shelf, site_handle
from fedhash.search import Hit, Query, make_query, merge

SECRET = b"0123456789abcdef"
BITS = 16


def reference(entries: list[Entry], query: Query) -> list[Match]:
    """The definition, entry by entry."""
    found = []
    for entry in entries:
        bits = unpack_signs(np.frombuffer(entry.code, dtype=np.uint8)[None])[0]
        wanted = unpack_signs(np.frombuffer(query.code, dtype=np.uint8)[None])[0]
        distance = int((bits != wanted).sum())
        score = sum(int(w) * int(h) for w, h in zip(query.weights, bits, strict=True))
        if (
            entry.modality == query.modality
            and (query.radius is None or distance <= query.radius)
            and all(entry.attributes.get(name) == query.filters[name] for name in query.filters)
        ):
            found.append(Match(entry.handle, distance, score))
    return sorted(found, key=lambda m: (m.distance, -m.score, m.handle))[: query.k]


def as_hits(matches: list[Match], site: str) -> list[Hit]:
    return [Hit(site, m.handle, m.distance, m.score) for m in matches]


# Few codes and weights, so that nearly everything is a tie.
codes = st.sampled_from([b"\x00\x00", b"\x01\x00", b"\x00\x80", b"\xff\xff", b"\x0f\x0f"])
entry_lists = st.lists(
    st.builds(
        lambda number, patient, modality, code, sex, age: Entry(
            site_handle(SECRET, f"s{number}"),
            f"p{patient}",
            modality,
            code,
            {"sex": sex, "age": age},
        ),
        st.integers(0, 60),
        st.integers(0, 5),
        st.sampled_from(["image", "report"]),
        codes,
        st.sampled_from("fm"),
        st.sampled_from(["40", "50"]),
    ),
    max_size=60,
    unique_by=lambda entry: (entry.handle, entry.modality),
)
queries = st.builds(
    lambda code, weights, k, radius, filters: Query(
        "r1", "image", code, np.array(weights, dtype=np.int16), k, radius, filters
    ),
    codes,
    st.lists(st.sampled_from([-1, 0, 1, 4096]), min_size=BITS, max_size=BITS),
    st.integers(1, 12),
    st.none() | st.integers(0, BITS),
    st.sampled_from([{}, {"sex": "f"}, {"sex": "m", "age": "50"}, {"sex": "x"}, {"none": ""}]),
)


@settings(max_examples=40, deadline=None)
@given(
    entries=entry_lists,
    query=queries,
    sites=st.lists(st.integers(0, 2), min_size=60, max_size=60),
    removed=st.sets(st.integers(0, 5), max_size=2),
    batches=st.integers(1, 3),
)
def test_any_split_in_sites_answers_like_one_archive(
    entries: list[Entry], query: Query, sites: list[int], removed: set[int], batches: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Archive(Path(folder) / "whole", "r1", BITS)
        parts = [Archive(Path(folder) / f"part{n}", "r1", BITS) for n in range(3)]
        for start in range(batches):
            whole.add(entries[start::batches])
        for number, part in enumerate(parts):
            part.add([e for e, site in zip(entries, sites, strict=False) if site == number])
        for patient in removed:
            gone = whole.remove_patient(f"p{patient}")
            assert gone == sum(part.remove_patient(f"p{patient}") for part in parts)
        kept = [entry for entry in entries if int(entry.patient_id[1:]) not in removed]

        expected = reference(kept, query)
        assert whole.search(query) == expected
        assert whole.count() == len(kept)
        one_name = [as_hits(part.search(query), "site") for part in parts]
        assert merge(one_name, query.k) == as_hits(expected, "site")
        own_names = [as_hits(part.search(query), f"site{n}") for n, part in enumerate(parts)]
        by_hand = [
            Hit(f"site{n}", match.handle, match.distance, match.score)
            for n in range(3)
            for match in reference(
                [
                    e
                    for e, site in zip(entries, sites, strict=False)
                    if site == n and int(e.patient_id[1:]) not in removed
                ],
                query,
            )
        ]
        assert merge(own_names, query.k) == sorted(by_hand, key=lambda hit: hit.rank)[: query.k]

        whole.close()
        reopened = Archive(Path(folder) / "whole", "r1", BITS)
        assert reopened.search(query) == expected
        for archive in (reopened, *parts):
            archive.close()


def clustered(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    """Codes as a hash model makes them: most equal an anchor, the others are near one."""
    anchors = rng.integers(0, 2, (3, bits)) * 2 - 1
    signs = anchors[rng.integers(0, 3, count)]
    flipped = rng.random((count, bits)) < rng.choice([0.0, 0.05], (count, 1), p=[0.8, 0.2])
    return pack_signs(np.where(flipped, -signs, signs).astype(np.int8))


@pytest.mark.parametrize("bits", [16, 24, 40, 64, 128, 136, 256])
@pytest.mark.parametrize("share", [None, 0.5, 0.001, 0.0])
def test_large_tie_groups_are_cut_exactly(
    bits: int, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small sample, so that its bound is looser than the true k-th distance.
    monkeypatch.setattr(_shelf, "_SMALLEST_SAMPLE", 64)
    rng = np.random.default_rng(bits)
    count, k = 20_000, 30
    handles = rng.bytes(16 * count)
    packed = clustered(rng, count, bits)
    shelf = _shelf.Shelf.of(
        [handles[16 * n : 16 * n + 16] for n in range(count)],
        [row.tobytes() for row in packed],
        range(count),
        range(count),
        [0] * count,
        code_bytes=bits // 8,
    ).sorted()
    allowed = None if share is None else rng.random(count) < share
    # On an anchor, beside one, anywhere; with and without a limit.
    for radius, flips in [(bits, 0), (bits, 1), (bits, 3), (2, 0), (2, 1)]:
        signs = unpack_signs(packed[:1])[0]
        signs[:flips] *= -1
        outputs = signs * np.round(rng.random(bits), 1) * 0.05
        query = make_query(outputs, release_id="r", modality="m", k=k)
        got = shelf.nearest(query.code, query.weights, k, radius, allowed)

        bits_of_all = unpack_signs(shelf.codes)
        distances = (bits_of_all != unpack_signs(np.frombuffer(query.code, np.uint8)[None])).sum(1)
        scores = bits_of_all.astype(np.int64) @ query.weights.astype(np.int64)
        kept = (distances <= radius) & (True if allowed is None else allowed)
        order = np.lexsort((np.arange(count), -scores, distances))
        order = order[kept[order]][:k]
        assert [column.tolist() for column in got] == [
            column[order].tolist() for column in (np.arange(count), distances, scores)
        ]


def test_positions_are_in_the_order_of_the_hex_handles() -> None:
    # Zero bytes at the end must not shorten a handle.
    handles = ["00" * 16, "00" * 15 + "01", "01" + "00" * 15, "7f" * 16, "80" * 16, "ff" * 16]
    shelf = _shelf.Shelf.of(
        [bytes.fromhex(handle) for handle in reversed(handles)],
        [b"xx"] * 6,
        range(6),
        range(6),
        [0] * 6,
        code_bytes=2,
    ).sorted()
    assert [shelf.handle(position) for position in range(6)] == handles


def test_the_highest_score_of_a_distance_is_the_best_of_all_codes() -> None:
    rng = np.random.default_rng(0)
    every = unpack_signs(np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2))
    query = rng.integers(0, 256, 2, dtype=np.uint8)
    distances = (every != unpack_signs(query[None])).sum(axis=1)
    weights = rng.integers(-4096, 4097, 16, dtype=np.int16)  # need not have the code's signs
    scores = every.astype(np.int64) @ weights
    for distance in range(17):
        best = scores[distances == distance].max()
        assert _shelf._highest_score(query, weights, distance) == best
