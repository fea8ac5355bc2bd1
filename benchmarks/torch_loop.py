"""A plain loop over the sites in PyTorch, which does little but the step: for `make bench-sim`.

A hundred sites one after another take one step of SGD on eight fixed rows, by a network of the
layers of the tower `image_hog` and plain cross-entropy, and their updates are added up. No site is
checked, draws, clips or carries anything, and nobody aggregates.

    >>> TorchLoop(features=288, hidden=27, sites=100).round()
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

__all__ = ["TorchLoop"]

_OUTPUTS, _CLASSES, _ROWS, _RATE = 64, 10, 8, 0.1


class TorchLoop:
    """The sites' rows, and one network in which they train in turn."""

    def __init__(self, features: int, hidden: int, sites: int) -> None:
        self._network = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, _OUTPUTS),
        )
        self._parameters = list(self._network.parameters())
        self._first = [each.detach().clone() for each in self._parameters]
        self._rows = torch.rand(sites, _ROWS, features)
        self._classes = torch.randint(_CLASSES, (sites, _ROWS))

    @torch.no_grad()
    def round(self) -> None:
        """Every site's step, and a step of the first model along the mean of their updates."""
        sums = [torch.zeros_like(each) for each in self._first]
        for rows, classes in zip(self._rows, self._classes, strict=True):
            for parameter, first in zip(self._parameters, self._first, strict=True):
                parameter.copy_(first)
            with torch.enable_grad():
                loss = cross_entropy(self._network(rows), classes)
            gradients = torch.autograd.grad(loss, self._parameters)
            for parameter, gradient, first, total in zip(
                self._parameters, gradients, self._first, sums, strict=True
            ):
                parameter.sub_(gradient, alpha=_RATE)
                total.add_(parameter).sub_(first)
        for first, total in zip(self._first, sums, strict=True):
            first.add_(total, alpha=1 / len(self._rows))
