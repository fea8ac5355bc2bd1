"""The hash model: one tower a modality, all ending in the same b bits.

Shape suffixes: B batch, N studies, K findings, b bits.

1. The first parameters depend on the seed, the modality and the settings alone: each tower draws
   from a stream of its own, and the global generator stays as it was.
2. Towers share no parameters; what they share is the anchors that they are trained against.
3. With a head of logits, towers end in one output a finding, and a published map makes the bits.
4. Learned prototypes are drawn from a stream of their own, the same for all sites. They are
   parameters like the towers', so they are averaged, released and loaded with them; encoding reads
   none.

    >>> settings = ModelSettings(towers={"report": TowerSettings(name="report_ngrams")})
    >>> model = build_model(settings, code_bits=64, seed=7)
    >>> outputs = model.encode("report", model.tower("report").prepare(["Clear lungs."]))
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import nn

from fedhash.codes import check_code_bits
from fedhash.configuration import KeyPath
from fedhash.errors import ModelError
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.frozen_tower import FrozenTower
from fedhash.models.logits_head import LogitsHead
from fedhash.models.relaxed import normalised
from fedhash.models.settings import ModelSettings
from fedhash.models.tower import TOWERS, Tower
from fedhash.models.towers import build_tower, tower_problems
from fedhash.randomness import global_torch_stream, stream_seed, torch_stream

if TYPE_CHECKING:
    from fedhash.models.prepared import PreparedStudies

__all__ = [
    "HashModel",
    "build_model",
    "check_towers",
    "encode_studies",
    "frozen_modalities",
    "model_without_memory",
]


class HashModel(nn.Module):
    """Towers by modality.

    Attributes:
        code_bits: b.
        prototypes: K x b, of a model with learned ones.
    """

    prototypes: nn.Parameter | None

    def __init__(
        self,
        towers: dict[str, Tower],
        code_bits: int,
        head: LogitsHead | None = None,
        prototypes: Float32[torch.Tensor, "K b"] | None = None,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.code_bits = code_bits
        self._head = head
        self.register_parameter(
            "prototypes", None if prototypes is None else nn.Parameter(prototypes)
        )

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
        """Raw outputs u of prepared studies in one modality, as the losses read them.

        Raises:
            ModelError: The model has no tower for it.
        """
        outputs = cast("torch.Tensor", self.tower(modality)(prepared))
        return outputs if self._head is None else self._head.raw_outputs(outputs)

    def relaxed_codes(
        self, modality: str, prepared: Float[torch.Tensor, "B ..."]
    ) -> Float[torch.Tensor, "B b"]:
        """Relaxed codes v of prepared studies in one modality; their signs are the codes.

        Raises:
            ModelError: The model has no tower for it.
        """
        outputs = cast("torch.Tensor", self.tower(modality)(prepared))
        return normalised(outputs if self._head is None else self._head.code_outputs(outputs))


def check_towers(settings: ModelSettings) -> list[tuple[KeyPath, str]]:
    """Towers and options that do not exist, each with its key in the settings; empty if all do."""
    return [
        (("towers", modality, *key), message)
        for modality, tower in sorted(settings.towers.items())
        for key, message in tower_problems(modality, tower)
    ]


def frozen_modalities(settings: ModelSettings) -> tuple[str, ...]:
    """Modalities whose tower reads frozen features, sorted."""
    return tuple(
        modality
        for modality, tower in sorted(settings.towers.items())
        if TOWERS.get(tower.name, Tower).reads_frozen_features
    )


def build_model(
    settings: ModelSettings,
    code_bits: int,
    seed: int,
    *,
    anchors: Anchors | None = None,
    frozen: Mapping[str, FrozenFeatures] = MappingProxyType({}),
) -> HashModel:
    """The model before its first round, the same on every machine for the same arguments.

    Args:
        settings: Towers and head.
        code_bits: b.
        seed: Of the first parameters.
        anchors: The agreement's; a head of logits or of prototypes needs them.
        frozen: Modality to the features of its frozen tower; without them a model can be trained
            and its prepared studies encoded, but nothing prepared.

    Raises:
        ModelError: A tower or an option is unknown, does not fit the modality, `code_bits` is no
            valid code length, anchors are missing, or frozen features are not those asked for.
    """
    check_code_bits(code_bits)
    if problems := check_towers(settings):
        raise ModelError("\n".join(message for _, message in problems))
    head = prototypes = None
    if settings.head != "sign":
        if anchors is None or anchors.matrix.shape[1] != code_bits:
            raise ModelError(
                f"a head of {settings.head} needs the anchors of the agreement; pass them"
            )
        if settings.head == "logits":
            head = LogitsHead(anchors, settings.temperature)
        else:
            prototypes = _first_prototypes(len(anchors.findings), code_bits, seed)
    towers = {}
    for modality, tower_settings in sorted(settings.towers.items()):
        with global_torch_stream(stream_seed(seed, "model", modality)):
            tower = build_tower(modality, tower_settings, head.outputs if head else code_bits)
        if isinstance(tower, FrozenTower) and modality in frozen:
            tower.attach(frozen[modality])
        towers[modality] = tower
    return HashModel(towers, code_bits, head, prototypes)


def _first_prototypes(findings: int, code_bits: int, seed: int) -> Float32[torch.Tensor, "K b"]:
    """Gaussian rows, of norm 1 on average in squares."""
    generator = torch_stream(seed, "prototypes")
    drawn: torch.Tensor = torch.randn(findings, code_bits, generator=generator)
    scaled: torch.Tensor = drawn / code_bits**0.5
    return scaled


def model_without_memory(settings: ModelSettings, anchors: Anchors) -> HashModel:
    """The shapes of a model and no numbers (torch's device `meta`), whatever its size.

    Raises:
        ModelError: As of `build_model`.
    """
    with torch.device("meta"):
        return build_model(settings, anchors.matrix.shape[1], 0, anchors=anchors)


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
        model.relaxed_codes(modality, block)
        for block in torch.split(prepared.inputs[modality], batch)
    ]
    return torch.cat(blocks).numpy()
