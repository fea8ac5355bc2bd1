"""One study in one modality as the archive holds it, and the opaque name it goes by.

A handle is the keyed BLAKE2b of the study id under a secret that only the site knows, so a peer who
sees handles learns neither ids nor how many studies there are, and cannot test a guess.

    >>> handle = site_handle(secret, "CXR-2024-001")
    >>> Entry(handle, "patient-7", "image", code, {"sex": "f"})
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedhash.errors import ArchiveError
from fedhash.search.hit import HANDLE_BYTES

__all__ = ["HANDLE_BYTES", "Entry", "site_handle"]

_SECRET_BYTES = (16, 64)  # 64 is the longest key of BLAKE2b (RFC 7693)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored of one study in one modality.

    Attributes:
        handle: 32 lowercase hex digits from `site_handle`.
        patient_id: Whose study it is; stored as a keyed hash only.
        modality: Such as "image"; a study has one entry a modality.
        code: The packed code, b/8 bytes.
        attributes: Coarse values to filter by (sex, age band, scanner). Each combination is
            stored and kept in memory once, so they are no place for free text or dates.
    """

    handle: str
    patient_id: str
    modality: str
    code: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


def site_handle(secret: bytes, study_id: str) -> str:
    """The opaque name of a study: 32 hex digits.

    Args:
        secret: 16 to 64 random bytes, the same for the life of the site's archive.
        study_id: The site's own name of the study.

    Raises:
        ArchiveError: The secret is too short or too long.
    """
    low, high = _SECRET_BYTES
    if not low <= len(secret) <= high:
        raise ArchiveError(
            f"the site's handle secret has {len(secret)} bytes; draw {low} to {high} random bytes"
        )
    name = study_id.encode()
    return hashlib.blake2b(
        name, digest_size=HANDLE_BYTES, key=secret, person=b"fedhash-handle"
    ).hexdigest()
