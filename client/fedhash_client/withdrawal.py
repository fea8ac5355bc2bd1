"""A patient withdraws: what is removed, in which order, and what cannot be.

1. The patient is written down first (`fedhash_client.withdrawn`). From then on no reading of the
   manifest holds them, so nothing new is made of their data: no training, no index, no cache.
2. Then everything made of them before is removed: from every archive, also one that is being
   filled, the keyword store, the prepared studies on the disk and whatever the daemon holds warm.
3. Then a receipt goes to the audit log, and only then the withdrawal counts as complete. A process
   that dies on the way leaves it pending, and `complete_withdrawals` goes through all steps again;
   each may be repeated. So a receipt may stand twice in the log, never not at all.
4. The audit log names the patient by a keyed hash only, under the handle key.
5. What remains is said in the receipt: released models keep what they have learnt. Snapshots and
   backups of the disk are out of reach, as are the manifest and the images, which are the site's.

    >>> withdraw(settings, agreement, "patient-7", served=served, note=log.append).archive_entries
    4
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedhash.agreement import Agreement
from fedhash.data.manifest import read_manifest
from fedhash.errors import ManifestError, QueryError
from fedhash.privacy import read_ledger, spending
from fedhash_client.archive_index import read_handle_key, state_folder
from fedhash_client.daemon.prepared_cache import PreparedCache
from fedhash_client.keyword_index import remove_keywords
from fedhash_client.releases.served import ServedReleases
from fedhash_client.settings import SiteSettings
from fedhash_client.withdrawn import Withdrawn

__all__ = ["Receipt", "audit_file", "complete_withdrawals", "patient_pseudonym", "withdraw"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """What was done for a patient who withdrew.

    Attributes:
        patient: Keyed hash of the id, under the handle key: who holds both finds the receipt.
        since: When the patient was written down, in UTC.
        studies: Rows of the manifest that name the patient; None if it cannot be read. They are
            left out from now on; the file itself is the site's to change.
        archive_entries: Removed from archives.
        keyword_reports: Removed from the keyword store.
        release: Of the archive that answers, if there is one.
        epsilon: What all that the site ever released tells of one patient at most, by its ledger;
            None: there is no bound.
        delta: At which epsilon holds.
        remains: What cannot be taken back, in words.
    """

    patient: str
    since: str
    studies: int | None
    archive_entries: int
    keyword_reports: int
    release: str | None
    epsilon: float | None
    delta: float | None
    remains: str


def withdraw(
    settings: SiteSettings,
    agreement: Agreement,
    patient_id: str,
    *,
    served: ServedReleases,
    note: Callable[[dict[str, Any]], object],
    forget: Sequence[Callable[[], object]] = (),
) -> Receipt:
    """Remove a patient; when this returns nothing of theirs is left in what the site derived.

    Args:
        settings: The site.
        agreement: What it signed.
        patient_id: As the manifest has it.
        served: The site's archives.
        note: Writes an entry of the audit log.
        forget: Called to drop what a daemon holds in memory of the data; may wait for a training
            that is under way.

    Raises:
        QueryError: The id is blank, or no text.
        ArchiveError: An archive cannot be written; the withdrawal stays pending.
        DataError: The list of those who withdrew is damaged.
        LedgerError: The privacy ledger was altered; everything is removed, and it stays pending.
        AuditError: The receipt cannot be written; likewise.
        StorageError: The operating system refuses; likewise.
    """
    if not patient_id.strip() or patient_id != patient_id.strip():
        raise QueryError("the patient's id is blank or has white space around; give it as it is")
    if any("\ud800" <= each <= "\udfff" for each in patient_id):  # as Python reads stray bytes
        raise QueryError("the patient's id is not UTF-8, and no manifest holds such an id")
    withdrawn = Withdrawn(state_folder(settings))
    with withdrawn.locked():
        withdrawn.begin(patient_id)
        entries = served.remove_patient(patient_id)
        reports = remove_keywords(settings, patient_id)
    for each in (PreparedCache(state_folder(settings) / "prepared").forget, *forget):
        each()
    now = served.current()
    epsilon, delta, remains = _remains(settings)
    receipt = Receipt(
        patient=patient_pseudonym(read_handle_key(settings.handle_key), patient_id),
        since=withdrawn.since(patient_id) or "",
        studies=_rows(settings, agreement, patient_id),
        archive_entries=entries,
        keyword_reports=reports,
        release=None if now is None else now.release.release_id,
        epsilon=epsilon,
        delta=delta,
        remains=remains,
    )
    note({"kind": "withdrawal", **asdict(receipt)})
    with withdrawn.locked():
        withdrawn.finish(patient_id)
    return receipt


def complete_withdrawals(
    settings: SiteSettings,
    agreement: Agreement,
    *,
    served: ServedReleases,
    note: Callable[[dict[str, Any]], object],
) -> int:
    """Complete what a process that died left pending; returns how many.

    Raises:
        FedhashError: As `withdraw`; what is pending stays so.
    """
    pending = Withdrawn(state_folder(settings)).pending()
    for patient_id in pending:
        withdraw(settings, agreement, patient_id, served=served, note=note)
    if pending:
        _log.info("%d withdrawals that were cut short are complete", len(pending))
    return len(pending)


def audit_file(settings: SiteSettings) -> Path:
    """The site's audit log."""
    return state_folder(settings) / "audit.jsonl"


def patient_pseudonym(handle_key: bytes, patient_id: str) -> str:
    """How the audit log names a patient: 32 hex digits."""
    return hashlib.blake2b(
        patient_id.encode(), digest_size=16, key=handle_key, person=b"fedhash-patient"
    ).hexdigest()


def _rows(settings: SiteSettings, agreement: Agreement, patient_id: str) -> int | None:
    try:
        manifest = read_manifest(settings.manifest, agreement.findings, agreement.modalities)
    except ManifestError:
        return None
    return sum(study.patient_id == patient_id for study in manifest.studies)


def _remains(settings: SiteSettings) -> tuple[float | None, float | None, str]:
    """What of the patient stays in models that were trained: epsilon, delta, and words."""
    stays = "Models that were released before stay as they are: what they learnt is not taken back."
    privacy = settings.privacy
    if privacy is None or not privacy.ledger.exists():
        unbounded = (
            f"{stays} This site has no privacy ledger, so there is no bound on it: if the "
            "patient's studies trained, a model may remember them."
        )
        return None, None, unbounded
    events = [entry.event for entry in read_ledger(privacy.ledger)]
    spent = spending(events, privacy.delta)
    bound = (
        f"{stays} By this site's ledger, all that it ever released from private rounds tells of "
        f"one patient at most epsilon {spent.together:.4g} at delta {privacy.delta:g} (trust: "
        f"{spent.trust}). Rounds without privacy, if the site took part in any, have no bound."
    )
    return spent.together, privacy.delta, bound
