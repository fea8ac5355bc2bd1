"""Relaxed codes: a tower's raw output drawn smoothly onto the unit ball.

`v = u / sqrt(|u|^2 + kappa^2)`: the signs of v are those of u, |v| < 1, and the derivative is
bounded by 1/sqrt(|u|^2 + kappa^2) even at u = 0, where plain normalisation explodes.

    >>> normalised(torch.tensor([[3.0, -4.0]]))   # about [[0.6, -0.8]]
"""

from __future__ import annotations

import torch
from jaxtyping import Float

__all__ = ["KAPPA", "normalised"]

KAPPA = 0.1  # small against the norm of a trained output, so that |v| is close to 1


def normalised(
    outputs_Bb: Float[torch.Tensor, "B b"], kappa: float = KAPPA
) -> Float[torch.Tensor, "B b"]:
    """Relaxed codes v of B raw outputs u."""
    return outputs_Bb / torch.sqrt(outputs_Bb.square().sum(dim=1, keepdim=True) + kappa**2)
