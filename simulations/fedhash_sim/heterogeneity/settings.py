"""What a study file says of sites that hold less than others.

>>> MissingModalities(shares={"signal": 0.4})
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from fedhash.configuration import Settings

__all__ = ["MissingModalities"]


class MissingModalities(Settings):
    """Modalities that some sites have none of, neither to train on nor to be searched for.

    Attributes:
        shares: Modality to the share of the sites that lack it; which ones, the seed draws.
        sites: In place of shares: site to the modalities that it lacks.
    """

    shares: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default={})
    sites: dict[str, tuple[str, ...]] = Field(default={}, validate_default=True)

    @field_validator("sites")
    @classmethod
    def _one_of_the_two(
        cls, sites: dict[str, tuple[str, ...]], info: Any
    ) -> dict[str, tuple[str, ...]]:
        # `info` is a ValidationInfo, a protocol that beartype cannot check; it lacks wrong values
        if "shares" in info.data and bool(info.data["shares"]) == bool(sites):
            raise ValueError("name either shares or sites, such as shares: {image: 0.3}")
        return sites
