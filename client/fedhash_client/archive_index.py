"""What a site reads of its patients: the manifest without those who withdrew, and the handle key.

1. Whoever has withdrawn is in no manifest that is read here, whatever the file says
   (`fedhash_client.withdrawn`).
2. Handles are keyed by a secret of the site's own, made from the operating system's randomness and
   readable by its owner alone; without it a handle leads back to nobody.

    >>> studies = [each for each in read_site_manifest(settings, agreement).studies if each.consent]
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.data.manifest import Manifest, read_manifest
from fedhash.data.study import Study
from fedhash.errors import ArchiveError, StorageError
from fedhash.index.entry import site_handle
from fedhash.rounds.messages import canonical_json
from fedhash_client.daemon.paths import state_folder
from fedhash_client.daemon.prepared_cache import file_marks
from fedhash_client.settings import SiteSettings
from fedhash_client.withdrawn import Withdrawn

__all__ = ["data_fingerprint", "read_handle_key", "read_site_manifest"]

_KEY_BYTES = 32


def read_site_manifest(settings: SiteSettings, agreement: Agreement) -> Manifest:
    """The site's manifest, without patients who have withdrawn.

    Raises:
        ManifestError: It cannot be read as a whole.
        DataError: The list of those who withdrew is damaged.
    """
    manifest = read_manifest(settings.manifest, agreement.findings, agreement.modalities)
    gone = Withdrawn(state_folder(settings)).among([each.patient_id for each in manifest.studies])
    if not gone:
        return manifest
    return replace(
        manifest,
        studies=tuple(each for each in manifest.studies if each.patient_id not in gone),
    )


def data_fingerprint(manifest: Path, studies: Sequence[Study], handle_key: bytes) -> str:
    """Stands for all that an index of the studies is made of, beside a release: 64 hex digits.

    It changes with the manifest's bytes, with size or time of change of a file that a study's
    content is read from, and with the handle key.

    Raises:
        DataError: A file of a study is gone.
        StorageError: The manifest cannot be read.
    """
    try:
        hashed = hashlib.sha256(manifest.read_bytes())
    except OSError as error:
        raise StorageError(error, manifest) from error
    marks = {path: list(mark) for path, mark in file_marks(studies).items()}
    hashed.update(canonical_json(marks).encode())
    hashed.update(site_handle(handle_key, "").encode())  # it tells another key, and not the key
    return hashed.hexdigest()


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
