"""Frozen features: what a tower that never changes makes of a study, as one file.

A site trains few numbers under privacy better than many. So everything up to the last layer is
fixed beforehand, on public data or by whoever published it, and what it gives of a study is
computed once.

Shape suffixes: N studies, F features of the base tower, d dimensions, e = d + 1.

1. A file holds a base tower with its parameters, the place where its features are taken, the public
   mean, the public projection and, if somebody trained one on public data, a first linear head. It
   is safetensors with one JSON text: it can carry numbers and nothing that runs.
2. Features f of a study: each row standardised to mean 0 and variance 1, minus the public mean,
   times the projection, and behind them the constant `BIAS_INPUT`: what stands in for a bias of the
   head. It is small, so that the bias does not fill the norm that is clipped.
3. The projection is made of public data alone (`fedhash.learning.freezing`).
4. A file is known by the SHA-256 of its bytes, which the tower's option `sha256` demands.
5. A file may come from anyone: its sizes are compared with those of the tower that it names, and
   its numbers are float32, finite and at most 1e6 in size, before anything is computed with them.

    >>> frozen = FrozenFeatures.load(Path("frozen-image.safetensors"))
    >>> frozen.of(["... contents of the modality ..."])        # float32 [N, e]
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedhash.configuration import Settings
from fedhash.errors import ModelError
from fedhash.models.settings import TowerSettings
from fedhash.models.tower import Tower
from fedhash.models.towers import build_tower
from fedhash.regular_file import read_regular_file

__all__ = [
    "BIAS_INPUT",
    "LARGEST_FILE_BYTES",
    "FeatureLayer",
    "FrozenFeatures",
    "base_features",
    "frozen_file",
    "projected",
]

BIAS_INPUT = 0.3
LARGEST_FILE_BYTES = 1 << 30  # above every tower within the bounds of its options
_LARGEST_ABOUT_BYTES = 1 << 16
_LARGEST_NUMBER = 1e6  # standardised features are below 1e4; far larger products overflow float32
_TOWER = "tower."

FeatureLayer = Literal["prepared", "last"]


def frozen_file(modality: str) -> str:
    """Name of a modality's file in a folder that holds one for each."""
    return f"frozen-{modality}.safetensors"


class _About(Settings):
    """The JSON text of a file."""

    format: Literal[1] = 1
    modality: str
    tower: TowerSettings
    outputs: int = Field(ge=1, le=4096)
    layer: FeatureLayer


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """A base tower and the projection of its features.

    Attributes:
        modality: What it reads.
        tower_settings: The base tower's.
        tower: The base tower, with its parameters.
        layer: prepared: its fixed front end, before any parameter; last: what its last layer reads.
        mean: Of the standardised features of public studies.
        projection: To d dimensions.
        head: First weights of a linear head on features and constant, or None.
        sha256: Of the file's bytes, 64 hex digits.
    """

    modality: str
    tower_settings: TowerSettings
    tower: Tower
    layer: FeatureLayer
    mean: Float32[torch.Tensor, " F"]
    projection: Float32[torch.Tensor, "F d"]
    head: Float32[torch.Tensor, "outputs e"] | None
    sha256: str

    @property
    def dimensions(self) -> int:
        """d, without the constant."""
        return self.projection.shape[1]

    def of(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N e"]:
        """Features of loaded contents.

        Raises:
            DataError: A content does not fit the modality.
            ModelError: The base tower's features are not finite.
        """
        base = base_features(self.tower, self.tower.prepare(contents), self.layer)
        return projected(base, self.mean, self.projection)

    @classmethod
    def make(
        cls,
        *,
        modality: str,
        tower_settings: TowerSettings,
        tower: Tower,
        layer: FeatureLayer,
        mean: Float32[torch.Tensor, " F"],
        projection: Float32[torch.Tensor, "F d"],
        head: Float32[torch.Tensor, "outputs e"] | None,
    ) -> FrozenFeatures:
        """Put the parts together; the digest is that of the file that they make."""
        parts = cls(modality, tower_settings, tower, layer, mean, projection, head, sha256="")
        return cls.from_bytes(parts.to_bytes(), "what was just made")

    def to_bytes(self) -> bytes:
        """The file; its SHA-256 is `sha256`."""
        about = _About(
            modality=self.modality,
            tower=self.tower_settings,
            outputs=self.tower.outputs,
            layer=self.layer,
        )
        tensors = {f"{_TOWER}{name}": each for name, each in self.tower.state_dict().items()}
        tensors |= {"mean": self.mean, "projection": self.projection}
        if self.head is not None:
            tensors["head"] = self.head
        # a text as a tensor: safetensors does not promise the order of its own metadata
        text = json.dumps(about.model_dump(mode="json"), sort_keys=True).encode()
        tensors["about"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return save({name: each.contiguous() for name, each in sorted(tensors.items())})

    @classmethod
    def load(cls, path: Path) -> FrozenFeatures:
        """Read and check a file.

        Raises:
            ModelError: It cannot be read, is damaged, or does not fit this version's towers.
        """
        try:
            content = read_regular_file(path, LARGEST_FILE_BYTES)
        except OSError as error:
            raise ModelError(
                f"the frozen features {path} cannot be read ({error.strerror}); "
                "copy the file there, or name another"
            ) from error
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> FrozenFeatures:
        """Read and check the content of a file; `where` is named in errors.

        Raises:
            ModelError: It is damaged, or does not fit this version's towers.
        """
        try:
            tensors = load(content)
            about = _About.model_validate_json(_text_bytes(tensors.pop("about")))
            _check_numbers(where, tensors)
            tower = _base_tower(where, about)
            tower.load_state_dict(
                {
                    name.removeprefix(_TOWER): tensors.pop(name)
                    for name in sorted(tensors)
                    if name.startswith(_TOWER)
                }
            )
            mean, projection = tensors.pop("mean"), tensors.pop("projection")
            head = tensors.pop("head", None)
        except (SafetensorError, KeyError, ValidationError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{where} holds no frozen features ({_first_line(error)}); make it anew with "
                "'fedhash-sim freeze', or fetch it again"
            ) from error
        _check_shapes(where, tensors, mean, projection, head)
        features = _feature_count(tower, about.layer)
        if len(mean) != features:
            raise ModelError(
                f"{where} has a mean of {len(mean)} features, its base tower {about.tower.name} "
                f"gives {features}; make it anew with 'fedhash-sim freeze', or fetch it again"
            )
        return cls(
            about.modality,
            about.tower,
            tower.eval().requires_grad_(requires_grad=False),
            about.layer,
            mean,
            projection,
            head,
            hashlib.sha256(content).hexdigest(),
        )


def base_features(
    tower: Tower, prepared: Float[torch.Tensor, "N ..."], layer: FeatureLayer
) -> Float32[torch.Tensor, "N F"]:
    """Standardised rows of a base tower's features; `prepared` is what its front end gave.

    Raises:
        ModelError: They are not finite.
    """
    features = prepared if layer == "prepared" else tower.features(prepared)
    flat = features.flatten(start_dim=1)
    standardised = torch.nn.functional.layer_norm(flat, flat.shape[1:])
    if not standardised.isfinite().all():
        raise ModelError(
            f"the base tower {tower.name} gives features that are not finite: its parameters are "
            "damaged or far too large; take others, trained anew or fetched again"
        )
    return standardised


def projected(
    base: Float32[torch.Tensor, "N F"],
    mean: Float32[torch.Tensor, " F"],
    projection: Float32[torch.Tensor, "F d"],
) -> Float32[torch.Tensor, "N e"]:
    """Features of standardised rows, with the constant behind them."""
    features = (base - mean) @ projection
    return torch.cat([features, torch.full((len(features), 1), BIAS_INPUT)], dim=1)


def _text_bytes(about: torch.Tensor) -> bytes:
    """The bytes of the JSON text; a tensor of another kind could make bytes by the gigabyte."""
    if about.dtype != torch.uint8 or about.ndim != 1 or len(about) > _LARGEST_ABOUT_BYTES:
        raise ValueError(f"'about' is {about.dtype} of shape {tuple(about.shape)}, no text")
    return about.numpy().tobytes()


def _base_tower(where: str, about: _About) -> Tower:
    tower = build_tower(about.modality, about.tower, about.outputs)
    if tower.reads_frozen_features:
        raise ModelError(
            f"{where} has the base tower {about.tower.name}, which is frozen itself; make it anew "
            "of the tower under that one"
        )
    return tower


def _feature_count(tower: Tower, layer: FeatureLayer) -> int:
    """F, which a tower's settings fix."""
    return math.prod(tower.prepared_shape) if layer == "prepared" else tower.last_layer.in_features


def _check_numbers(where: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, part in tensors.items():
        # NaN is not below the bound
        if part.dtype != torch.float32 or not (part.abs() <= _LARGEST_NUMBER).all():
            raise ModelError(
                f"{where} holds a tensor {name!r} that is not float32, or numbers in it that are "
                f"not finite or above {_LARGEST_NUMBER:g}, which overflow when they are multiplied;"
                " make it anew with 'fedhash-sim freeze', or fetch it again"
            )


def _check_shapes(
    where: str,
    others: Mapping[str, torch.Tensor],
    mean: torch.Tensor,
    projection: torch.Tensor,
    head: torch.Tensor | None,
) -> None:
    parts = {"mean": mean, "projection": projection} | ({} if head is None else {"head": head})
    fits = (
        not others
        and mean.ndim == 1
        and projection.ndim == 2
        and len(projection) == len(mean)
        and projection.shape[1] > 0
        and (head is None or (head.ndim == 2 and head.shape[1] == projection.shape[1] + 1))
    )
    if not fits:
        shapes = {name: tuple(part.shape) for name, part in (parts | dict(others)).items()}
        raise ModelError(
            f"{where} holds tensors that do not fit each other: {shapes}; make it anew with "
            "'fedhash-sim freeze', or fetch it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
