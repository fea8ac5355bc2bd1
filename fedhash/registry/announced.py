"""What a release says of itself before any of it but the manifest is there.

>>> announced_release(manifest_bytes, release_id).parameters
163072
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.errors import ModelError, ReleaseError
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import frozen_file
from fedhash.models.hash_model import frozen_modalities, model_without_memory
from fedhash.models.layout import Layout
from fedhash.registry.release import MODEL_FILE, check_codes, parsed_manifest

__all__ = ["AnnouncedRelease", "announced_release"]


@dataclass(frozen=True)
class AnnouncedRelease:
    """What a manifest demands.

    Attributes:
        files: The other files of the release, each with its SHA-256.
        parameters: Of the model.
    """

    files: Mapping[str, str]
    parameters: int


def announced_release(
    manifest_bytes: bytes, release_id: str, agreement: Agreement | None = None
) -> AnnouncedRelease:
    """Read a manifest alone.

    Args:
        manifest_bytes: From anyone.
        release_id: What its id has to be.
        agreement: Ours, which its codes have to fit; None: any will do.

    Raises:
        ReleaseError: It is no manifest, of another release or agreement, or does not fit this
            version.
    """
    manifest = parsed_manifest(manifest_bytes, Path(f"release {release_id[:12]}"))
    if manifest.release_id() != release_id:
        raise ReleaseError(
            f"the manifest that was sent for release {release_id[:12]} is that of "
            f"{manifest.release_id()[:12]}; whoever sent it is not the coordinator, or its folder "
            "is damaged"
        )
    if agreement is not None:
        check_codes(release_id, manifest.agreement, agreement)
    files = {MODEL_FILE: manifest.model_digest}
    for modality in frozen_modalities(manifest.model):
        digest = str(manifest.model.towers[modality].options.get("sha256"))
        files[frozen_file(modality)] = digest
    try:
        model = model_without_memory(manifest.model, Anchors.build(manifest.agreement))
    except ModelError as error:
        raise ReleaseError(
            f"release {release_id[:12]} cannot be used with this fedhash: {error}"
        ) from error
    return AnnouncedRelease(files, Layout.of(model).size)
