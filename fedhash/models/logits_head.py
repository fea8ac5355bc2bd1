"""K logits a tower, and the published map from them to b bits.

Under privacy, noise falls on every output that is trained. A tower with this head has one output a
finding, K in place of b; what turns them into codes is published and learns nothing.

Shape suffixes: B batch, K findings, b bits.

1. Training sees u = logits A, so a loss against the anchors reads the logits back: A u / b are the
   logits themselves where the anchors are orthogonal.
2. A code comes from w = softmax(logits / temperature) and the mean anchor z = w A in [-1, 1]^b: bit
   j is set where z_j exceeds a threshold in (-1, 1). A sure study has the code of its finding.
3. The thresholds are evenly spread, and each study has others: they are phases of its own logits.
   Those of two studies are as good as independent, so a bit of both is equal with probability
   (1 + z_j z'_j) / 2, and the expected Hamming distance is b/2 (1 - <w, w'>) for orthogonal
   anchors. It falls with the probability that both show the same finding, which is what a ranking
   wants; thresholds that all studies share would rank by the difference of w and w' instead, and
   put the unsure before the sure.
4. Bits whose anchors' columns are equal share out the range among themselves, in an order that the
   phases give: the number of set bits is then nearly certain, and the distance less noisy.

    >>> head = LogitsHead(Anchors.build(agreement), temperature=0.75)
    >>> bits = head.code_outputs(logits) > 0
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Float64

from fedhash.models.anchors import Anchors

__all__ = ["LogitsHead"]

_FREQUENCY = 4.0  # turns of a phase for a change of 1 in a logit


class LogitsHead:
    """The map that K logits take to b bits.

    Attributes:
        outputs: K, what a tower has to give.
    """

    def __init__(self, anchors: Anchors, temperature: float) -> None:
        self.outputs = len(anchors.findings)
        self._temperature = temperature
        self._matrix_Kb = torch.from_numpy(anchors.matrix).float()
        self._directions_Kb, self._offsets_b = _phases(anchors)
        _, group_of_b = np.unique(anchors.matrix, axis=1, return_inverse=True)
        groups = [np.flatnonzero(group_of_b == group) for group in np.unique(group_of_b)]
        self._groups = [torch.from_numpy(group) for group in groups]

    def raw_outputs(self, logits: Float[torch.Tensor, "B K"]) -> Float[torch.Tensor, "B b"]:
        """u, which the losses read."""
        return logits @ self._matrix_Kb

    def code_outputs(self, logits: Float[torch.Tensor, "B K"]) -> Float[torch.Tensor, "B b"]:
        """What the codes are the signs of."""
        weights = torch.softmax(logits / self._temperature, dim=1)
        return weights @ self._matrix_Kb - self._thresholds(logits)

    def _thresholds(self, logits: Float[torch.Tensor, "B K"]) -> Float[torch.Tensor, "B b"]:
        """Rules 3 and 4; in float64, for whole turns are dropped."""
        phases = torch.remainder(logits.double() @ self._directions_Kb + self._offsets_b, 1)
        shares = torch.empty_like(phases)
        for group in self._groups:
            ranks = phases[:, group].argsort(dim=1).argsort(dim=1)
            if len(group) > 1:
                shares[:, group] = (ranks.double() + 0.5) / len(group)
            else:
                shares[:, group] = phases[:, group]
        return (2 * shares - 1).float()


def _phases(
    anchors: Anchors,
) -> tuple[Float64[torch.Tensor, "K b"], Float64[torch.Tensor, " b"]]:
    """Published directions, uniform in +-`_FREQUENCY`, and offsets in [0, 1)."""
    findings, bits = anchors.matrix.shape
    named = f"phases of a head of logits {anchors.digest()}".encode()
    content = hashlib.shake_256(named).digest(8 * (findings + 1) * bits)
    uniforms = np.frombuffer(content, dtype="<u8").reshape(findings + 1, bits) / 2.0**64
    directions = torch.from_numpy((2 * uniforms[1:] - 1) * _FREQUENCY)
    return directions, torch.from_numpy(uniforms[0].copy())
