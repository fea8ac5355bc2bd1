"""One plain step of SGD at every site, as the step of their sum.

1. All sites start from the same model, so the weighted sum of their updates is one step along the
   weighted sum of their gradients: that of one batch that holds the batches of all.
2. Where every step takes each study of its site once, their order is all that could be drawn, and
   a sum forgets it; nothing is drawn then.

    >>> step = SummedStep(plan, model, loss, batches)
    >>> total = step.total(request)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from fedhash.errors import LEFT_FINITE_NUMBERS, ProtocolError
from fedhash.learning.local_training import learning_rate_of
from fedhash.learning.loss import Loss
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash_sim.engines.site_batches import SiteBatches

__all__ = ["SummedStep", "finite_total", "is_one_step"]

_SITES_AT_ONCE = 256
_ROWS_AT_ONCE = 8192  # of a step that takes all


def is_one_step(learning: LearningSettings) -> bool:
    """Whether the update of one step is linear in its gradient, and needs no site's own."""
    return (
        learning.optimiser == "sgd"
        and learning.momentum == 0
        and learning.gradient_clip_norm is None
        and not learning.control_variates
        and learning.normalisation_layers == "averaged"
    )


class SummedStep:
    """The sites' sum in rounds of one step; `is_one_step` must hold.

    Args:
        plan: Of the run.
        model: In which the step is computed; its parameters are overwritten.
        loss: Against the agreement's anchors.
        batches: What the sites train on.
    """

    def __init__(self, plan: RunPlan, model: HashModel, loss: Loss, batches: SiteBatches) -> None:
        self._settings, self._loss, self._batches = plan.settings, loss, batches
        self._model, self._layout = model, Layout.of(model)
        self._whole_step = batches.whole_step(plan.settings.learning.batch_patients)

    def total(self, request: TrainRequest) -> Float64[np.ndarray, " D"]:
        """The weighted sum of the sites' replies: of their updates, and of their losses.

        Raises:
            ProtocolError: It is not finite.
        """
        learning = self._settings.learning
        rate = learning_rate_of(learning, request.round_number, self._settings.rounds)
        self._layout.load(self._model, request.model)
        self._model.zero_grad()
        loss, weight = torch.zeros(()), sum(site.weight for site in self._batches.sites)
        for rows, weights in self._weighted_rows(request.round_number):
            outputs = {
                modality: self._model.encode(modality, inputs[rows])
                for modality, inputs in self._batches.inputs.items()
            }
            losses = self._batches.losses(self._loss, outputs, rows, request.margins)
            weighted = weights @ losses
            weighted.backward()  # type: ignore[no-untyped-call]
            loss += weighted.detach()
        gradients = [
            torch.zeros_like(each) if each.grad is None else each.grad
            for each in self._model.parameters()
        ]
        update = torch.cat([each.reshape(-1) for each in gradients])
        update += learning.weight_decay * weight * torch.from_numpy(request.model)
        return finite_total(torch.cat([-rate * update, loss[None]]), request.round_number)

    def _weighted_rows(
        self, round_number: int
    ) -> Iterator[tuple[Int64[torch.Tensor, " N"] | slice, Float32[torch.Tensor, " N"]]]:
        """Some rows at a time of all sites' steps, and how much each counts in their sum."""
        if self._whole_step is not None:
            for start in range(0, len(self._whole_step), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                yield rows, self._whole_step[rows]
            return
        every, patients = self._batches.sites, self._settings.learning.batch_patients
        for start in range(0, len(every), _SITES_AT_ONCE):
            sites = every[start : start + _SITES_AT_ONCE]
            ((drawn, in_site),) = self._batches.steps(
                sites, round_number=round_number, steps=1, patients=patients
            )
            of_site = torch.tensor([site.weight for site in sites])
            yield drawn.reshape(-1), (of_site[:, None] * in_site).reshape(-1)


def finite_total(
    total: Float32[torch.Tensor, " D"], round_number: int
) -> Float64[np.ndarray, " D"]:
    """The sum as rounds take it.

    Raises:
        ProtocolError: It is not finite.
    """
    if not torch.isfinite(total).all():
        raise ProtocolError(
            f"the training of round {round_number} {LEFT_FINITE_NUMBERS}; lower learning_rate or "
            "set gradient_clip_norm"
        )
    return total.double().numpy()
