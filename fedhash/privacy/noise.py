"""Random numbers that privacy rests on: uniform and Gaussian, from keyed streams.

1. `SecureNoise` takes a fresh key from the operating system for every draw and forgets it, so a
   fork, a copy or a restart has nothing to repeat. `SimulatedNoise` takes its keys from a seed, so
   anyone who knows the seed can subtract the noise: for simulations, which protect nobody.
2. A key's numbers are its AES-256 keystream (`fedhash.secagg.masks.keystream`). A uniform is the
   first 53 of 64 bits, a multiple of 2^-53 in [0, 1).
3. A Gaussian is half the sum of four Box-Muller normals. The doubles that one of them can take
   have gaps, which tell sums of a secret and noise apart (Mironov, CCS 2012); behind a sum of four
   the secret takes about 2^159 trials (Holohan and Braghin, arXiv 2107.10138, section 5.1, whose
   guard is also that of Opacus's secure mode).
4. Box-Muller of 53 bits ends at 8.6 standard deviations: what it lacks has probability 2^-53. A
   Gaussian is made of four, so d numbers in each of T steps lack at most d T 2^-51. An outcome that
   only one of two neighbours can have then tells them apart: that belongs to delta, and nothing
   adds it. It is 3e-10 for a head of 12,928 parameters in 60 steps and 4e-8 for a million
   parameters in a hundred, so `fedhash.privacy.terms` takes no delta below 1e-7.

Shape suffix: n numbers.

    >>> noise = SecureNoise()
    >>> noise.gaussians(3)
    array([-0.58,  1.21,  0.07])
    >>> poisson_sample(noise, 1000, rate=0.01)      # places of about ten patients
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64

from fedhash.secagg.masks import KEY_BYTES, keystream

__all__ = [
    "NoiseSource",
    "SecureNoise",
    "SimulatedNoise",
    "gaussians_of",
    "one_of_each",
    "poisson_sample",
    "uniforms_of",
]

_DRAWS = 4  # normals in one Gaussian
_CHUNK_NUMBERS = 1 << 13  # 256 KiB of keystream, which stay in the second-level cache


@runtime_checkable  # the test suite checks types at run time
class NoiseSource(Protocol):
    """Where random numbers of privacy come from.

    Attributes:
        secure: Whether nobody can know the numbers.
    """

    secure: ClassVar[bool]

    def gaussians(self, count: int) -> Float64[np.ndarray, " n"]:
        """Independent standard normals."""
        ...

    def uniforms(self, count: int) -> Float64[np.ndarray, " n"]:
        """Independent uniforms in [0, 1)."""
        ...


class _KeyedNoise(ABC):
    """Each draw under a key of its own."""

    @abstractmethod
    def _next_key(self) -> bytes: ...

    def gaussians(self, count: int) -> Float64[np.ndarray, " n"]:
        """See :class:`NoiseSource`."""
        return gaussians_of(self._next_key(), count)

    def uniforms(self, count: int) -> Float64[np.ndarray, " n"]:
        """See :class:`NoiseSource`."""
        return uniforms_of(self._next_key(), count)


class SecureNoise(_KeyedNoise):
    """Numbers that nobody can know."""

    secure: ClassVar[bool] = True

    def _next_key(self) -> bytes:
        return os.urandom(KEY_BYTES)


class SimulatedNoise(_KeyedNoise):
    """The same numbers for the same seed and name: repeatable experiments, no protection.

    Args:
        seed: Of the experiment.
        name: Names the stream under the seed.
    """

    secure: ClassVar[bool] = False

    def __init__(self, seed: int, *name: str | int) -> None:
        self._stream = repr(("simulated noise", seed, *name)).encode()
        self._draws = 0

    def _next_key(self) -> bytes:
        self._draws += 1
        return hashlib.sha256(self._stream + self._draws.to_bytes(8, "big")).digest()


def poisson_sample(noise: NoiseSource, population: int, rate: float) -> Int64[np.ndarray, " n"]:
    """Places 0..population-1, each taken independently with probability `rate`."""
    return np.flatnonzero(noise.uniforms(population) < rate)


def one_of_each(noise: NoiseSource, sizes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """One place of each of n lists, uniform but for `size` x 2^-53."""
    return np.asarray(noise.uniforms(len(sizes)) * sizes, dtype=np.int64)


def uniforms_of(key: bytes, count: int) -> Float64[np.ndarray, " n"]:
    """The uniforms of a 32-byte key.

    Raises:
        ValueError: The key has another length.
    """
    words = np.empty(count, np.uint64)
    keystream(key).update_into(bytes(words.nbytes), words.view(np.uint8).data)
    return _uniforms(words)


def gaussians_of(key: bytes, count: int) -> Float64[np.ndarray, " n"]:
    """The standard normals of a 32-byte key.

    Raises:
        ValueError: The key has another length.
    """
    stream = keystream(key)
    result = np.empty(count)
    zeros = memoryview(bytes(8 * _DRAWS * _CHUNK_NUMBERS))
    for start in range(0, count, _CHUNK_NUMBERS):
        part = result[start : start + _CHUNK_NUMBERS]
        words = np.empty((2, _DRAWS, -(-len(part) // 2)), np.uint64)
        stream.update_into(zeros[: words.nbytes], words.reshape(-1).view(np.uint8).data)
        part[:] = _normals(torch.from_numpy(_uniforms(words)))[: len(part)]
    return result


def _uniforms(words: np.ndarray) -> np.ndarray:
    # 53 bits fit a signed integer as well, whose conversion is the quicker one
    return np.asarray((words >> np.uint64(11)).view(np.int64) * 2.0**-53)


def _normals(uniforms: Float64[torch.Tensor, "2 draws pairs"]) -> Float64[np.ndarray, " n"]:
    """Two normals a pair: the cosines' sums, then the sines'. Torch's cosine beats numpy's."""
    radius = torch.sqrt(-2 * torch.log(1 - uniforms[0]))  # 1 - u is exact and never zero
    angle = 2 * math.pi * uniforms[1]
    sums = torch.cat([(radius * wave(angle)).sum(dim=0) for wave in (torch.cos, torch.sin)])
    return (sums / math.sqrt(_DRAWS)).numpy()
