"""The in-batch contrastive loss between modalities (InfoNCE, as in CLIP, arXiv 2103.00020).

A baseline. It pulls a patient's own image and report together and pushes those of all others in
the batch away, so a patient's loss depends on who else is in the batch: no bound on a patient's
influence follows from clipping it, and `fedhash.privacy` refuses it.

Shape suffixes: B batch, b bits.

With v and w the relaxed codes of two modalities and T the temperature, over the patients that have
both:

    l_i = 1/2 log sum_j exp((<v_i, w_j> - <v_i, w_i>) / T)
        + 1/2 log sum_j exp((<v_j, w_i> - <v_i, w_i>) / T)      summed over the pairs of modalities

CLIP learns T, here it is fixed; and CLIP has no softening kappa.

    >>> loss = ContrastiveLoss(anchors, LossSettings(name="contrastive"))
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.errors import ModelError
from fedhash.learning.loss import Margins
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["ContrastiveLoss"]


class ContrastiveLoss:
    """A row a patient, each of which depends on the whole batch; reads no labels and no anchors."""

    sum_of_patient_terms: ClassVar[bool] = False

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:  # noqa: ARG002 - as all
        self._kappa = settings.value("kappa")
        self._temperature = settings.value("temperature")

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`.

        Raises:
            ModelError: There are fewer than two modalities.
        """
        if len(outputs) < 2:
            raise ModelError(
                f"the contrastive loss pairs modalities, and the model has {sorted(outputs)} only; "
                "add a tower, or set loss.name: anchor_margin"
            )
        codes = {name: normalised(raw, self._kappa) for name, raw in outputs.items()}
        total = torch.zeros(len(labels))
        for one, other in combinations(sorted(codes), 2):
            products = codes[one] @ codes[other].T / self._temperature
            both = present[one] & present[other]
            total = total + (_term(products, both) + _term(products.T, both)) / 2
        return total


def _term(
    products: Float[torch.Tensor, "B B"], both: Bool[torch.Tensor, " B"]
) -> Float[torch.Tensor, " B"]:
    """Cross-entropy of each row against its own column; 0 for patients who lack a modality."""
    # a row of zeros keeps patients without both modalities finite, and `where` drops it
    logits = products.masked_fill(~both, -torch.inf).masked_fill(~both[:, None], 0.0)
    return torch.where(both, torch.logsumexp(logits, dim=1) - logits.diagonal(), 0.0)
