"""The agreement: what all sites and the coordinator have signed up to.

Every limit in it is enforced at the site before any work. Two parties hold the same agreement
exactly if their digests are equal; every message of a round carries the digest.

    agreement = read_settings(Path("configs/agreement/phantom.yaml"), Agreement)
    agreement.findings      # ("no_finding", "cardiomegaly", ...)
    agreement.digest()      # "5a0c..." (64 hex digits)
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from fedhash.codes import CODE_BITS_RANGE
from fedhash.configuration import Settings, did_you_mean
from fedhash.privacy.terms import AgreedPrivacy
from fedhash.search.terms import COORDINATOR, SearchTerms
from fedhash.secagg.ed25519 import key_fault
from fedhash.secagg.terms import SecureAggregationTerms

__all__ = ["Agreement", "SiteName"]

_LEAST_BITS, _MOST_BITS = CODE_BITS_RANGE
_NAME_PATTERN = "[a-z][a-z0-9_]*"
_OF_CODES = {
    *("name", "findings", "parents", "ancestor_weight", "code_bits"),
    *("anchors_version", "modalities"),
}


# of Unicode: formats, such as zero-width and those that turn the direction, and separators of lines
_HIDDEN = ("Cf", "Zl", "Zp")


def _as_read(site: str) -> str:
    """Equal for names that people take for one."""
    return unicodedata.normalize("NFKC", site).casefold().strip()


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME_PATTERN, name):
        plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
        example = re.sub("[^a-z0-9]+", "_", plain).strip("_0123456789") or "pleural_effusion"
        raise ValueError(
            f"{name!r} is no name; write lowercase letters, digits and underscores, "
            f"starting with a letter, such as '{example}'"
        )
    return name


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"listed more than once: {', '.join(repeated)}; keep one of each")
    return names


def _check_key(key: str) -> str:
    if fault := key_fault(bytes.fromhex(key)):
        raise ValueError(
            f"{key} {fault}; ask its holder for the public key again (a site's is what "
            "'fedhash-site identity' prints there)"
        )
    return key


_Name = Annotated[
    str, AfterValidator(_check_name), Field(json_schema_extra={"pattern": f"^{_NAME_PATTERN}$"})
]
_Names = Annotated[
    tuple[_Name, ...],
    AfterValidator(_check_distinct),
    Field(json_schema_extra={"uniqueItems": True}),
]
SiteName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
_PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), AfterValidator(_check_key)]
# Cosines lie in [-1, 1], so no code can keep a margin above 2.
_Margin = Annotated[float, Field(ge=0, le=2)]


class Agreement(Settings):
    """The terms of a consortium.

    Attributes:
        name: The consortium's name.
        version: Counts the agreed revisions of this document.
        findings: The label vocabulary, K names; its order fixes the anchors.
        parents: Child finding to parent finding, both from the vocabulary.
        ancestor_weight: Weight of a finding's parent in its semantic target (lambda); of its
            grandparent lambda squared, and so on.
        code_bits: Length b of every code.
        anchors_version: Version of the construction of the anchors.
        modalities: What a study may hold, such as "image" or "report".
        smallest_cohort: Sites without which no round is finished.
        margin_range: Lowest and highest margin that a site accepts.
        largest_margin_step: Most that a finding's margin may move in one step of a margin schedule.
        largest_k: Most hits that one query may ask of a site.
        largest_local_steps: Most optimiser steps that one round may ask of a site.
        sites: The roster: each site's name and the Ed25519 public key of its identity, 64 hex
            digits, each site another. Names differ by more than upper and lower case. Secure
            aggregation takes no keys but those signed by an identity of this list.
        secure_aggregation: The terms of secure aggregation.
        release_key: The coordinator's Ed25519 public key, 64 hex digits: sites take a release from
            the network only if it has signed it. Null where none is released so.
        privacy: A cap on epsilon for every site, beside its own; both bind. Private rounds need it,
            for its delta and its modes as well; null where there are none.
        search: Who may search the sites' archives for what; null: nobody but each site its own.
    """

    name: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    findings: _Names = Field(min_length=2, max_length=1000)
    parents: dict[str, str] = Field(default={})
    ancestor_weight: float = Field(default=0.5, ge=0, le=1)
    code_bits: int = Field(default=64, ge=_LEAST_BITS, le=_MOST_BITS, multiple_of=8)
    anchors_version: int = Field(default=1, ge=1)
    modalities: _Names = Field(min_length=1)
    smallest_cohort: int = Field(default=3, ge=1)
    margin_range: tuple[_Margin, _Margin] = (0.05, 0.6)
    largest_margin_step: float = Field(default=0.05, gt=0, le=2)
    largest_k: int = Field(default=100, ge=1)
    largest_local_steps: int = Field(default=1000, ge=1)
    sites: dict[SiteName, _PublicKey] = Field(default={}, max_length=1000)
    secure_aggregation: SecureAggregationTerms = SecureAggregationTerms()
    release_key: _PublicKey | None = None
    privacy: AgreedPrivacy | None = None
    search: SearchTerms | None = None

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hex digits; equal for equal agreements only."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def codes_digest(self) -> str:
        """SHA-256 of what gives a code its meaning, as 64 hex digits.

        A release outlives changes of all else: who takes part, what may be asked, the caps.
        """
        canonical = json.dumps(
            self.model_dump(mode="json", include=_OF_CODES), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @field_validator("sites")
    @classmethod
    def _check_identities_differ(cls, sites: dict[str, str]) -> dict[str, str]:
        holders: dict[str, list[str]] = {}
        for site, key in sites.items():
            holders.setdefault(key, []).append(site)
        if shared := [" and ".join(each) for each in holders.values() if len(each) > 1]:
            raise ValueError(
                f"one public key for {'; one for '.join(shared)}; each site makes a key of its own "
                "with 'fedhash-site identity'"
            )
        return sites

    @field_validator("sites")
    @classmethod
    def _check_names_are_seen(cls, sites: dict[str, str]) -> dict[str, str]:
        for site in sites:
            hidden = [each for each in site if unicodedata.category(each) in _HIDDEN]
            if hidden or site != site.strip():
                raise ValueError(
                    f"{site!a} is no name: it has characters that nobody sees, or blanks at "
                    "an end, and would pass for another; write it without them"
                )
        return sites

    @field_validator("sites")
    @classmethod
    def _check_names_differ(cls, sites: dict[str, str]) -> dict[str, str]:
        spellings: dict[str, list[str]] = {}
        for site in sites:
            spellings.setdefault(_as_read(site), []).append(site)
        if alike := [" and ".join(map(repr, each)) for each in spellings.values() if each[1:]]:
            raise ValueError(
                "names that differ by upper and lower case or by their form in Unicode alone: "
                f"{'; '.join(alike)}; people and some disks take them for one, so rename one"
            )
        return sites

    @field_validator("sites")
    @classmethod
    def _check_reserved_name(cls, sites: dict[str, str]) -> dict[str, str]:
        if COORDINATOR in {_as_read(site) for site in sites}:
            raise ValueError(
                f"a site is called {COORDINATOR!r}, by which name the coordinator asks; rename it"
            )
        return sites

    @field_validator("margin_range")
    @classmethod
    def _check_margin_range(cls, margins: tuple[float, float]) -> tuple[float, float]:
        low, high = margins
        if low > high:
            raise ValueError(f"the lowest margin {low} is above the highest {high}; swap them")
        return margins

    @field_validator("parents")
    @classmethod
    def _check_parents(cls, parents: dict[str, str], info: Any) -> dict[str, str]:
        # `info` is a ValidationInfo, a protocol that beartype cannot check
        findings = info.data.get("findings")
        if findings is None:
            return parents  # the findings are wrong themselves, which is reported
        unknown = [n for n in dict.fromkeys([*parents, *parents.values()]) if n not in findings]
        if unknown:
            hints = "; ".join(f"'{name}' ({did_you_mean(name, findings)})" for name in unknown)
            raise ValueError(f"not among the findings: {hints}")
        cleared: set[str] = set()  # else a long line is walked anew from each of its findings
        for child in parents:
            line = [child]
            while (ancestor := parents.get(line[-1])) is not None and ancestor not in cleared:
                if ancestor in line:
                    cycle = " -> ".join([*line, ancestor])
                    raise ValueError(f"{cycle} is a circle; a finding cannot be its own ancestor")
                line.append(ancestor)
            cleared.update(line)
        return parents
