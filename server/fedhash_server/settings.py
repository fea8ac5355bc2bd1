"""The run file of the coordinator.

>>> read_settings(Path("configs/run/example.yaml"), RunSettings).sites
('hospital-a', 'hospital-b', 'hospital-c')
"""

from __future__ import annotations

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["RunSettings"]


class RunSettings(Settings):
    """The run file: which sites train, and from which first model.

    Attributes:
        run_id: Names the run, here and at the sites.
        sites: Names of the sites that take part.
        seed: Of the first model.
    """

    run_id: str
    sites: tuple[str, ...] = Field(min_length=1)
    seed: int = Field(ge=0)
