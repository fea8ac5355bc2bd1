"""The hash model: one tower a modality, all ending in the same b bits.

Shape suffixes: B batch, N studies, b bits.

1. The first parameters depend on the seed, the modality and the settings alone: each tower draws
   from a stream of its own, and the global generator stays as it was.
2. Towers share no parameters; what they share is the anchors that they are trained against.

    >>> settings = ModelSettings(towers={"report": TowerSettings(name="report_ngrams")})
    >>> model = build_model(settings, code_bits=64, seed=7)
    >>> outputs = model.encode("report", model.tower("report").prepare(["Clear lungs."]))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import ValidationError
from torch import nn

from fedhash.codes import check_code_bits
from fedhash.configuration import KeyPath, did_you_mean
from fedhash.errors import ModelError
from fedhash.models import (  # noqa: F401 - importing a tower's module registers it
    image_convnet,
    image_hog,
    image_resnet18,
    report_ngrams,
    signal_convnet,
)
from fedhash.models.relaxed import normalised
from fedhash.models.settings import ModelSettings
from fedhash.models.tower import TOWERS, Tower
from fedhash.randomness import stream_seed

if TYPE_CHECKING:
    from fedhash.models.prepared import PreparedStudies

__all__ = ["HashModel", "build_model", "check_towers", "encode_studies"]


class HashModel(nn.Module):
    """Towers by modality.

    Attributes:
        code_bits: b.
    """

    def __init__(self, towers: dict[str, Tower], code_bits: int) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.code_bits = code_bits

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have a tower, sorted."""
        return tuple(sorted(self.towers))

    def tower(self, modality: str) -> Tower:
        """The tower of `modality`.

        Raises:
            ModelError: The model has none.
        """
        if modality not in self.towers:
            raise ModelError(
                f"the model has no tower for {modality!r}, only for {', '.join(self.modalities)}; "
                "add one under model.towers of the round settings"
            )
        return cast("Tower", self.towers[modality])

    def encode(
        self, modality: str, prepared: Float[torch.Tensor, "B ..."]
    ) -> Float[torch.Tensor, "B b"]:
        """Raw outputs u of prepared studies in one modality.

        Raises:
            ModelError: The model has no tower for it.
        """
        return cast("torch.Tensor", self.tower(modality)(prepared))


def check_towers(settings: ModelSettings) -> list[tuple[KeyPath, str]]:
    """Towers and options that do not exist, each with its key in the settings; empty if all do."""
    problems: list[tuple[KeyPath, str]] = []
    for modality, tower in sorted(settings.towers.items()):
        kinds = {name: kind for name, kind in TOWERS.items() if kind.modality == modality}
        if tower.name not in kinds:
            message = (
                f"the tower {tower.name!r} was asked for the modality {modality!r}; "
                f"{did_you_mean(tower.name, sorted(kinds))}"
            )
            problems.append((("towers", modality, "name"), message))
            continue
        options = kinds[tower.name].Options
        try:
            options.model_validate(tower.options)
        except ValidationError as error:
            valid = ", ".join(sorted(options.model_fields)) or "none"
            for each in error.errors():
                place = ".".join(map(str, each["loc"])) or "options"
                message = f"option {place} of tower {tower.name}: {each['msg']}; it takes: {valid}"
                problems.append((("towers", modality, "options", *each["loc"]), message))
    return problems


def build_model(settings: ModelSettings, code_bits: int, seed: int) -> HashModel:
    """The model before its first round, the same on every machine for the same arguments.

    Raises:
        ModelError: A tower or an option is unknown, does not fit the modality, or `code_bits`
            is no valid code length.
    """
    check_code_bits(code_bits)
    if problems := check_towers(settings):
        raise ModelError("\n".join(message for _, message in problems))
    towers = {}
    for modality, tower_settings in sorted(settings.towers.items()):
        kind = TOWERS[tower_settings.name]
        options = kind.Options.model_validate(tower_settings.options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "model", modality))
            towers[modality] = kind(options, code_bits)
    return HashModel(towers, code_bits)


@torch.no_grad()
def encode_studies(
    model: HashModel, prepared: PreparedStudies, modality: str, batch: int = 256
) -> Float32[np.ndarray, "N b"]:
    """Relaxed codes v of all studies in one modality; their signs are the codes.

    Rows of studies without the modality are meaningless: see `prepared.present[modality]`.

    Raises:
        ModelError: The model has no tower for `modality`.
    """
    model.eval()
    model.tower(modality)
    blocks = [
        normalised(model.encode(modality, block))
        for block in torch.split(prepared.inputs[modality], batch)
    ]
    return torch.cat(blocks).numpy()
