"""Fixed point: a site's weighted vector as integers of a ring, whose sum cannot wrap.

1. An integer is at most Q = (2^(ring_bits-1) - 1) // sites in size, so `sites` of them cannot wrap.
2. A value is clipped to its block's clip, and counted if it was larger. It becomes
   value / clip * weight / largest_weight * Q, which stochastic rounding makes an integer: up with
   the probability of its fraction, so that the mean is right and an integer stays as it is. The
   fraction is cut to 32 bits: a site's mean is nearer to zero by less than 2^-32 of an integer.
   A block that is not weighted leaves out the factor weight / largest_weight: its sum is that of
   the values.
3. A weight is rounded to a whole number of weight steps, at least one, before it multiplies the
   vector: the sums of weight x value and of weights are of the same weights. The step is one
   wherever Q >= largest_weight.
4. The ring vector is [blocks ... | weight in steps | number of clipped values, at most Q]. Where
   that number must not be told, it is 0.

The rounding may come from an experiment's stream: it hides nothing.

Shape suffixes: D values of all blocks, L = D + 2 ring words.

    >>> ring = FixedPoint((Block("update", 3, clip=1.0),), 32, sites=2, largest_weight=100.0)
    >>> words = ring.encode(np.array([0.5, 0, -2], np.float32), 10.0, rng)
    >>> ring.decode(words)            # about DecodedSum([5, 0, -10], weight=10, clipped=1)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isfinite, sqrt

import numpy as np
from jaxtyping import Float32, Float64, UInt32

from fedhash.errors import ProtocolError
from fedhash.secagg.packing import RingBits, Words, reduced, word_dtype

__all__ = ["Block", "DecodedSum", "FixedPoint"]

_CHUNK = 1 << 15  # even; values whose temporaries of 64 bits stay in the processor's cache
_ONE = 1 << 32  # of fixed point with a fraction of 32 bits


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the vector with a clip of its own, and whether the site's weight multiplies it."""

    name: str
    length: int
    clip: float
    weighted: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class DecodedSum:
    """What the sum of ring vectors says.

    Attributes:
        vector: Sum of weight x value; of the value in blocks that are not weighted.
        weight: Sum of the weights.
        clipped: How many values were clipped, at all sites together.
    """

    vector: Float64[np.ndarray, " D"]
    weight: float
    clipped: int


@dataclass(frozen=True)
class FixedPoint:
    """The scales and the layout of a round's ring vectors; the same at every site.

    Attributes:
        blocks: In the order of the vector.
        ring_bits: Width of the ring's words.
        sites: Most ring vectors in one sum.
        largest_weight: No site weighs more.
        tells_clipped: Whether the number of clipped values is sent.

    Raises:
        ProtocolError: A clip, a length, `sites` or `largest_weight` is out of range.
    """

    blocks: tuple[Block, ...]
    ring_bits: RingBits
    sites: int
    largest_weight: float
    tells_clipped: bool = True

    def __post_init__(self) -> None:
        for block in self.blocks:
            if block.length < 1 or not 0 < block.clip < np.inf:
                raise ProtocolError(f"{block}: expected a length from 1 and a finite clip above 0")
        if not (self.sites >= 1 and self.largest >= 1 and 1 <= self.largest_weight < np.inf):
            raise ProtocolError(
                f"{self.sites} sites of weight {self.largest_weight} in {self.ring_bits} bits: "
                "expected a finite largest weight from 1, and fewer sites or a wider ring"
            )

    @property
    def largest(self) -> int:
        """Q, the size of the largest integer of one site."""
        return ((1 << (self.ring_bits - 1)) - 1) // self.sites

    @property
    def length(self) -> int:
        """L, the number of words of a ring vector."""
        return sum(block.length for block in self.blocks) + 2

    @property
    def weight_step(self) -> int:
        """Weights are multiples of this."""
        return ceil(self.largest_weight / self.largest)

    @property
    def fewest_levels(self) -> float:
        """The integer of a value at its clip, at a site of the smallest weight, one step."""
        return self.largest * self.weight_step / self.largest_weight

    def digest(self) -> str:
        """SHA-256 (hex) over blocks, ring, sites and largest weight."""
        blocks = [(block.name, block.length, block.clip, block.weighted) for block in self.blocks]
        everything: list[object] = [blocks, self.ring_bits, self.sites, self.largest_weight]
        if not self.tells_clipped:
            everything.append("clipped values untold")
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    def encode(
        self,
        vector: Float32[np.ndarray, " D"] | Float64[np.ndarray, " D"],
        weight: float,
        rng: np.random.Generator,
    ) -> Words:
        """One site's ring vector.

        Args:
            vector: All blocks, not yet multiplied by the weight.
            weight: Above 0, at most `largest_weight`.
            rng: Draws 32 bits a value.

        Raises:
            ProtocolError: The vector has another length or is not finite, or the weight is out of
                range.
        """
        if vector.shape != (self.length - 2,):
            raise ProtocolError(
                f"a vector of shape {vector.shape}, expected {self.length - 2} values; "
                "the site's model has another layout"
            )
        if not 0 < weight <= self.largest_weight:
            raise ProtocolError(
                f"a weight of {weight}, expected one above 0 and up to the agreement's "
                f"{self.largest_weight}; cap the weight before it is encoded"
            )
        steps = min(max(1, round(weight / self.weight_step)), self._largest_steps)
        whole = float(_ONE * self.largest)
        of_weight = steps * self.weight_step / self.largest_weight
        words = np.empty(self.length, word_dtype(self.ring_bits))
        integers = words.view(f"<i{words.itemsize}")  # two's complement
        clipped = 0
        for block, part in self._parts():
            name, clip, values = block.name, block.clip, vector[part]
            limit = whole * of_weight if block.weighted else whole
            largest = float(max(values.max(), -values.min()))
            if not isfinite(largest):
                raise ProtocolError(
                    f"the block {name!r} holds values that are not finite; training diverged, "
                    "lower the learning rate"
                )
            scaled = values * np.float64(limit / clip)
            if largest > 0.999 * clip:  # the product's own rounding may pass the limit as well
                clipped += int(np.count_nonzero(np.abs(values) > np.float64(clip)))
                np.clip(scaled, -limit, limit, out=scaled)
            fixed = scaled.astype(np.int64)
            fixed += _random_words(len(fixed), rng)
            integers[part] = fixed >> 32
        integers[-2:] = steps, min(clipped, self.largest) if self.tells_clipped else 0
        return words

    def decode(self, total: Words) -> DecodedSum:
        """What the sum of up to `sites` ring vectors, with all masks removed, says.

        Raises:
            ProtocolError: The sum has another length, or cannot be one of ring vectors.
        """
        if total.shape != (self.length,):
            raise ProtocolError(f"a sum of shape {total.shape}, expected {self.length} words")
        integers = reduced(total, self.ring_bits)
        steps, clipped = int(integers[-2]), int(integers[-1])
        if not (0 < steps <= self.sites * self._largest_steps and clipped >= 0):
            raise ProtocolError(
                f"a sum of weight {steps} steps with {clipped} clipped values is none of up to "
                f"{self.sites} sites: a mask was left in it; the round's sum is lost"
            )
        vector = np.empty(self.length - 2)
        for block, part in self._parts():
            np.multiply(integers[part], self._unit(block), out=vector[part])
        return DecodedSum(vector, float(steps * self.weight_step), clipped)

    def rounding_sd(self, total_weight: float, sites: int) -> dict[str, float]:
        """Most that rounding adds to a value of the weighted mean, as a standard deviation.

        Rounding to integers has a variance of at most 1/4 at each site, and an integer of the sum
        stands for clip * largest_weight / Q. Of a block that is not weighted, it is what is added
        to a value of the sum.

        Args:
            total_weight: Sum of the weights.
            sites: How many ring vectors were added.

        Returns:
            Block name to standard deviation, in the unit of the block's values.
        """
        sd = sqrt(sites) / 2
        return {
            block.name: self._unit(block) * (sd / total_weight if block.weighted else sd)
            for block in self.blocks
        }

    def step(self, block: Block) -> float:
        """What an integer of a block stands for in the block's sum."""
        return self._unit(block)

    @property
    def _largest_steps(self) -> int:
        return int(self.largest_weight // self.weight_step)

    def _unit(self, block: Block) -> float:
        """What an integer stands for in the block's sum."""
        return block.clip * (self.largest_weight if block.weighted else 1) / self.largest

    def _parts(self) -> Iterator[tuple[Block, slice]]:
        """Block and place of cache-sized parts, of one block each."""
        end = 0
        for block in self.blocks:
            start, end = end, end + block.length
            for position in range(start, end, _CHUNK):
                yield block, slice(position, min(position + _CHUNK, end))


def _random_words(count: int, rng: np.random.Generator) -> UInt32[np.ndarray, " n"]:
    """Uniform words of 32 bits, two from each draw, which takes a third less time than one each."""
    draws = rng.integers(0, _ONE * _ONE, (count + 1) // 2, np.uint64)
    return draws.view(np.uint32)[:count]
