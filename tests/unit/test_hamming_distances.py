"""Distances of packed codes against a count of their bits one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash import codes
from fedhash.codes import hamming_distances


@given(
    width=st.integers(2, 32),
    queries=st.integers(0, 5),
    database=st.integers(0, 7),
    block_bytes=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_width_counts_the_bits_that_differ(
    width: int, queries: int, database: int, block_bytes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, 256, (queries, width), dtype=np.uint8)
    # every second row of a larger array, as a selection of codes may be
    held = rng.integers(0, 256, (2 * database, width), dtype=np.uint8)[::2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "_BLOCK_BYTES", block_bytes)
        found = hamming_distances(asked, held)
    bits_a, bits_h = np.unpackbits(asked, axis=1), np.unpackbits(held, axis=1)
    assert found.dtype == np.uint16
    assert np.array_equal(found, (bits_a[:, None] != bits_h[None]).sum(axis=2))
