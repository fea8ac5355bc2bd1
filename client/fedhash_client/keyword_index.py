"""The site's keyword store: made of the consenting patients' reports, kept in the state folder.

It is made anew when the manifest, or a file that it names, has changed.

    >>> with open_keywords(settings, agreement) as store:
    ...     store.search("effusion", k=10)
"""

from __future__ import annotations

from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.errors import ArchiveError, QueryError, StorageError
from fedhash.index import site_handle
from fedhash.index.keywords import KeywordStore
from fedhash_client.archive_index import (
    data_fingerprint,
    read_handle_key,
    read_site_manifest,
)
from fedhash_client.daemon.paths import state_folder
from fedhash_client.settings import SiteSettings
from fedhash_client.withdrawn import Withdrawn

__all__ = ["open_keywords", "remove_keywords"]

_REPORT = "report"


def open_keywords(settings: SiteSettings, agreement: Agreement) -> KeywordStore:
    """The store, made or made anew if need be.

    Raises:
        QueryError: The agreement has no reports.
        ManifestError: The manifest cannot be read.
        DataError: A report cannot be read.
        ArchiveError: The store cannot be written.
        StorageError: The operating system refuses a file.
    """
    if _REPORT not in agreement.modalities:
        raise QueryError(
            f"the agreement has no reports, only {', '.join(agreement.modalities)}, so there are "
            "no words to search; images are searched with a release"
        )
    path = _path(settings)
    with Withdrawn(state_folder(settings)).locked():  # nobody withdraws while texts are copied
        studies = [
            study
            for study in read_site_manifest(settings, agreement).studies
            if study.consent and _REPORT in study.contents
        ]
        key = read_handle_key(settings.handle_key)
        fingerprint = data_fingerprint(settings.manifest, studies, key)
        if path.exists():
            try:
                store = KeywordStore(path)
            except ArchiveError:
                remove_keywords(settings, None)
            else:
                if store.fingerprint == fingerprint:
                    return store
                store.close()
        KeywordStore.build(
            path,
            fingerprint,
            (
                (
                    site_handle(key, study.study_id),
                    study.patient_id,
                    str(study.contents[_REPORT].load()),
                )
                for study in studies
            ),
        )
        return KeywordStore(path)


def remove_keywords(settings: SiteSettings, patient_id: str | None) -> int:
    """Remove a patient's reports from the store, or the whole store where it is damaged or None.

    Called with `Withdrawn.locked` held.

    Returns:
        How many reports there were.

    Raises:
        StorageError: The operating system refuses.
    """
    path = _path(settings)
    try:
        KeywordStore.discard(path.with_name(path.name + ".creating"))
        if patient_id is not None and path.exists():
            try:
                with KeywordStore(path) as store:
                    return store.remove_patient(patient_id)
            except ArchiveError:
                patient_id = None
        if patient_id is None:
            KeywordStore.discard(path)
    except OSError as error:
        raise StorageError(error, path) from error
    return 0


def _path(settings: SiteSettings) -> Path:
    return state_folder(settings) / "keywords.sqlite"
