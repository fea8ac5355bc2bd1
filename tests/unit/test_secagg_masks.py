"""Masks: published test vectors, cancellation, uniformity, and the memory that they take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fedhash.secagg import masks
from fedhash.secagg.masks import add_masks, mask_key

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
OTHER = bytes(range(32))
KEYS = st.binary(min_size=32, max_size=32)


def encrypted(key: bytes, block: bytes) -> bytes:
    """Whole blocks through the bare cipher, without counter mode."""
    return Cipher(AES256(key), ECB()).encryptor().update(block)  # noqa: S305


def masked(words: np.ndarray, *keys: tuple[bytes, int]) -> np.ndarray:
    result = words.copy()
    add_masks(result, keys)
    return result


def unlikely(found: np.ndarray) -> bool:
    """Whether uniform bytes are so uneven less than once in a million (chi-square, 255 degrees)."""
    counts = np.bincount(found, minlength=256)
    expected = len(found) / 256
    return bool(((counts - expected) ** 2 / expected).sum() > chi2.isf(1e-6, 255))


def test_rfc_5869_test_case_3():
    """Without salt and info; a key is the first 32 of its 42 bytes."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert mask_key(bytes.fromhex("0b" * 22), b"").hex() == expected


def test_each_secret_and_each_use_has_a_key_of_its_own():
    secrets, infos = (b"a" * 32, b"b" * 32), (b"", b"pair 1", b"pair 2")
    assert len({mask_key(secret, info) for secret in secrets for info in infos}) == 6


def test_the_keystream_of_the_gcm_test_vectors():
    """A block under the key of zeros.

    McGrew and Viega, The Galois/Counter Mode of Operation, appendix B, test case 14: a plaintext of
    zeros under a nonce of zeros.
    """
    words = masked(np.zeros(4, np.uint32), (bytes(32), 1))
    assert words.tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_keystream_counts_blocks_across_chunks(
    dtype: type[np.unsignedinteger], monkeypatch: pytest.MonkeyPatch
):
    """Against the bare cipher, which first gives the output block of NIST SP 800-38A, F.5.5."""
    counter = bytes(range(0xF0, 0x100))
    assert encrypted(KEY, counter).hex() == "0bdf7df1591716335e9a8b15c860c502"
    monkeypatch.setattr(masks, "_CHUNK_BYTES", 1 << 10)
    blocks = b"".join(number.to_bytes(16, "big") for number in range(2, 602))
    expected = np.frombuffer(encrypted(KEY, blocks), dtype)[:-3]
    assert (masked(np.zeros_like(expected), (KEY, 1)) == expected).all()


@given(
    st.lists(KEYS, min_size=1, max_size=5, unique=True),
    st.integers(1, 70),
    st.sampled_from([np.uint16, np.uint32]),
)
def test_masks_of_both_signs_cancel_in_the_sum(
    keys: list[bytes], length: int, dtype: type[np.unsignedinteger]
):
    one, other = np.arange(length, dtype=dtype), np.full(length, 7, dtype)
    masked_one = masked(one, *[(key, 1) for key in keys])
    masked_other = masked(other, *[(key, -1) for key in reversed(keys)])
    assert (masked_one + masked_other == one + other).all()
    assert (masked(masked_one, *[(key, -1) for key in keys]) == one).all()


@given(KEYS, st.integers(9, 70))
def test_one_sign_alone_hides_the_vector(key: bytes, length: int):
    vector = np.zeros(length, np.uint32)
    assert (masked(vector, (key, 1)) == -masked(vector, (key, -1))).all()
    assert np.count_nonzero(masked(vector, (key, 1))) > length - 3
    assert not (masked(vector, (key, 1), (key, 1)) == masked(vector, (key, 1))).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1)])
def test_a_masked_vector_is_uniform(dtype: type[np.unsignedinteger], signs: tuple[int, ...]):
    vector = (np.arange(500_000) % 1000).astype(dtype)
    assert unlikely(vector.view(np.uint8))
    found = masked(vector, *zip((KEY, OTHER), signs, strict=False)).view(np.uint8)
    for byte in range(dtype().itemsize):
        assert not unlikely(found[byte :: dtype().itemsize])
    pairs = found[:-1] ^ found[1:]  # neighbours are independent too
    assert not unlikely(pairs)


def test_two_masks_of_one_vector_share_no_byte_pattern():
    """No eight bytes in a row stand in both, wherever they begin."""
    vector = np.zeros(20_000, np.uint32)
    one, other = (masked(vector, (key, 1)).tobytes() for key in (KEY, OTHER))

    def windows(data: bytes) -> np.ndarray:
        starts = range(8)
        return np.concatenate([np.frombuffer(data[s : s - 8], np.uint64) for s in starts])

    assert len(np.intersect1d(windows(one), windows(one[8:] + other))) > 0
    assert len(np.intersect1d(windows(one), windows(other))) == 0
    difference = np.frombuffer(one, np.uint8) - np.frombuffer(other, np.uint8)
    assert not unlikely(difference)


def test_a_key_of_another_length_is_refused_before_anything_is_added():
    words = np.zeros(10, np.uint32)
    with pytest.raises(ValueError, match="Invalid key size"):
        add_masks(words, [(KEY, 1), (KEY[:16], 1)])
    assert not words.any()


def test_no_masks_and_no_words_change_nothing():
    words = np.arange(10, dtype=np.uint32)
    assert (masked(words) == words).all()
    assert len(masked(words[:0], (KEY, 1))) == 0


@pytest.mark.parametrize(("length", "count"), [(4_000_000, 3), (100_000, 200)])
def test_masking_needs_less_than_2_mib(length: int, count: int):
    words = np.zeros(length, np.uint32)
    keys = [(mask_key(KEY, bytes([number])), 1) for number in range(count)]
    tracemalloc.start()
    try:
        add_masks(words, keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
