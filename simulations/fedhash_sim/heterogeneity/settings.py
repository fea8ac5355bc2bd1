"""What a study file says of sites that differ beside their patients.

>>> MissingModalities(shares={"signal": 0.4})
>>> FeatureShift(strength=0.5, modalities=("image", "report"))
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from fedhash.configuration import Settings

__all__ = ["FeatureShift", "MissingModalities"]


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


class FeatureShift(Settings):
    """A look of each site's own: its scanner, its recording device, its way of writing.

    Attributes:
        strength: How far the looks lie from the common one: 0 leaves everything as it is, 1 is the
            spread that one meets between hospitals.
        modalities: Of these; null: of all that have a look and a tower.
    """

    strength: float = Field(ge=0, le=3)
    modalities: tuple[str, ...] | None = None

    @field_validator("modalities")
    @classmethod
    def _some(cls, modalities: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if modalities is not None and not modalities:
            raise ValueError("holds none; name one, or leave feature_shift out")
        return modalities
