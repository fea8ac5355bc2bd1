"""DPSH: the likelihood of pairwise labels (Li, Wang and Kang, arXiv 1511.03855, section 3).

A baseline. It compares the patients of a batch with each other, so no bound on a patient's
influence follows from clipping, and `fedhash.privacy` refuses it.

Shape suffixes: B batch, b bits, R rows of all modalities.

With u a row's raw output, s_ij 1 for similar rows and 0 for dissimilar ones
(`fedhash.learning.losses.pairs`), and R, |S| the numbers of rows and of pairs:

    theta_ij = <u_i, u_j> / 2
    L = R/|S| sum_ij (log(1 + exp(theta_ij)) - s_ij theta_ij) + gamma/b sum_i |sign(u_i) - u_i|^2

What differs from the paper: pairs are those of the batch, not of all training data, and modalities
pair too; both sums are means, so that gamma does not hang on the amount of data. The authors' code
has eta = 10 beside pairs with each of 5000 images, which weighs 10/5000 = .002, as gamma = .1 does
at 48 bits. At u = 0 the quantisation term has no slope.

    >>> loss = DpshLoss(anchors, LossSettings(name="dpsh"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8
from torch.nn.functional import softplus

from fedhash.learning.loss import Margins
from fedhash.learning.losses.pairs import Pairs
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["DpshLoss"]


class DpshLoss:
    """A row a patient, each of which depends on the whole batch; reads no anchors, no margins."""

    sum_of_patient_terms: ClassVar[bool] = False

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:  # noqa: ARG002 - as all
        self._gamma = settings.value("gamma")

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        pairs = Pairs.of(outputs, present, labels)
        theta_RR = pairs.outputs @ pairs.outputs.T / 2
        # softplus(-theta) is softplus(theta) - theta without its rounding
        likelihood_B = pairs.per_patient(softplus(torch.where(pairs.similar, -theta_RR, theta_RR)))
        bits_off_R = (pairs.outputs.sign() - pairs.outputs).square().mean(dim=1)
        return likelihood_B + self._gamma * pairs.summed(bits_off_R)
