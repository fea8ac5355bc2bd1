"""What a site answers searches with: one release, its model and its archive, always of each other.

1. An archive says which release it is of, and releases are named by their content. So the link of
   `archive_folder` alone is the switch: whenever the process dies, the archive behind it is whole,
   and its release is the one that it names, in state/releases/RELEASE_ID/.
2. A new archive is filled beside the old one, which answers meanwhile. A killed filling goes on
   where it was: studies that have their entries are skipped, and a batch is stored whole or not.
   Data that changed (the manifest, a file that it names) has another name, so it starts anew.
3. After the switch the archive before stays, for a way back without encoding; older ones go.
4. `ServedRelease` is a snapshot. A search that has taken one ends with it, whatever is switched.
5. Whoever withdraws is removed from all of these archives, also from one that is being filled. What
   is encoded already and not yet stored is left out when it is stored (`Withdrawn.locked`).
6. So is a study whose row says no to consent (`consent`): looked at when an archive is opened
   or filled, and whenever a query asks for the one that answers. Where that fails, none answers.
7. One process at a time has them open.

    >>> with ServedReleases(settings, agreement) as served:
    ...     served.adopt(release, progress=print)
    ...     served.current().archive.search(query)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.data.study import Study
from fedhash.errors import ArchiveError, DataError, ReleaseError, StorageError
from fedhash.index import Archive, archive_release, site_handle
from fedhash.index.encoding import encode_entries
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import prepare_studies
from fedhash.registry.release import Release, check_codes, load_release
from fedhash_client.archive_index import (
    data_fingerprint,
    read_handle_key,
    read_site_manifest,
)
from fedhash_client.daemon.paths import state_folder
from fedhash_client.releases.archive_folder import ArchiveFolder, remove_archive
from fedhash_client.releases.consent import RefusedStudies
from fedhash_client.releases.source import untold
from fedhash_client.settings import SiteSettings
from fedhash_client.withdrawn import Withdrawn

__all__ = ["ServedRelease", "ServedReleases", "check_release"]

_BLOCK_STUDIES = 512  # encoded and stored at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedRelease:
    """A consistent snapshot: codes of the archive are made by the model, which is the release's."""

    release: Release
    model: HashModel
    archive: Archive


def check_release(release: Release, agreement: Agreement) -> None:
    """Refuse a release whose codes mean something else under this agreement.

    Raises:
        ReleaseError: Consortium, vocabulary, code length or modalities differ.
    """
    check_codes(release.release_id, release.agreement, agreement)


class ServedReleases:
    """The site's archives; inert until they are acquired.

    Attributes:
        releases: Folder of the releases that the site holds.
    """

    def __init__(self, settings: SiteSettings, agreement: Agreement) -> None:
        self._settings = settings
        self._agreement = agreement
        self._folder = ArchiveFolder(settings.archive)
        self._withdrawn = Withdrawn(state_folder(settings))
        self.releases = state_folder(settings) / "releases"
        self._served: ServedRelease | None = None
        self._filling: Archive | None = None
        self._refused = RefusedStudies(settings.manifest, settings.handle_key)

    def acquire(self) -> None:
        """Lock the archives for this process; nothing else may be called before.

        Raises:
            ArchiveError: Another process has them.
            StorageError: The operating system refuses a folder.
        """
        self._folder.acquire()
        try:
            for each in (self.releases.parent, self.releases):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._folder.close()
            raise StorageError(error, self.releases) from error

    def __enter__(self) -> ServedReleases:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archives."""
        if self._served is not None:
            self._served.archive.close()
        self._served = None
        self._folder.close()

    def current(self) -> ServedRelease | None:
        """What answers now; None where the site has no archive yet, or `open` was not called."""
        return self._served

    def archive(self) -> Archive | None:
        """The archive that answers now, see `current`; it holds nobody whose row refuses.

        Raises:
            FedhashError: Entries that must go cannot be removed.
        """
        self.heed_consent()
        return None if self._served is None else self._served.archive

    def heed_consent(self) -> None:
        """Remove studies whose row says no to consent, if the manifest has changed.

        Where nothing answers yet there is nothing to do.

        Raises:
            ArchiveError: An archive that answers cannot be written, or the handle key is none.
            StorageError: The operating system refuses.
        """
        if self._served is None or not self._refused.changed():
            return
        removed = 0
        with self._withdrawn.locked():
            self._refused.read()
            if handles := self._refused.handles:
                removed = self._remove(lambda each: each.remove_studies(handles))
            self._refused.heeded()  # not before: else another thread would search meanwhile
        if removed:
            _log.info("entries of studies without consent were removed from the archives")

    def open(self, release: Release | None = None) -> ServedRelease | None:
        """Open what the link names, if anything.

        Args:
            release: To be used in the place of the site's own copy; it must be that of the archive.

        Raises:
            ArchiveError: The archive is damaged or in use.
            ReleaseError: The site does not hold its release, or it does not verify.
        """
        path = self._folder.linked()
        if path is None:
            return None
        if release is None:
            release_id, _ = archive_release(path)
            folder = self.releases / release_id
            if not folder.is_dir():
                raise ReleaseError(
                    f"{self._folder.link} holds codes of release {release_id[:12]}, and {folder} "
                    "is not there; copy the release there, or let the site fetch it again"
                )
            release = load_release(folder)
        check_release(release, self._agreement)
        archive = Archive(path, release.release_id, self._agreement.code_bits)
        served = ServedRelease(release, release.build_model(), archive)
        self._served = served
        self.heed_consent()
        return served

    def adopt(
        self,
        release: Release,
        progress: Callable[[int, int], None] = untold,
        *,
        anew: bool = False,
    ) -> ServedRelease:
        """Fill the archive of a release and switch to it.

        Args:
            release: Verified.
            progress: Called with studies done and in all; may raise to stop.
            anew: Encode everything, whatever is there.

        Raises:
            ReleaseError: The release belongs to another agreement.
            ManifestError: The manifest cannot be read.
            DataError: No study can be used.
            ArchiveError: The archive cannot be written.
            StorageError: The operating system refuses.
        """
        check_release(release, self._agreement)
        with self._withdrawn.locked():
            self._refused.read()
        manifest = read_site_manifest(self._settings, self._agreement)
        studies = [each for each in manifest.studies if each.consent]
        if not studies:
            raise DataError(
                f"{self._settings.manifest} holds no usable study with consent; "
                "fedhash-site check names the reason of each row"
            )
        key = read_handle_key(self._settings.handle_key)
        before = self._folder.linked()
        data = data_fingerprint(self._settings.manifest, studies, key)[:16]
        name = f"{release.release_id[:16]}-{data}"
        path = self._folder.path / f"{name}.sqlite"
        again = self._folder.path / f"{name}-again.sqlite"
        if (path if anew else again) == before:
            path, again = again, path
        if path == before and not anew:
            served = self._reopened(release)
            if served is not None:
                progress(len(studies), len(studies))
                return served
            path, anew = again, True  # what answered is damaged
        if anew:
            remove_archive(path)
        model = release.build_model()
        archive = self._opened(path, release)
        try:
            self._fill(archive, model, studies, key, progress)
            served = ServedRelease(release, model, archive)
            with self._withdrawn.locked():
                self._folder.point_to(path)
                former, self._served, self._filling = self._served, served, None
                if former is not None:
                    former.archive.close()  # searches that hold it need its file no more
        except BaseException:
            with self._withdrawn.locked():
                self._filling = None
                archive.close()
            raise
        self._tidy(path, before, release)
        return served

    def remove_patient(self, patient_id: str) -> int:
        """Remove a patient from every archive; called with `Withdrawn.locked` held.

        Returns:
            How many entries there were, in all archives together.

        Raises:
            ArchiveError: An archive that answers cannot be written.
            StorageError: The operating system refuses.
        """
        return self._remove(lambda each: each.remove_patient(patient_id))

    def _remove(self, remove: Callable[[Archive], int]) -> int:
        """Let every archive remove entries; returns how many there were."""
        removed = 0
        opened = [self._filling, None if self._served is None else self._served.archive]
        paths = {each.path for each in opened if each is not None}
        for archive in opened:
            if archive is not None:
                removed += remove(archive)
        linked = self._folder.linked()
        for path in sorted(self._folder.archives() - paths):
            try:
                release_id, code_bits = archive_release(path)
                with Archive(path, release_id, code_bits) as archive:
                    removed += remove(archive)
            except ArchiveError:
                if path == linked:
                    raise
                _log.warning("%s cannot be read; it does not answer, so it is removed", path)
                remove_archive(path)
        return removed

    def _fill(
        self,
        archive: Archive,
        model: HashModel,
        studies: Sequence[Study],
        key: bytes,
        progress: Callable[[int, int], None],
    ) -> None:
        handles = [site_handle(key, study.study_id) for study in studies]
        there = {modality: archive.handles(modality) for modality in model.modalities}
        missing = [
            place
            for place, study in enumerate(studies)
            if any(name in study.contents and handles[place] not in there[name] for name in there)
        ]
        done = len(studies) - len(missing)
        progress(done, len(studies))
        for start in range(0, len(missing), _BLOCK_STUDIES):
            block = missing[start : start + _BLOCK_STUDIES]
            prepared = prepare_studies(
                model, [studies[place] for place in block], self._agreement.findings
            )
            entries = encode_entries(model, prepared, [handles[place] for place in block])
            with self._withdrawn.locked():
                gone = self._withdrawn.among([entry.patient_id for entry in entries])
                refused = self._refused.handles
                archive.add(
                    [e for e in entries if e.patient_id not in gone and e.handle not in refused]
                )
            progress(done + start + len(block), len(studies))

    def _reopened(self, release: Release) -> ServedRelease | None:
        """The archive that the link names, which is of this release; None if it is damaged."""
        try:
            return self._served or self.open(release)
        except ArchiveError:
            _log.warning("%s cannot be used; it is encoded anew", self._folder.link, exc_info=True)
            return None

    def _opened(self, path: Path, release: Release) -> Archive:
        """The archive to fill; one that a crash damaged is thrown away."""
        with self._withdrawn.locked():
            try:
                archive = Archive(path, release.release_id, self._agreement.code_bits)
            except ArchiveError:
                if not path.exists():
                    raise
                _log.warning("%s cannot be used; it is encoded anew", path, exc_info=True)
                remove_archive(path)
                archive = Archive(path, release.release_id, self._agreement.code_bits)
            self._filling = archive
        return archive

    def _tidy(self, path: Path, before: Path | None, release: Release) -> None:
        """Remove archives and releases that nobody goes back to."""
        for archive in self._folder.archives():
            if archive not in {path, before}:
                remove_archive(archive)
        kept = {release.release_id}
        if before is not None:
            try:
                kept.add(archive_release(before)[0])
            except ArchiveError:
                remove_archive(before)
        for folder in self.releases.iterdir():
            if folder.is_dir() and folder.name.partition(".")[0] not in kept:
                shutil.rmtree(folder)
