"""A released model: a folder that holds all that is needed to encode, and proves to be unchanged.

    release/
      model.safetensors     the parameters by name
      manifest.json         agreement, model settings, margins, metrics, privacy, parent, digests
      frozen-image.safetensors    what the frozen tower of a modality reads, where there is one

1. The release id is the SHA-256 of the manifest without it, and the manifest holds the SHA-256 of
   the model: one id stands for every byte. It proves integrity, not origin: whoever can write the
   folder can write another, valid release with another id.
2. `load_release` verifies everything: both hashes, the canonical form of the manifest, that anchors
   and layout built here have the digests that the release was trained with, that margins keep the
   agreement's range, that parameters are finite, and that frozen features are those that the model
   settings name by their SHA-256, before anything is read of them. No file is opened by a name that
   the manifest made up, none that is a pipe, and none larger than a release's can be.
3. A release never changes. It is written beside and renamed; saving the same one again is allowed.
4. What it says of privacy is stated by whoever made it (`fedhash.registry.privacy_summary`).

Shape suffixes: K findings, d parameters.

    >>> release = save_release(folder, agreement=agreement, model_settings=settings, ...)
    >>> release = load_release(folder)
    >>> model = release.build_model()
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedhash.agreement import Agreement
from fedhash.configuration import Settings
from fedhash.durability import sync_folder
from fedhash.errors import ModelError, ReleaseError
from fedhash.learning.loss import Margins
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import LARGEST_FILE_BYTES, FrozenFeatures, frozen_file
from fedhash.models.hash_model import HashModel, build_model, check_towers, frozen_modalities
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings
from fedhash.printable import printable
from fedhash.registry.privacy_summary import PrivacySummary
from fedhash.regular_file import read_regular_file

__all__ = [
    "LARGEST_MANIFEST_BYTES",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "Release",
    "ReleaseManifest",
    "check_codes",
    "load_release",
    "parsed_manifest",
    "save_release",
]

MANIFEST_FILE = "manifest.json"
LARGEST_MANIFEST_BYTES = 1 << 24
MODEL_FILE = "model.safetensors"
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ReleaseManifest(Settings):
    """The content of manifest.json, apart from the release id that is made of it."""

    format: Literal[2] = 2
    run_id: str
    parent: _Digest | None
    privacy: PrivacySummary | None
    agreement: Agreement
    model: ModelSettings
    margins: tuple[float, ...]
    weights: tuple[float, ...]
    metrics: dict[str, float]
    anchors_digest: _Digest
    layout_digest: _Digest
    model_digest: _Digest

    def release_id(self) -> str:
        """What stands for every byte of the release."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json"))).hexdigest()

    def to_bytes(self) -> bytes:
        """The file, id included."""
        return _canonical(self.model_dump(mode="json") | {"release_id": self.release_id()})


@dataclass(frozen=True, eq=False)
class Release:
    """A verified release.

    Attributes:
        release_id: 64 hex digits; equal for equal releases only.
        agreement: The terms under which it was trained.
        model_settings: The towers.
        vector: All parameters, in the order of the layout.
        margins: The last round's margins and weights of the findings.
        metrics: Name to value, as measured when it was released.
        parent: The release that training started from, if any.
        run_id: The run that made it.
        frozen: Modality to the features of its frozen tower.
        privacy: What its maker states of the patients' privacy; None: nothing.
    """

    release_id: str
    agreement: Agreement
    model_settings: ModelSettings
    vector: Float32[np.ndarray, " d"]
    margins: Margins
    metrics: Mapping[str, float]
    parent: str | None
    run_id: str
    frozen: Mapping[str, FrozenFeatures]
    privacy: PrivacySummary | None = None

    def build_model(self) -> HashModel:
        """A new model with the released parameters, ready to encode."""
        model = _new_model(self.model_settings, self.agreement, self.frozen)
        Layout.of(model).load(model, self.vector)
        return model.eval()

    def describe(self) -> dict[str, object]:
        """What to show to people, JSON-able."""
        return {
            "release_id": self.release_id,
            "run_id": printable(self.run_id),
            "parent": self.parent,
            "agreement": f"{printable(self.agreement.name)}, version {self.agreement.version}",
            "agreement_digest": self.agreement.digest(),
            "code_bits": self.agreement.code_bits,
            "findings": list(self.agreement.findings),
            "towers": {name: tower.name for name, tower in self.model_settings.towers.items()},
            "parameters": len(self.vector),
            "metrics": dict(self.metrics),
            "privacy": "nothing is stated" if self.privacy is None else self.privacy.in_words(),
        }


def save_release(
    folder: Path,
    *,
    agreement: Agreement,
    model_settings: ModelSettings,
    vector: Float32[np.ndarray, " d"],
    margins: Margins,
    metrics: Mapping[str, float],
    run_id: str,
    parent: str | None = None,
    frozen: Mapping[str, FrozenFeatures] = MappingProxyType({}),
    privacy: PrivacySummary | None = None,
    named_by_id: bool = False,
) -> Release:
    """Write a release and read it back.

    Args:
        folder: Where; must not exist yet, unless it holds this very release.
        agreement: The terms under which the model was trained.
        model_settings: The towers.
        vector: The trained parameters, in the order of the layout.
        margins: The last round's margins and weights.
        metrics: Name to value, finite.
        run_id: The run that made the model.
        parent: The id of the release that training started from.
        frozen: Modality to the features of its frozen tower.
        privacy: What is stated of the patients' privacy.
        named_by_id: `folder` holds many releases, each in a folder that its id names.

    Raises:
        ReleaseError: The parts do not fit each other, or the folder holds something else.
        ModelError: The model cannot be built, or the vector does not fit it.
    """
    layout = Layout.of(_new_model(model_settings, agreement, frozen))
    tensors = {
        entry.name: tensor.numpy()
        for entry, tensor in zip(layout.entries, layout.split(vector), strict=True)
    }
    model_bytes = save(tensors)
    try:
        manifest = ReleaseManifest(
            run_id=run_id,
            parent=parent,
            privacy=privacy,
            agreement=agreement,
            model=model_settings,
            margins=tuple(margins.mu.tolist()),
            weights=tuple(margins.w.tolist()),
            metrics=dict(metrics),
            anchors_digest=Anchors.build(agreement).digest(),
            layout_digest=layout.digest(),
            model_digest=hashlib.sha256(model_bytes).hexdigest(),
        )
    except ValidationError as error:
        raise ReleaseError(f"no release can be made of this: {_first(error)}") from error
    if named_by_id:
        folder = folder / manifest.release_id()
    if folder.exists():
        if load_release(folder).release_id == manifest.release_id():
            return load_release(folder)
        raise ReleaseError(f"{folder} holds another release; releases never change: name another")
    frozen_bytes = {frozen_file(name): each.to_bytes() for name, each in frozen.items()}
    # what could not be loaded is not written
    _release_of(manifest, model_bytes, frozen_bytes, folder)
    files = {MODEL_FILE: model_bytes, MANIFEST_FILE: manifest.to_bytes()}
    _write_folder(folder, files | frozen_bytes)
    return load_release(folder)


def load_release(folder: Path) -> Release:
    """Read and verify a release.

    Raises:
        ReleaseError: A file is missing, altered, or does not fit this version of fedhash.
    """
    try:
        manifest_bytes = read_regular_file(folder / MANIFEST_FILE, LARGEST_MANIFEST_BYTES)
        model_bytes = read_regular_file(folder / MODEL_FILE, LARGEST_FILE_BYTES)
    except OSError as error:
        raise ReleaseError(
            f"{folder} is no complete release ({error}); a release has {MANIFEST_FILE} and "
            f"{MODEL_FILE}: copy it again"
        ) from error
    manifest = parsed_manifest(manifest_bytes, folder)
    if hashlib.sha256(model_bytes).hexdigest() != manifest.model_digest:
        raise _altered(folder / MODEL_FILE, "its SHA-256 is not the manifest's")
    frozen_bytes = {}
    for modality in frozen_modalities(manifest.model):
        path = folder / frozen_file(modality)
        try:
            frozen_bytes[path.name] = read_regular_file(path, LARGEST_FILE_BYTES)
        except OSError as error:
            raise ReleaseError(
                f"{folder} is no complete release ({error}); its frozen tower for {modality!r} "
                f"reads {path.name}: copy it again"
            ) from error
        wanted = manifest.model.towers[modality].options.get("sha256")
        if hashlib.sha256(frozen_bytes[path.name]).hexdigest() != wanted:
            raise _altered(path, "its SHA-256 is not the one that the model settings name")
    return _release_of(manifest, model_bytes, frozen_bytes, folder)


def check_codes(release_id: str, theirs: Agreement, ours: Agreement) -> None:
    """Refuse a release whose codes mean something else under our agreement than under its own.

    Raises:
        ReleaseError: Consortium, vocabulary, code length or modalities differ.
    """
    if theirs.codes_digest() != ours.codes_digest():
        raise ReleaseError(
            f"release {release_id[:12]} was trained under an agreement ({theirs.name!r}) with "
            "another name, vocabulary, code length or other modalities than what this site signed "
            f"({ours.name!r}); use a release of your own consortium"
        )


def parsed_manifest(manifest_bytes: bytes, folder: Path) -> ReleaseManifest:
    """A manifest whose id, form and towers are right.

    Args:
        manifest_bytes: From anyone.
        folder: Of the release, for messages.

    Raises:
        ReleaseError: It is none of this version, or was altered.
    """
    try:
        content = json.loads(manifest_bytes)
        release_id = content.pop("release_id")
        if content.get("format") == 1:
            raise ReleaseError(f"{folder} was made by an earlier fedhash; release its run anew")
        manifest = ReleaseManifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _altered(folder / MANIFEST_FILE, _first(error)) from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _altered(folder / MANIFEST_FILE, f"not a manifest: {error}") from error
    if manifest.release_id() != release_id:
        raise _altered(folder / MANIFEST_FILE, f"its content has the id {manifest.release_id()}")
    if manifest.to_bytes() != manifest_bytes:
        raise _altered(folder / MANIFEST_FILE, "it is not in its canonical form")
    if problems := check_towers(manifest.model):  # before a modality becomes a file's name
        raise ReleaseError(f"{folder} cannot be used with this fedhash: {problems[0][1]}")
    return manifest


def _release_of(
    manifest: ReleaseManifest, model_bytes: bytes, frozen_bytes: Mapping[str, bytes], folder: Path
) -> Release:
    """The release, if its parts fit each other and this version of fedhash."""
    findings = len(manifest.agreement.findings)
    if not len(manifest.margins) == len(manifest.weights) == findings:
        raise ReleaseError(
            f"{folder} has {len(manifest.margins)} margins and {len(manifest.weights)} weights for "
            f"{findings} findings; release it anew"
        )
    low, high = (float(np.float32(limit)) for limit in manifest.agreement.margin_range)
    if not all(low <= margin <= high for margin in manifest.margins):
        raise ReleaseError(
            f"{folder} has margins from {min(manifest.margins)} to {max(manifest.margins)}; the "
            f"agreement allows {low} to {high}"
        )
    try:
        frozen = {
            modality: FrozenFeatures.from_bytes(
                frozen_bytes.get(frozen_file(modality), b""), str(folder / frozen_file(modality))
            )
            for modality in frozen_modalities(manifest.model)
        }
        layout = Layout.of(_new_model(manifest.model, manifest.agreement, frozen))
        anchors_digest = Anchors.build(manifest.agreement).digest()
        tensors = load(model_bytes)
    except (ModelError, SafetensorError) as error:
        raise ReleaseError(f"{folder} cannot be used with this fedhash: {error}") from error
    if (manifest.layout_digest, manifest.anchors_digest) != (layout.digest(), anchors_digest):
        raise ReleaseError(
            f"{folder} was made by a fedhash that builds other towers or anchors from the same "
            "settings; use the version of fedhash that made it"
        )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {entry.name: entry.shape for entry in layout.entries} or any(
        tensor.dtype != np.float32 for tensor in tensors.values()
    ):
        raise ReleaseError(
            f"{folder / MODEL_FILE} holds other parameters than the manifest's towers"
        )
    vector = np.concatenate([tensors[entry.name].ravel() for entry in layout.entries])
    if not np.isfinite(vector).all():
        raise ReleaseError(f"{folder / MODEL_FILE} holds numbers that are not finite; train anew")
    return Release(
        manifest.release_id(),
        manifest.agreement,
        manifest.model,
        vector,
        Margins(
            np.array(manifest.margins, dtype=np.float32),
            np.array(manifest.weights, dtype=np.float32),
        ),
        manifest.metrics,
        manifest.parent,
        manifest.run_id,
        frozen,
        manifest.privacy,
    )


def _new_model(
    settings: ModelSettings, agreement: Agreement, frozen: Mapping[str, FrozenFeatures]
) -> HashModel:
    return build_model(  # the parameters are replaced
        settings, agreement.code_bits, seed=0, anchors=Anchors.build(agreement), frozen=frozen
    )


def _canonical(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """The whole folder or none of it, also after a power cut."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in files.items():
            with (unfinished / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(unfinished)
        unfinished.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ReleaseError(
            f"{folder} cannot be written ({error}); check rights and disk space"
        ) from error


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _altered(file: Path, found: str) -> ReleaseError:
    return ReleaseError(f"{file} is damaged or was altered ({found}); fetch the release again")
