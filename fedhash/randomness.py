"""Named random streams: each site and purpose draws from a stream of its own.

A stream depends on the seed and on its name alone, never on how many numbers another stream has
drawn, so adding a site, a worker or a plot changes nothing elsewhere. The streams here are for
experiments; secrets and privacy noise come from the operating system and never from a seed.

    >>> rng = numpy_stream(7, "partition", "site-3")
    >>> generator = torch_stream(7, "training", "site-3", 12)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["global_torch_stream", "numpy_stream", "stream_seed", "torch_stream"]


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


@contextmanager
def global_torch_stream(seed: int) -> Iterator[None]:
    """Torch's global CPU generator at `seed`, for layers that draw from no other; then as it was.

    `torch.manual_seed` tells every kind of device too, which takes time where there is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
