"""What the site keeps: the state folder and the files in it that everything else rests on."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedhash.audit_segments import verify_segments
from fedhash.privacy import read_ledger
from fedhash.registry.seen import NewestSeen
from fedhash_client.checks.findings import CheckedSite, Findings
from fedhash_client.daemon.paths import CONTROL_SOCKET, state_folder
from fedhash_client.daemon.training_seed import training_seed
from fedhash_client.daemon.unix_server import LONGEST_PATH_BYTES
from fedhash_client.withdrawal import audit_file

__all__ = ["check_state"]

_LEAST_FREE_BYTES = 256 << 20  # a database that cannot grow stops everything
_PREPARED_FILES = 2  # `daemon.prepared_cache` keeps so many
_SKEW = timedelta(minutes=1)


def check_state(site: CheckedSite, found: Findings) -> None:
    """Look at the folder and verify ledger, audit log and the memory of releases."""
    settings = site.settings
    if settings.state is not None and settings.state.exists() and not settings.state.is_dir():
        found.add(settings.state, "this is no folder; name another under state, or move it away")
        return
    if settings.state is not None:
        _check_folder(settings.state, found)
        _check_room(site, settings.state, found)
        seed = settings.state / "training.seed"
        if seed.exists():
            with found.gathered(seed):
                training_seed(seed)
    newest = state_folder(settings) / "releases" / "newest.json"
    with found.gathered(newest):
        NewestSeen(newest, settings.releases.smallest_number)
    log = audit_file(settings)
    written = log.exists() or any(log.parent.glob(f"{log.stem}.*{log.suffix}"))
    if written and not site.running:  # the daemon verified it, and is writing to it
        with found.gathered(log):
            verify_segments(log)
    if settings.privacy is not None:
        _check_ledger(settings.privacy.ledger, found)


def _check_folder(folder: Path, found: Findings) -> None:
    socket = folder / CONTROL_SOCKET
    if len(str(socket).encode()) > LONGEST_PATH_BYTES:
        found.add(
            socket,
            f"the path is longer than the {LONGEST_PATH_BYTES} bytes that a socket's may have; "
            "name a shorter folder under state",
        )
    with found.gathered(folder):
        if folder.exists():
            mode = folder.stat().st_mode
            if mode & 0o077:
                found.add(
                    folder,
                    f"others may open the folder of the site's state (mode {mode & 0o777:04o}, "
                    f"expected 0700); run: chmod 700 {folder}",
                )
        place = next(each for each in (folder, *folder.parents) if each.exists())
        try:
            with tempfile.TemporaryFile(dir=place):  # rights alone do not tell of a read-only disk
                pass
        except OSError as error:
            found.add(
                folder,
                f"nothing can be written in {place} ({error.strerror}); give it to the user that "
                "runs the daemon, or name another folder under state",
            )


def _check_room(site: CheckedSite, folder: Path, found: Findings) -> None:
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    largest = _PREPARED_FILES * site.settings.training.largest_prepared_bytes
    if free < _LEAST_FREE_BYTES:
        found.add(folder, f"{_gigabytes(free)} are free on this disk; free some, or move state")
    elif free < largest:
        found.add(
            folder,
            f"{_gigabytes(free)} are free on this disk, and prepared studies may take "
            f"{_gigabytes(largest)} of it (twice training.largest_prepared_bytes); free some, or "
            "lower that",
            "warning",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _check_ledger(path: Path, found: Findings) -> None:
    with found.gathered(path):
        entries = read_ledger(path)
        newest = max((entry.written_at for entry in entries), default=None)
        if newest is not None and _is_ahead(newest):
            found.add(
                path,
                f"its newest entry is of {newest}, and here it is "
                f"{datetime.now(UTC):%Y-%m-%dT%H:%M} UTC: the clock was set back, or was ahead "
                "then. Correct this machine's clock",
            )


def _is_ahead(written_at: str) -> bool:
    try:
        written = datetime.fromisoformat(written_at)
    except ValueError:
        return False  # times inform people, and the chain of hashes holds them as they are
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return written > datetime.now(UTC) + _SKEW
