"""A round's training at one site.

Shape suffix: d parameters of the whole model.

1. Each step's gradient comes from the `GradientSource`, which alone reads the patients' data. All
   that is done here with a gradient is post-processing: it leaks nothing that the gradient did not.
2. The result depends on the model, the studies, the settings, the generator and the source alone.
   The global generator is left as it was.
3. Control variates (SCAFFOLD, arXiv 1910.06378): the optimiser is fed g - c_i + c, where c_i is
   the site's mean gradient in its last round and c the mean of all sites' c_i, weighted as the
   round's sum is. The new c_i is the mean of the raw g over the round's steps. For plain SGD that
   equals the paper's option II, c_i - c + (x - y_i) / (steps learning_rate); unlike it, the mean
   also serves AdamW, momentum and weight decay.
4. FedProx's pull and the correction are added after the source has clipped: they depend on no
   patient. Where the source adds noise, c_i is the mean of the noised gradients.
5. What a site carries from one round to the next (its control variate, AdamW's moments, layers of
   its own) goes in and comes out as named arrays; the caller keeps them and sends them to nobody.
6. The update is zero where layers stay at the site (`fedhash.learning.own_layers`).

    >>> result = train_locally(
    ...     model, studies, loss, LearningSettings(), margins=margins, round_number=1,
    ...     rounds_total=30, shared_control=np.zeros(layout.size, np.float32), carried={},
    ...     most_steps=1000, generator=generator, source=NoPrivacy(),
    ... )
    >>> vector, carried = vector + result.update, result.carried
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import ceil, cos, isfinite, pi

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from fedhash.errors import DivergedError, ModelError
from fedhash.learning.gradients import GradientSource, check_modalities
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.own_layers import OWN_LAYERS, own_places, with_own_layers
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.randomness import global_torch_stream

__all__ = [
    "CONTROL",
    "FIRST_MOMENT",
    "MOMENT_STEPS",
    "SECOND_MOMENT",
    "LocalResult",
    "carried_names",
    "carried_sizes",
    "learning_rate_of",
    "local_optimiser",
    "planned_steps",
    "train_locally",
]

# names of what a site carries
CONTROL = "control"
FIRST_MOMENT = "first_moment"
SECOND_MOMENT = "second_moment"
MOMENT_STEPS = "moment_steps"  # one a parameter tensor, as torch counts them


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a site brings back from its training.

    Attributes:
        update: The model after minus the model before; in float64 where it was not rounded to the
            model's own type.
        control_delta: The new c_i minus the old; None without control variates.
        steps: Optimiser steps done.
        mean_loss: Mean patient loss over all steps; None where the source must not tell it.
        carried: What the site's next round starts from, for the caller to keep.
        statistics: The margin statistics of the round's first model, where it carries them
            (`fedhash.privacy.margin_statistics`).
    """

    update: Float32[np.ndarray, " d"] | Float64[np.ndarray, " d"]
    control_delta: Float32[np.ndarray, " d"] | None
    steps: int
    mean_loss: float | None
    carried: Mapping[str, np.ndarray]
    statistics: Float32[np.ndarray, " four_K"] | None = None


def planned_steps(patients: int, settings: LearningSettings) -> int:
    """Optimiser steps of one round at a site of so many patients."""
    if settings.local_epochs is None:
        return settings.local_steps or 0  # the settings hold one of the two
    return settings.local_epochs * ceil(patients / settings.batch_patients)


def carried_names(settings: LearningSettings) -> frozenset[str]:
    """Names of the arrays that a site carries from round to round."""
    control = {CONTROL} if settings.control_variates else set()
    moments = {FIRST_MOMENT, SECOND_MOMENT, MOMENT_STEPS} if _keeps_moments(settings) else set()
    layers = {OWN_LAYERS} if settings.normalisation_layers == "own" else set()
    return frozenset(control | moments | layers)


def carried_sizes(
    settings: LearningSettings, layout: Layout, own: Bool[np.ndarray, " d"]
) -> dict[str, int]:
    """The lengths of these arrays; `own` as `own_places` tells it."""
    special = {MOMENT_STEPS: len(layout.entries), OWN_LAYERS: int(own.sum())}
    return {name: special.get(name, layout.size) for name in carried_names(settings)}


def learning_rate_of(settings: LearningSettings, round_number: int, rounds_total: int) -> float:
    """The learning rate of a round; rounds count from 1.

    Raises:
        ModelError: The round lies outside 1..rounds_total.
    """
    if not 1 <= round_number <= rounds_total:
        raise ModelError(
            f"round {round_number} of {rounds_total} was asked for; rounds count from 1"
        )
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 + cos(pi * (round_number - 1) / rounds_total)) / 2


def train_locally(
    model: HashModel,
    studies: PreparedStudies,
    loss: Loss,
    settings: LearningSettings,
    *,
    margins: Margins,
    round_number: int,
    rounds_total: int,
    shared_control: Float32[np.ndarray, " d"] | None,
    carried: Mapping[str, np.ndarray],
    most_steps: int,
    generator: torch.Generator,
    source: GradientSource,
) -> LocalResult:
    """Train `model` in place for one round.

    Args:
        model: Holds the round's first model, the coordinator's; holds the trained one afterwards.
        studies: The site's own, prepared by a model of the same settings.
        loss: Against the agreement's anchors.
        settings: Amount of work, optimiser and corrections.
        margins: The round's.
        round_number: From 1.
        rounds_total: For the schedule of the learning rate.
        shared_control: c, exactly when `settings.control_variates`.
        carried: From the result of the site's last round; empty before its first.
        most_steps: The round is cut short after so many.
        generator: Draws the batches; advanced by this call.
        source: Of the gradients.

    Raises:
        DataError: There is no study, or one without a positive finding (from the source).
        ModelError: The control variates, what is carried or the studies' modalities do not fit,
            or the round number is wrong.
        DivergedError: The loss or the update is not finite.
        FedhashError: The source refuses.
    """
    layout, own = Layout.of(model), own_places(model, settings)
    _check_fits(model, studies, settings, shared_control)
    _check_carried(carried, carried_sizes(settings, layout, own))
    own_control = carried.get(CONTROL, np.zeros(layout.size, dtype=np.float32))
    before = with_own_layers(layout.flatten(model), own, carried)
    layout.load(model, before)
    first = layout.split(before)
    parameters = list(model.parameters())
    gradient_sums = [torch.zeros_like(parameter) for parameter in parameters]
    corrections = None if shared_control is None else layout.split(shared_control - own_control)
    optimiser = local_optimiser(parameters, settings, round_number, rounds_total)
    if FIRST_MOMENT in carried:
        _restore_moments(optimiser, carried, layout)
    steps = min(planned_steps(len(set(studies.patient_ids)), settings), most_steps)
    losses: list[float] = []

    gradients = source.gradients(
        model, studies, loss, settings, margins=margins, steps=steps, generator=generator
    )
    for_random_layers = int(torch.randint(2**62, (), generator=generator))
    with global_torch_stream(for_random_layers), closing(gradients):
        model.train()
        for mean_loss in gradients:
            if mean_loss is not None:
                losses.append(_finite(mean_loss, len(losses) + 1, round_number))
            for place, parameter in enumerate(parameters):
                gradient = parameter.grad
                if gradient is None:
                    continue
                gradient_sums[place] += gradient
                if corrections is not None:
                    gradient += corrections[place]
                if settings.proximal_weight:
                    gradient += settings.proximal_weight * (parameter.detach() - first[place])
            optimiser.step()

    after = layout.flatten(model)
    update = after - before
    if not np.isfinite(update).all():
        raise DivergedError(
            f"round {round_number} ended in values that are not finite; lower learning_rate or set "
            "gradient_clip_norm"
        )
    update[own] = 0
    control_delta = None
    following: dict[str, np.ndarray] = {}
    if settings.normalisation_layers == "own":
        following[OWN_LAYERS] = after[own]
    if shared_control is not None:
        gradient_sum = torch.cat([part.reshape(-1) for part in gradient_sums]).numpy()
        following[CONTROL] = gradient_sum / np.float32(steps)
        following[CONTROL][own] = 0
        control_delta = following[CONTROL] - own_control
    if _keeps_moments(settings):
        following |= _moments(optimiser, parameters)
    told = sum(losses) / steps if losses else None
    return LocalResult(update, control_delta, steps, told, following)


def _keeps_moments(settings: LearningSettings) -> bool:
    return settings.optimiser == "adamw" and settings.moments == "kept"


def _moments(
    optimiser: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
) -> dict[str, np.ndarray]:
    """AdamW's moments as flat vectors; a parameter without a gradient so far has none yet."""

    def flat(name: str) -> np.ndarray:
        parts = [
            optimiser.state[parameter].get(name, torch.zeros_like(parameter)).reshape(-1)
            for parameter in parameters
        ]
        return torch.cat(parts).numpy()

    steps = [float(optimiser.state[parameter].get("step", 0)) for parameter in parameters]
    return {
        FIRST_MOMENT: flat("exp_avg"),
        SECOND_MOMENT: flat("exp_avg_sq"),
        MOMENT_STEPS: np.array(steps, dtype=np.float32),
    }


def _restore_moments(
    optimiser: torch.optim.Optimizer, carried: Mapping[str, np.ndarray], layout: Layout
) -> None:
    first, second = (layout.split(carried[name]) for name in (FIRST_MOMENT, SECOND_MOMENT))
    parameters = optimiser.param_groups[0]["params"]
    for place, parameter in enumerate(parameters):
        optimiser.state[parameter] = {
            "step": torch.tensor(carried[MOMENT_STEPS][place]),
            "exp_avg": first[place].clone(),
            "exp_avg_sq": second[place].clone(),
        }


def local_optimiser(
    parameters: list[torch.nn.Parameter],
    settings: LearningSettings,
    round_number: int,
    rounds_total: int,
) -> torch.optim.Optimizer:
    """A site's optimiser for one round, without moments."""
    rate = learning_rate_of(settings, round_number, rounds_total)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(
            parameters, lr=rate, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def _finite(loss: float, step: int, round_number: int) -> float:
    if not isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} in step {step} of round {round_number}; lower learning_rate or "
            "set gradient_clip_norm"
        )
    return loss


def _check_fits(
    model: HashModel,
    studies: PreparedStudies,
    settings: LearningSettings,
    shared_control: Float32[np.ndarray, " d"] | None,
) -> None:
    check_modalities(model, studies)
    if (shared_control is not None) != settings.control_variates:
        found = "no shared control" if shared_control is None else "a shared control"
        raise ModelError(
            f"control_variates is {settings.control_variates}, but {found} was given; pass one "
            "(zeros before the first round) exactly when the setting is true"
        )


def _check_carried(carried: Mapping[str, np.ndarray], expected: Mapping[str, int]) -> None:
    sizes = {name: carried[name].size for name in sorted(carried)}
    if carried and sizes != expected:
        raise ModelError(
            f"the site carries arrays of the sizes {sizes}, these settings need "
            f"{dict(sorted(expected.items()))}; start a new run, or go on with the settings of "
            "this one"
        )
