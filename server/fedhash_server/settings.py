"""The run file of the coordinator.

>>> read_settings(Path("configs/run/example.yaml"), RunSettings).sites
('hospital-a', 'hospital-b', 'hospital-c')
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from fedhash.agreement import SiteName
from fedhash.configuration import Settings
from fedhash.rounds.training_messages import RunId

__all__ = ["RunSettings"]


class RunSettings(Settings):
    """The run file: which sites train, and from which first model.

    Attributes:
        run_id: Names the run, here and at the sites; also a folder.
        sites: Names of the sites that take part.
        seed: Of the first model.
        parent: Folder of the release that training starts from; null: from the seed.
        frozen: Modality to the file of its frozen tower, for those that `parent` does not hold.
    """

    run_id: RunId
    sites: tuple[SiteName, ...] = Field(min_length=1, max_length=1000)
    seed: int = Field(ge=0)
    parent: Path | None = None
    frozen: dict[str, Path] = Field(default={})

    @field_validator("sites")
    @classmethod
    def _named_once(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({site for site in sites if sites.count(site) > 1}):
            raise ValueError(f"listed more than once: {', '.join(twice)}; keep one of each")
        return sites
