"""What must hold for a clipped gradient to bound a patient's influence; told with the remedy.

Noise of sigma C hides a change of at most C in a step's sum. Taking one patient away changes the
sum by that patient's clipped gradient, at most C, **and by nothing else** only where no other
patient's gradient depends on this one. With negatives from the batch the others' gradients turn,
each by up to 2 C, so a batch of n can change by (2 n - 1) C (`fedhash-sim audit sensitivity`).

    >>> check_sound(model, loss, settings.learning)
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedhash.configuration import KeyPath
from fedhash.errors import PrivacyError
from fedhash.learning.loss import Loss
from fedhash.learning.losses import PRIVATE_LOSSES
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel

__all__ = [
    "check_sound",
    "learning_problems",
    "loss_problem",
    "one_step_problems",
    "prototypes_problem",
]


def check_sound(model: HashModel, loss: Loss, settings: LearningSettings) -> None:
    """Refuse what breaks the bound; leaves the model as it is, in its training mode.

    Raises:
        PrivacyError: Loss, towers or training break the bound; tells all of it.
    """
    problems = [message for _, message in learning_problems(settings)]
    if not loss.sum_of_patient_terms:
        problems.insert(0, loss_problem(type(loss).__name__))
    if model.prototypes is not None:
        problems.append(prototypes_problem())
    problems += _module_problems(model) or _mixing_problems(model)
    if problems:
        raise PrivacyError("\n".join(problems))


def loss_problem(name: str) -> str:
    """Why a loss that is no sum of patient terms is refused."""
    return (
        f"the loss {name} takes a patient's gradient from other patients of the batch too, so "
        "clipping bounds nobody's influence: one patient more changes all the others' gradients "
        "(see 'fedhash-sim audit sensitivity'); use a sum of patient terms: "
        f"{', '.join(PRIVATE_LOSSES)}"
    )


def prototypes_problem() -> str:
    """Why learned prototypes are refused, although their loss is a sum of patient terms."""
    return (
        "the loss learned_prototypes trains prototypes that stand in no layer, and gradients are "
        "formed and clipped patient by patient in layers alone; use one of "
        f"{', '.join(PRIVATE_LOSSES)}"
    )


def learning_problems(settings: LearningSettings) -> list[tuple[KeyPath, str]]:
    """Settings of the local training that tell about patients, with their keys."""
    problems: list[tuple[KeyPath, str]] = []
    if settings.local_epochs is not None:
        message = (
            f"local_epochs is {settings.local_epochs}: the steps of a pass, and so their noise, "
            "would depend on the number of patients; set local_steps and local_epochs: null"
        )
        problems.append((("local_epochs",), message))
    if settings.gradient_clip_norm is not None:
        message = (
            f"gradient_clip_norm is {settings.gradient_clip_norm} and clips a whole batch, which "
            "bounds no patient's influence; set it to null, privacy.clip_norm clips each patient"
        )
        problems.append((("gradient_clip_norm",), message))
    return problems


_COORDINATOR = ", and coordinator_optimiser to what the coordinator shall do with the sum"


def one_step_problems(settings: LearningSettings) -> list[tuple[KeyPath, str]]:
    """Settings that mean nothing where a site sums gradients once a round, with their keys."""
    wanted: dict[str, object] = {
        "local_steps": 1,
        "optimiser": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "control_variates": False,
        "proximal_weight": 0.0,
        "normalisation_layers": "averaged",
    }
    return [
        (
            (name,),
            f"{name} is {getattr(settings, name)}: a site sends one sum of clipped gradients a "
            f"round and takes no step itself; set it to {str(value).lower()}"
            + (_COORDINATOR if name in {"optimiser", "momentum"} else ""),
        )
        for name, value in wanted.items()
        if getattr(settings, name) != value
    ]


def _module_problems(model: HashModel) -> list[str]:
    problems = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, _BatchNorm):  # torch derives InstanceNorm from another class
            problems.append(
                f"{name} is a {kind}: a patient's output depends on the batch's statistics; use "
                "GroupNorm or LayerNorm"
            )
        elif isinstance(module, _DropoutNd) and module.p > 0:
            problems.append(
                f"{name} is a {kind} of {module.p}: its masks go by the place in the batch and "
                "come from no secret, so one patient more changes the others' gradients; set the "
                "tower's option dropout to 0"
            )
        elif any(p.requires_grad for p in module.parameters(recurse=False)) and any(
            True for _ in module.buffers(recurse=False)
        ):
            problems.append(
                f"{name} is a {kind} with a buffer beside its parameters, which may keep what it "
                "saw of patients; use a module without buffers"
            )
    return problems


def _mixing_problems(model: HashModel) -> list[str]:
    """Towers in which one row's output depends on another row, by their derivatives at a point."""
    problems = []
    for modality in model.modalities:
        shape = model.tower(modality).prepared_shape
        rows = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        rows.requires_grad_()
        with torch.enable_grad():
            first = model.encode(modality, rows)[0].sum()
        (slope,) = torch.autograd.grad(first, rows)
        if slope[1:].any():
            problems.append(
                f"the tower for {modality!r} lets a patient's output depend on other patients of "
                "the batch; treat every row by itself"
            )
    return problems
