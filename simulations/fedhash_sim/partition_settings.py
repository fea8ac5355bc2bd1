"""The partition of a study file: how its training patients are dealt to sites.

>>> Partition(scheme="dirichlet", sites=10, alpha=0.1).site_names
('site-00', 'site-01', ...)
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from fedhash.configuration import Settings

__all__ = ["Partition"]

_SCHEME_OF = {  # of a partition's argument
    "alpha": "dirichlet",
    "findings_per_site": "pathological",
    "shards_per_site": "shard",
}


class Partition(Settings):
    """How the training patients are dealt to sites.

    All but `natural` deal patients; those that look at findings give each patient one of its
    positive findings for a class.

    Attributes:
        scheme: natural follows an attribute of the studies; iid deals evenly; dirichlet unevenly
            by class; pathological gives each site few classes; shard sorts the patients by class
            and cuts them into equal shards; linear, square and exponential deal at random to sites
            whose sizes grow so with their number.
        sites: Number of sites; not for `natural`.
        attribute: That `natural` follows.
        alpha: Concentration of the Dirichlet draw; small is uneven, and a million so even that more
            changes nothing. For `dirichlet` alone.
        findings_per_site: Classes that a site sees. For `pathological` alone.
        shards_per_site: For `shard` alone.
        smallest_site_patients: Every site has at least so many training patients: a deal with a
            smaller site is drawn again, smaller natural sites are pooled into one.
    """

    scheme: Literal[
        "natural", "iid", "dirichlet", "pathological", "shard", "linear", "square", "exponential"
    ] = "natural"
    sites: int | None = Field(default=None, ge=2, le=1000, validate_default=True)
    attribute: str = Field(default="site", min_length=1, max_length=100)
    alpha: float | None = Field(default=None, gt=0, le=1e6, validate_default=True)
    findings_per_site: int | None = Field(default=None, ge=1, validate_default=True)
    shards_per_site: int | None = Field(default=None, ge=1, le=1000, validate_default=True)
    smallest_site_patients: int = Field(default=1, ge=1)

    @property
    def site_names(self) -> tuple[str, ...] | None:
        """The sites by number; None of `natural`, whose sites the data names."""
        if self.sites is None:
            return None
        return tuple(f"site-{number:02d}" for number in range(self.sites))

    # `info` is a ValidationInfo, a protocol that beartype cannot check; it lacks wrong values
    @field_validator("sites")
    @classmethod
    def _sites_fit_the_scheme(cls, sites: int | None, info: Any) -> int | None:
        if "scheme" in info.data and (sites is None) != (info.data["scheme"] == "natural"):
            raise ValueError(
                f"the scheme {info.data['scheme']} "
                + ("takes the sites from the data" if sites else "needs a number of sites")
            )
        return sites

    @field_validator("attribute")
    @classmethod
    def _attribute_of_natural(cls, attribute: str, info: Any) -> str:
        if attribute != "site" and info.data.get("scheme", "natural") != "natural":
            raise ValueError("it belongs to the scheme natural")
        return attribute

    @field_validator(*_SCHEME_OF)
    @classmethod
    def _argument_fits_the_scheme(cls, value: float | None, info: Any) -> float | None:
        owner = _SCHEME_OF[info.field_name]
        if "scheme" in info.data and (value is None) != (info.data["scheme"] != owner):
            raise ValueError(f"it belongs to the scheme {owner}, which needs it")
        return value
