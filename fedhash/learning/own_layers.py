"""Normalisation layers that stay at their site (FedBN, Li et al., arXiv 2102.07623, section 3).

FedBN averages a model but for its batch normalisation, so that what differs between scanners and
laboratories is evened out where it arises. Towers here have no batch normalisation, whose running
statistics no layout takes (`fedhash.models.layout`); what stays is the scale and shift of their
GroupNorm and LayerNorm.

1. A site's update is zero at these parameters. So the coordinator's vector keeps them as they were
   in the first model, whatever its optimiser, and a secure sum adds zeros there.
2. A site's first round starts from those of the coordinator's vector, every later one from what the
   site carries from the round that last counted.
3. Control variates are zero there: layers that nobody averages cannot drift from a mean. FedProx
   pulls them to where they stood when the round began.
4. The model of a site is the coordinator's vector with the site's own layers. Without them it is
   nobody's model, and no release is made of it.

Shape suffixes: d parameters of the whole model, n of those that stay.

    >>> own = own_places(model, settings.learning)
    >>> vector = with_own_layers(request.model, own, carried)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32
from torch import nn

from fedhash.learning.settings import LearningSettings

__all__ = ["OWN_LAYERS", "own_places", "with_own_layers"]

OWN_LAYERS = "own_layers"  # among what a site carries: n numbers, in the order of the layout


def own_places(model: nn.Module, settings: LearningSettings) -> Bool[np.ndarray, " d"]:
    """Which parameters stay at their site: none where normalisation layers are averaged."""
    staying: set[int] = set()
    if settings.normalisation_layers == "own":
        staying = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.GroupNorm | nn.LayerNorm)
            for parameter in module.parameters()
        }
    return np.concatenate(
        [np.full(each.numel(), id(each) in staying) for each in model.parameters()]
    )


def with_own_layers(
    vector: Float32[np.ndarray, " d"],
    own: Bool[np.ndarray, " d"],
    carried: Mapping[str, np.ndarray],
) -> Float32[np.ndarray, " d"]:
    """A copy of the vector with the layers that a site carries; itself where the site has none."""
    if OWN_LAYERS not in carried:
        return vector
    mixed = vector.copy()
    mixed[own] = carried[OWN_LAYERS]
    return mixed
