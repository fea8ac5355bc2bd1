"""The trainable part of towers with a fixed front end: one hidden layer.

>>> perceptron(inputs=576, hidden=256, outputs=64)
"""

from __future__ import annotations

from torch import nn

__all__ = ["perceptron"]


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Map inputs -> hidden -> outputs, with LayerNorm on the hidden layer."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )
