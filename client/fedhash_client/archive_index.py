"""Reading a site's manifest and filling its archive with a release's codes.

1. Only studies of patients who consent are encoded.
2. The new archive is built beside the old one and takes its place when it is whole; until then, and
   after any failure, the old one answers.
3. Handles are keyed by a secret of the site's own, made from the operating system's randomness and
   readable by its owner alone; without it a handle leads back to nobody.

    >>> counts = build_archive(settings, agreement, load_release(folder), progress=print)
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.data.manifest import Manifest, read_manifest
from fedhash.errors import ArchiveError, DataError, ReleaseError, StorageError
from fedhash.index import Archive, replace_archive, site_handle
from fedhash.index.encoding import encode_entries
from fedhash.models.prepared import prepare_studies
from fedhash.registry.release import Release
from fedhash_client.settings import SiteSettings

__all__ = ["build_archive", "check_release", "read_handle_key", "read_site_manifest"]

_KEY_BYTES = 32
_BLOCK_STUDIES = 512  # encoded and stored at once


def read_site_manifest(settings: SiteSettings, agreement: Agreement) -> Manifest:
    """The site's manifest.

    Raises:
        ManifestError: It cannot be read as a whole.
    """
    return read_manifest(settings.manifest, agreement.findings, agreement.modalities)


def check_release(release: Release, agreement: Agreement) -> None:
    """Refuse a release that was trained under another agreement.

    Raises:
        ReleaseError: The agreements differ.
    """
    theirs, ours = release.agreement.digest(), agreement.digest()
    if theirs != ours:
        raise ReleaseError(
            f"release {release.release_id[:12]} was trained under the agreement {theirs[:12]} "
            f"({release.agreement.name!r}), this site signed {ours[:12]} ({agreement.name!r}); "
            "use a release of your own consortium"
        )


def build_archive(
    settings: SiteSettings,
    agreement: Agreement,
    release: Release,
    progress: Callable[[int, int], None],
) -> dict[str, int]:
    """Encode all consenting studies and put the new archive in place.

    Args:
        settings: The site.
        agreement: What the site signed.
        release: The verified release.
        progress: Called with studies done and studies in all.

    Returns:
        Entries of each modality.

    Raises:
        ManifestError: The manifest cannot be read.
        DataError: No study can be used.
        ReleaseError: The release belongs to another agreement.
        ArchiveError: The archive cannot be written.
        StorageError: Its folder or the handle key cannot be written.
    """
    check_release(release, agreement)
    studies = [each for each in read_site_manifest(settings, agreement).studies if each.consent]
    if not studies:
        raise DataError(
            f"{settings.manifest} holds no usable study with consent; "
            "fedhash-site check names the reason of each row"
        )
    key = read_handle_key(settings.handle_key)
    model = release.build_model()
    unfinished = settings.archive.with_name(f"{settings.archive.name}.new")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", "-journal", "-wal", "-shm"):  # what a killed SQLite leaves
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(error) from error
    with Archive(unfinished, release.release_id, agreement.code_bits) as archive:
        for start in range(0, len(studies), _BLOCK_STUDIES):
            block = studies[start : start + _BLOCK_STUDIES]
            prepared = prepare_studies(model, block, agreement.findings)
            handles = [site_handle(key, study_id) for study_id in prepared.study_ids]
            archive.add(encode_entries(model, prepared, handles))
            progress(start + len(block), len(studies))
        counts = {modality: archive.count(modality) for modality in model.modalities}
    replace_archive(unfinished, settings.archive)
    return counts


def read_handle_key(path: Path) -> bytes:
    """The site's handle secret, made at the first call, with its folder if need be.

    Raises:
        ArchiveError: The file is no key, or others can read it.
        StorageError: It can be neither made nor read.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _make_handle_key(path)
        if path.stat().st_mode & 0o077:
            raise ArchiveError(f"others can read {path}; run: chmod 600 {path}")
        key = path.read_bytes()
    except OSError as error:
        raise StorageError(error, path) from error
    if len(key) != _KEY_BYTES:
        raise ArchiveError(
            f"{path} has {len(key)} bytes, a handle key has {_KEY_BYTES}; restore it from backup, "
            "or remove it and index again (all handles change)"
        )
    return key


def _make_handle_key(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()  # a part of a key would stand in the way of a whole one
        raise
