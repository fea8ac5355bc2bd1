"""Named random streams: each site and purpose draws from a stream of its own.

A stream depends on the seed and on its name alone, never on how many numbers another stream has
drawn, so adding a site, a worker or a plot changes nothing elsewhere. The streams here are for
experiments; secrets and privacy noise come from the operating system and never from a seed.

    >>> rng = numpy_stream(7, "partition", "site-3")
    >>> generator = torch_stream(7, "training", "site-3", 12)
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["numpy_stream", "stream_seed", "torch_stream"]


def stream_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream `name` under `seed`.

    SHA-256 over an unambiguous encoding of the parts, so ("ab", "c") and ("a", "bc") differ.
    """
    text = repr((seed, *name)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """A numpy generator for the stream `name`."""
    return np.random.default_rng(np.random.SeedSequence(stream_seed(seed, *name)))


def torch_stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU torch generator for the stream `name`."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))
