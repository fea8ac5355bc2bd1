"""The site's data: the manifest with every file it names, consent, and files of frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedhash.privacy.terms import PrivacyTerms
from fedhash_client.archive_index import read_site_manifest
from fedhash_client.checks.findings import CheckedSite, Finding, Findings
from fedhash_client.privacy_budget import limits_of

__all__ = ["DataCounts", "check_data"]


@dataclass(frozen=True)
class DataCounts:
    """What the manifest holds.

    Attributes:
        studies: Usable rows.
        patients: Of these.
        without_consent: Usable rows whose patient does not consent.
        rows_with_problems: Rows that cannot be used.
        positive: Finding to the number of consenting studies that have it.
        frozen: Modality to the SHA-256 of its file of frozen features, which round files name.
    """

    studies: int = 0
    patients: int = 0
    without_consent: int = 0
    rows_with_problems: int = 0
    positive: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


def check_data(site: CheckedSite, found: Findings) -> DataCounts:
    """Read every study of the manifest and every file of frozen features."""
    frozen = _check_frozen(site, found)
    agreement, path = site.agreement, site.settings.manifest
    if not path.exists():
        message = "there is no manifest; write one, docs/site.md lists its columns, or name another"
        found.add(path, message)
    if agreement is None or not path.exists():
        return DataCounts(frozen=frozen)
    with found.gathered(path):
        manifest = read_site_manifest(site.settings, agreement)
        found.findings += [Finding("error", problem) for problem in manifest.problems]
        consenting = [study for study in manifest.studies if study.consent]
        if not consenting:
            found.add(
                path, "no row is a usable study with consent; training and the index need some"
            )
        patients = len({study.patient_id for study in manifest.studies})
        _check_delta(site, patients, found)
        return DataCounts(
            len(manifest.studies),
            patients,
            len(manifest.studies) - len(consenting),
            len(manifest.problems),
            {
                finding: sum(finding in study.positive for study in consenting)
                for finding in agreement.findings
            },
            frozen,
        )
    return DataCounts(frozen=frozen)


def _check_delta(site: CheckedSite, patients: int, found: Findings) -> None:
    if site.settings.privacy is None or site.agreement is None or not patients:
        return
    limits: dict[str, PrivacyTerms] = limits_of(site.settings.privacy, site.agreement)
    for whose, terms in limits.items():
        if terms.delta >= 1 / patients:
            own = whose == "the site"
            remedy = "choose one" if own else "have the consortium agree on one"
            found.add_at(
                site.file if own else site.settings.agreement,
                ("privacy", "delta"),
                f"delta {terms.delta:g} is not below one over the {patients} patients here, so the "
                "guarantee would allow to publish a whole patient; "
                f"{remedy} of at most {0.1 / patients:.1g}",
            )


def _check_frozen(site: CheckedSite, found: Findings) -> dict[str, str]:
    hashes = {}
    for modality, path in site.settings.training.frozen.items():
        from fedhash.models.frozen_features import FrozenFeatures  # torch takes seconds

        with found.gathered(path):
            features = FrozenFeatures.load(path)
            hashes[modality] = features.sha256
            if features.modality != modality:
                found.add_at(
                    site.file,
                    ("training", "frozen", modality),
                    f"{path} holds frozen features of {features.modality!r}; name it under that, "
                    f"and the file of {modality!r} here",
                )
    return hashes
