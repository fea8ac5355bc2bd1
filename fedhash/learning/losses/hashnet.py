"""HashNet: weighted pairwise likelihood by continuation (Cao et al., arXiv 1702.00758, section 3).

A baseline. It compares the patients of a batch with each other, so no bound on a patient's
influence follows from clipping, and `fedhash.privacy` refuses it.

Shape suffixes: B batch, b bits, R rows of all modalities.

With s_ij 1 for the similar pairs S_1 and 0 for the dissimilar ones S_0
(`fedhash.learning.losses.pairs`), S both, Y_i the positive findings of a row, and R rows:

    h_i = tanh(beta u_i)         theta_ij = alpha <h_i, h_j>
    w_ij = |S|/|S_1| |Y_i n Y_j|/|Y_i u Y_j| if similar, |S|/|S_0| if dissimilar
    L = R/|S| sum_ij w_ij (log(1 + exp(theta_ij)) - s_ij theta_ij)

Continuation: beta grows, so that tanh turns into sign. It is sqrt(1 + 50 p) after the share p of
the rounds, as the authors' code has it over its 10,000 steps, and constant within a round.

What differs from the paper: the pairs, and so the weights, are those of the batch, not of all
training data; modalities pair too; beta starts at 1 and ends near 7, where the paper's algorithm
goes on to infinity. alpha is 10/b, as in the authors' code.

    >>> loss = HashNetLoss(anchors, LossSettings(name="hashnet"), progress=0.5)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8
from torch.nn.functional import softplus

from fedhash.learning.loss import Margins
from fedhash.learning.losses.pairs import Pairs
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["HashNetLoss"]

_GROWTH = 50.0  # gamma .005 times 10,000 steps, in the authors' code


class HashNetLoss:
    """A row a patient, each of which depends on the whole batch; reads no anchors, no margins.

    Args:
        progress: Share of the run's rounds that are over, from 0 to 1.
    """

    sum_of_patient_terms: ClassVar[bool] = False

    def __init__(self, anchors: Anchors, settings: LossSettings, progress: float = 0.0) -> None:
        self._alpha = settings.value("scale", 10 / anchors.matrix.shape[1])
        self._beta = sqrt(1 + _GROWTH * progress)

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        pairs = Pairs.of(outputs, present, labels)
        codes_Rb = torch.tanh(self._beta * pairs.outputs)
        theta_RR = self._alpha * codes_Rb @ codes_Rb.T
        # softplus(-theta) is softplus(theta) - theta without its rounding
        likelihood_RR = softplus(torch.where(pairs.similar, -theta_RR, theta_RR))
        return pairs.per_patient(_weights(pairs) * likelihood_RR)


def _weights(pairs: Pairs) -> Float[torch.Tensor, "R R"]:
    """w_ij; similar and dissimilar pairs weigh the same in all, however many they are."""
    positive_RK = pairs.positive.float()
    count_R = positive_RK.sum(dim=1)
    shared_RR = positive_RK @ positive_RK.T
    union_RR = count_R[:, None] + count_R - shared_RR
    # 1 where nothing is shared: dissimilar pairs, and modalities of a study without a finding
    overlap_RR = torch.where(shared_RR > 0, shared_RR / union_RR.clamp(min=1), 1.0)
    similar, dissimilar = pairs.similar.sum(), pairs.dissimilar.sum()
    size_RR = torch.where(pairs.similar, similar, dissimilar).clamp(min=1)
    return overlap_RR * (similar + dissimilar) / size_RR
