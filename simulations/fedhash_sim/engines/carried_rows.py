"""What all sites carry from round to round, a row a site, in one file a round.

Shape suffixes: S sites, d parameters, n of those that stay at their site.

    >>> memory = CarriedRows(folder, plan, layout, own)
    >>> carried = memory.after(counted, request.model)
    >>> memory.keep(round_number, following, counted)      # before the round counts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import nn

from fedhash.errors import CheckpointError
from fedhash.learning.local_training import (
    FIRST_MOMENT,
    MOMENT_STEPS,
    SECOND_MOMENT,
    carried_sizes,
)
from fedhash.learning.own_layers import OWN_LAYERS
from fedhash.models.layout import Layout
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import RunPlan

__all__ = ["CarriedRows", "joined_rows", "moments", "restore_moments", "split_rows"]


class CarriedRows:
    """The memory of all sites of a run; sites count in a round together or not at all."""

    def __init__(
        self, folder: Path, plan: RunPlan, layout: Layout, own: Bool[np.ndarray, " d"]
    ) -> None:
        self._plan, self._own = plan, own
        self._sizes = carried_sizes(plan.settings.learning, layout, own)
        self._state = FileSiteState(folder)
        self._newest: tuple[int, Mapping[str, np.ndarray]] | None = None

    def after(self, counted: int, model: Float32[np.ndarray, " d"]) -> Mapping[str, np.ndarray]:
        """What all sites carry after a round; before the first, zeros and the model's own layers.

        Raises:
            CheckpointError: It is gone.
        """
        if self._newest is not None and self._newest[0] == counted:
            return self._newest[1]
        if counted == 0 or not self._sizes:
            rows = len(self._plan.sites)
            carried = {
                name: np.zeros((rows, size), np.float32) for name, size in self._sizes.items()
            }
            if OWN_LAYERS in carried:
                carried[OWN_LAYERS][:] = model[self._own]
            return carried
        kept = self._state.carried(self._plan.run_id, counted)
        if kept is None:
            raise CheckpointError(
                f"what the sites carried after round {counted} of {self._plan.run_id!r} is gone; "
                "remove the run's folder, or choose another --out"
            )
        self._newest = (counted, kept)
        return kept

    def keep(self, round_number: int, following: Mapping[str, np.ndarray], counted: int) -> None:
        """Store what they carry after `round_number`; of the others only `counted` stays."""
        if following:
            self._state.keep(self._plan.run_id, round_number, following, counted_round=counted)
            self._newest = (round_number, following)


def split_rows(matrix: Float32[np.ndarray, "S d"], layout: Layout) -> list[torch.Tensor]:
    """A tensor a parameter, a row a site."""
    whole = torch.from_numpy(matrix)
    return [
        whole[:, offset : offset + prod(shape)].reshape(-1, *shape)
        for _, shape, offset in layout.entries
    ]


def joined_rows(tensors: Sequence[torch.Tensor]) -> Float32[np.ndarray, "S _"]:
    """The inverse of `split_rows`."""
    return torch.cat([each.detach().flatten(1) for each in tensors], dim=1).numpy()


def restore_moments(
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    carried: Mapping[str, np.ndarray],
    layout: Layout,
) -> None:
    """Give AdamW what sites of equally many steps carry; nothing where they carry no moments."""
    if FIRST_MOMENT not in carried or not carried[MOMENT_STEPS].any():
        return
    first, second = (split_rows(carried[name], layout) for name in (FIRST_MOMENT, SECOND_MOMENT))
    for place, parameter in enumerate(parameters):
        optimiser.state[parameter] = {
            "step": torch.tensor(carried[MOMENT_STEPS][0, place]),  # a group has made the same
            "exp_avg": first[place].contiguous(),
            "exp_avg_sq": second[place].contiguous(),
        }


def moments(
    optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> dict[str, np.ndarray]:
    """AdamW's moments, for the next round."""
    states = [optimiser.state[parameter] for parameter in parameters]
    steps = np.array([float(each["step"]) for each in states], np.float32)
    return {
        FIRST_MOMENT: joined_rows([each["exp_avg"] for each in states]),
        SECOND_MOMENT: joined_rows([each["exp_avg_sq"] for each in states]),
        MOMENT_STEPS: np.tile(steps, (len(parameters[0]), 1)),
    }
