"""Settings of the phantom.

>>> PhantomSettings(sites=5, patients_per_site=300).image_size_px
64
"""

from __future__ import annotations

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["PhantomSettings"]


class PhantomSettings(Settings):
    """A consortium of invented hospitals.

    Attributes:
        sites: Number of hospitals, each with its scanner, sensor and reporting habits.
        patients_per_site: Patients that each hospital sees.
        studies_per_patient: Mean number of exams of one patient; one at least.
        image_size_px: Side of the square radiographs.
        style_strength: How far scanners, sensors and reporting habits differ between sites:
            0 makes them all alike, 1 is the spread that one meets between hospitals.
        prevalence_tilt: Standard deviation between sites, in log-odds, of how common each
            finding is: 0 gives every site the same case mix, 0.7 doubles or halves the odds.
    """

    sites: int = Field(5, ge=1, le=1000)
    patients_per_site: int = Field(300, ge=1, le=100_000)
    studies_per_patient: float = Field(1.3, ge=1, le=20)
    image_size_px: int = Field(64, ge=32, le=512)
    style_strength: float = Field(1.0, ge=0, le=3)
    prevalence_tilt: float = Field(0.5, ge=0, le=3)
