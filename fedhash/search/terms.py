"""Who may ask for what, and how often: the agreement's section, the site's own and the router's.

    search:                          # in the agreement
      purposes: {care: all, research: [hospital-a, coordinator]}
      coordinator_key: 3b6a...       # Ed25519; without it the coordinator asks nothing
    queries:                         # in a site's file: what the site itself answers
      purposes: [care]
      largest_k: 50

Both bind: the smaller number, and purposes that stand in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedhash.configuration import Settings
from fedhash.errors import RefusedError
from fedhash.secagg.ed25519 import key_fault

__all__ = ["COORDINATOR", "QueryLimits", "RouterLimits", "SearchTerms"]

COORDINATOR = "coordinator"  # by this name the coordinator asks; no site has it
_MOST_QUERIES = 10_000_000


def _check_key(key: str) -> str:
    if fault := key_fault(bytes.fromhex(key)):
        raise ValueError(f"{key} {fault}; make one with 'fedhash-site identity FILE.pem'")
    return key


_PurposeName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,99}$")]
_Requester = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
_Key = Annotated[str, Field(pattern="^[0-9a-f]{64}$"), AfterValidator(_check_key)]
_Requesters = Annotated[tuple[_Requester, ...], Field(min_length=1, max_length=1001)]


class SearchTerms(Settings):
    """The agreement's section `search`; without it no site answers another one.

    Attributes:
        purposes: What may be asked for, and by whom: a list of sites, or all of them. The name
            "coordinator" stands for the coordinator, which `all` does not include.
        coordinator_key: Ed25519 public key with which the coordinator signs its queries, 64 hex
            digits; without it the coordinator cannot ask.
        smallest_bucket: An answer that rests on fewer patients of a site is empty, see
            `fedhash.search.policy`; 1: no bound.
        queries_per_hour: Of one requester to one site.
    """

    purposes: dict[_PurposeName, Literal["all"] | _Requesters] = Field(min_length=1, max_length=100)
    coordinator_key: _Key | None = None
    smallest_bucket: int = Field(default=1, ge=1, le=1000)
    queries_per_hour: int = Field(default=3600, ge=1, le=_MOST_QUERIES)

    @model_validator(mode="after")
    def _the_coordinator_can_sign(self) -> SearchTerms:
        if self.coordinator_key is None:
            for purpose, who in self.purposes.items():
                if COORDINATOR in who:
                    raise ValueError(
                        f"purposes.{purpose} lists the coordinator, which has no coordinator_key: "
                        "a site answers signed queries alone; add the key or remove the name"
                    )
        return self

    def askers(self, sites: Mapping[str, str]) -> dict[str, str]:
        """The public key of each who may sign queries, by name."""
        keys = dict(sites)
        if self.coordinator_key is not None:
            keys[COORDINATOR] = self.coordinator_key
        return keys

    def check_purpose(self, requester: str, purpose: str) -> None:
        """Refuse a purpose that is not agreed upon for this requester.

        Raises:
            RefusedError: "unknown_purpose" or "purpose_not_allowed".
        """
        who = self.purposes.get(purpose)
        if who is None:
            raise RefusedError(
                "unknown_purpose",
                f"the agreement knows no purpose {purpose!r}; it has {', '.join(self.purposes)}",
            )
        if requester not in who if who != "all" else requester == COORDINATOR:
            raise RefusedError(
                "purpose_not_allowed",
                f"the agreement does not let {requester!r} ask for {purpose!r}",
            )


class QueryLimits(Settings):
    """The section `queries` of a site's file: what it answers to others; without it nothing.

    Attributes:
        purposes: The purposes of the agreement for which the site answers.
        largest_k: Most hits of one answer.
        smallest_bucket: An answer that rests on fewer patients is empty; the larger of this and
            the agreement's binds.
        queries_per_hour: Of one requester.
    """

    purposes: tuple[_PurposeName, ...] = Field(min_length=1, max_length=100)
    largest_k: int = Field(default=50, ge=1)
    smallest_bucket: int = Field(default=3, ge=1, le=1000)
    queries_per_hour: int = Field(default=600, ge=1, le=_MOST_QUERIES)


class RouterLimits(Settings):
    """What the router takes on.

    Attributes:
        queries_in_flight: Of one requester at a time.
        queries_per_minute: Of one requester.
        site_queue: Queries that wait for one site at most.
        site_window: Queries that a site has been sent and has not answered, at most.
    """

    queries_in_flight: int = Field(default=16, ge=1, le=1000)
    queries_per_minute: int = Field(default=600, ge=1, le=_MOST_QUERIES)
    site_queue: int = Field(default=128, ge=1, le=10_000)
    site_window: int = Field(default=4, ge=1, le=1000)
