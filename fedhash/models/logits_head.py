"""K logits a tower, and the published map from them to b bits.

Under privacy, noise falls on every output that is trained. A tower with this head has one output a
finding, K in place of b; what turns them into codes is published and learns nothing.

Shape suffixes: B batch, K findings, b bits.

1. Training sees u = logits A, so a loss against the anchors reads the logits back: A u / b are the
   logits themselves where the anchors are orthogonal.
2. Codes come from w = softmax(logits / temperature) and the mean anchor w A, whose bit j is set
   where it exceeds the threshold t_j in (-1, 1). A sure study has the code of its finding; a study
   between two findings has bits of both, in the proportion of w: the expected Hamming distance of
   two codes grows with the distance of their w.
3. The thresholds are van der Corput's sequence in base 2, any part of which spreads evenly, dealt
   to the bits in the order of the anchors' columns: bits whose columns are equal cut the range of
   w A evenly among themselves.

    >>> head = LogitsHead(Anchors.build(agreement), temperature=0.5)
    >>> bits = head.code_outputs(logits) > 0
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32

from fedhash.models.anchors import Anchors

__all__ = ["LogitsHead"]


class LogitsHead:
    """The map that K logits take to b bits.

    Attributes:
        outputs: K, what a tower has to give.
    """

    def __init__(self, anchors: Anchors, temperature: float) -> None:
        self.outputs = len(anchors.findings)
        self._temperature = temperature
        self._matrix_Kb = torch.from_numpy(anchors.matrix).float()
        self._thresholds_b = torch.from_numpy(_thresholds(anchors))

    def raw_outputs(self, logits: Float[torch.Tensor, "B K"]) -> Float[torch.Tensor, "B b"]:
        """u, which the losses read."""
        return logits @ self._matrix_Kb

    def code_outputs(self, logits: Float[torch.Tensor, "B K"]) -> Float[torch.Tensor, "B b"]:
        """What the codes are the signs of."""
        weights = torch.softmax(logits / self._temperature, dim=1)
        return weights @ self._matrix_Kb - self._thresholds_b


def _thresholds(anchors: Anchors) -> Float32[np.ndarray, " b"]:
    columns_bK = anchors.matrix.T
    digits = (len(columns_bK) - 1).bit_length()
    points = [int(f"{place:0{digits}b}"[::-1], 2) for place in range(len(columns_bK))]
    thresholds = np.empty(len(columns_bK), dtype=np.float32)
    thresholds[np.lexsort(columns_bK.T)] = (2 * np.array(points) + 1) / 2**digits - 1
    return thresholds
