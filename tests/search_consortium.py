"""A small consortium that searches: agreement, identities, archives and queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedhash.agreement import Agreement
from fedhash.codes import unpack_signs
from fedhash.index import Archive, Entry, site_handle
from fedhash.search import Hit, Query
from fedhash.search.asking import sign_query
from fedhash.search.wire.queries import encode_signed
from fedhash.secagg.identity import SiteIdentity

SITES = ("hospital-a", "hospital-b", "hospital-c")
BITS = 16
RELEASE = "0f" * 32
NOW_MS = 1_760_000_000_000


def identity(name: str) -> SiteIdentity:
    return SiteIdentity.from_seed(name.encode().ljust(32, b"\0")[:32])


def agreement(**changes: object) -> Agreement:
    fields: dict[str, object] = {
        "name": "thorax",
        "findings": ("no_finding", "edema"),
        "code_bits": BITS,
        "modalities": ("image", "report"),
        "largest_k": 20,
        "sites": {name: identity(name).public_hex for name in SITES},
        "search": {
            "purposes": {"care": "all", "research": ("hospital-a", "coordinator")},
            "coordinator_key": identity("coordinator").public_hex,
        },
    }
    return Agreement(**(fields | changes))


def query(**changes: object) -> Query:
    fields: dict[str, object] = {
        "release_id": RELEASE,
        "modality": "image",
        "code": bytes(2),
        "weights": np.arange(-8, 8, dtype=np.int16),
        "k": 5,
    }
    return Query(**(fields | changes))


def asked(
    requester: str = "hospital-a",
    terms: Agreement | None = None,
    *,
    of: Query | None = None,
    purpose: str = "care",
    now_ms: int = NOW_MS,
    life_ms: int = 10_000,
    key: str | None = None,
) -> bytes:
    """A signed query as it travels."""
    signed = sign_query(
        of or query(),
        identity(key or requester),
        requester=requester,
        purpose=purpose,
        agreement=(terms or agreement()).digest(),
        now_ms=now_ms,
        life_ms=life_ms,
    )
    return encode_signed(signed)


def brute_force(site: str, codes: list[bytes], wanted: Query) -> list[Hit]:
    """The definition of a site's answer, study by study."""
    signs = unpack_signs(np.frombuffer(wanted.code, dtype=np.uint8)[None])[0]
    hits = []
    for number, code in enumerate(codes):
        bits = unpack_signs(np.frombuffer(code, dtype=np.uint8)[None])[0]
        distance = int((bits != signs).sum())
        score = sum(int(w) * int(h) for w, h in zip(wanted.weights, bits, strict=True))
        if wanted.radius is None or distance <= wanted.radius:
            hits.append(Hit(site, handle(site, number), distance, score))
    return sorted(hits, key=lambda hit: hit.rank)[: wanted.k]


def handle(site: str, number: int) -> str:
    return site_handle(site.encode().ljust(16, b"\0"), f"study-{number}")


def archive(folder: Path, site: str, entries: list[tuple[str, bytes, dict[str, str]]]) -> Archive:
    """An open archive of images: patient, code, attributes."""
    made = Archive(folder / f"{site}.sqlite", RELEASE, BITS)
    made.add(
        [
            Entry(handle(site, number), patient, "image", code, attributes)
            for number, (patient, code, attributes) in enumerate(entries)
        ]
    )
    return made
