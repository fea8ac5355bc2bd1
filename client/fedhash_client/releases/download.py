"""Fetching a release: resumed where it broke off, bounded, and used only when all of it verifies.

    state/releases/
      RELEASE_ID/             verified once, and again whenever it is opened
      RELEASE_ID.download/    files that are whole, and one NAME.part

1. The manifest comes first. Its hash is the release id that the signed statement named, and it
   names the hash of each other file.
2. A file that does not have its hash is thrown away, and so is a part that the service disowns.
3. No more is written than the site's file allows, whatever sizes are announced. What is left of
   other downloads goes before one begins, so ever new statements do not fill the disk.
4. Each piece brings something: a source that sends empty ones is not waited for.

    >>> fetch_release(source, Path("state/releases"), release_id, largest_bytes=1 << 30)
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.durability import replace_file, sync_folder
from fedhash.errors import ReleaseError, StorageError
from fedhash.models.frozen_features import LARGEST_FILE_BYTES
from fedhash.registry.announced import AnnouncedRelease, announced_release
from fedhash.registry.release import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST_FILE,
    Release,
    load_release,
)
from fedhash.regular_file import read_regular_file
from fedhash_client.releases.source import ReleaseSource, untold

__all__ = ["fetch_release", "install_release"]


def fetch_release(
    source: ReleaseSource,
    folder: Path,
    release_id: str,
    largest_bytes: int,
    progress: Callable[[int, int], None] = untold,
    agreement: Agreement | None = None,
    largest_parameters: int | None = None,
) -> Release:
    """The release, downloaded if need be.

    Args:
        source: Where it comes from.
        folder: `state/releases`.
        release_id: From a verified statement.
        largest_bytes: Of all files together.
        progress: Called with bytes of the present file done and in all; may raise to stop.
        agreement: Of another one nothing but the manifest is downloaded; None: any will do.
        largest_parameters: Nor of a model with more, and none that was downloaded before is built;
            None: any will do.

    Raises:
        ReleaseError: What was sent is not this release, too large, or does not fit this version.
        ProtocolError: The source does not answer; what has come stays for the next call.
        StorageError: The operating system refuses.
    """
    target, partial = folder / release_id, folder / f"{release_id}.download"
    try:
        if target.exists():
            _check_size(_kept(target, release_id), release_id, largest_parameters)
            return _verified(target, release_id)
        for other in folder.glob("*.download"):
            if other != partial:
                shutil.rmtree(other)
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = largest_bytes
        manifest = partial / MANIFEST_FILE
        left -= _fetch_file(
            source, release_id, manifest, min(left, LARGEST_MANIFEST_BYTES), progress
        )
        try:
            announced = _announced(partial, release_id, agreement)
            _check_size(announced, release_id, largest_parameters)
        except ReleaseError:
            manifest.unlink()
            raise
        for name, digest in announced.files.items():
            path = partial / name
            left -= _fetch_file(source, release_id, path, min(left, LARGEST_FILE_BYTES), progress)
            if _sha256(path) != digest:
                path.unlink()
                raise ReleaseError(
                    f"{name} of release {release_id[:12]} came with another SHA-256 than its "
                    "manifest names; it was thrown away and is fetched again"
                )
        sync_folder(partial)
        release = _verified(partial, release_id)  # or it would stay among the whole ones for good
        partial.replace(target)
        sync_folder(folder)
    except OSError as error:
        raise StorageError(error, folder) from error
    return release


def install_release(release_folder: Path, folder: Path) -> Release:
    """Copy a release that somebody brought into `state/releases`.

    Raises:
        ReleaseError: It does not verify.
        StorageError: The operating system refuses.
    """
    release = load_release(release_folder)
    target = folder / release.release_id
    if not target.exists():
        unfinished = folder / f"{release.release_id}.copying"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            # and nothing else that lies there: it may be a link to anything
            announced = _announced(release_folder, release.release_id, None)
            for name in (MANIFEST_FILE, *announced.files):
                content = read_regular_file(release_folder / name, LARGEST_FILE_BYTES)
                replace_file(unfinished / name, content)
            unfinished.replace(target)
            sync_folder(folder)
        except OSError as error:
            raise StorageError(error, folder) from error
    return _verified(target, release.release_id)


def _announced(folder: Path, release_id: str, agreement: Agreement | None) -> AnnouncedRelease:
    manifest = read_regular_file(folder / MANIFEST_FILE, LARGEST_MANIFEST_BYTES)
    return announced_release(manifest, release_id, agreement)


def _kept(target: Path, release_id: str) -> AnnouncedRelease:
    try:
        return _announced(target, release_id, None)
    except ReleaseError as error:
        raise ReleaseError(
            f"{target} is damaged ({error}); remove the folder, and it is downloaded again"
        ) from error


def _check_size(announced: AnnouncedRelease, release_id: str, largest: int | None) -> None:
    if largest is not None and announced.parameters > largest:
        raise ReleaseError(
            f"release {release_id[:12]} has a model of {announced.parameters:,} parameters, and "
            f"training.largest_model_parameters allows {largest:,}; raise it in site.yaml if the "
            "coordinator confirms the size"
        )


def _verified(target: Path, release_id: str) -> Release:
    release = load_release(target)
    if release.release_id != release_id:
        raise ReleaseError(
            f"{target} holds release {release.release_id[:12]}; remove the folder, and it is "
            "fetched again"
        )
    return release


def _fetch_file(
    source: ReleaseSource,
    release_id: str,
    path: Path,
    largest_bytes: int,
    progress: Callable[[int, int], None],
) -> int:
    """Have the whole file at `path`; returns its size in bytes."""
    if path.exists():
        return path.stat().st_size
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        done = file.tell()
        total = None
        for announced, content in source.fetch(release_id, path.name, done):
            if announced > largest_bytes or (total is not None and announced != total):
                part.unlink()
                raise ReleaseError(
                    f"{path.name} of release {release_id[:12]} is announced with {announced:,} "
                    f"bytes, and {largest_bytes:,} are left of releases.largest_bytes and the "
                    "bounds of a release; raise it in site.yaml if the coordinator confirms the "
                    "size"
                )
            if not content and done < announced:
                raise ReleaseError(
                    f"an empty piece of {path.name} was sent before its end; it goes on there"
                )
            total = announced
            done += len(content)
            if done > total:
                part.unlink()
                raise ReleaseError(f"{path.name} came longer than announced; it is fetched again")
            file.write(content)
            progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is None or done < total:
        raise ReleaseError(
            f"{path.name} broke off after {done:,} bytes of {total or 0:,}; it goes on there"
        )
    part.replace(path)
    return done


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
