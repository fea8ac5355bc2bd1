"""The sections `training` and `daemon` of a site's file.

>>> read_settings(Path("site.yaml"), SiteSettings).training.aggregations
('secure',)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["DaemonSettings", "TrainingSettings"]

_Port = Annotated[int, Field(ge=1, le=65_535)]


class TrainingSettings(Settings):
    """What the site trains, beside the agreement's limits.

    Attributes:
        aggregations: secure: only the sum over all sites leaves; plain shows the coordinator this
            site's own update, for comparisons and for a site alone.
        largest_model_parameters: No larger model is built, whatever a round asks for, and no
            release of a larger one is downloaded.
        largest_prepared_bytes: Nor are more bytes of prepared studies held in memory; the disk
            holds two such files.
        frozen: Modality to the file of frozen features, for rounds with frozen towers.
    """

    aggregations: tuple[Literal["secure", "plain"], ...] = Field(default=("secure",), min_length=1)
    largest_model_parameters: int = Field(default=100_000_000, ge=1, le=200_000_000)
    largest_prepared_bytes: int = Field(default=4 << 30, ge=1 << 20)
    frozen: dict[str, Path] = Field(default={})


class DaemonSettings(Settings):
    """What `fedhash-site run` listens on; everything is on loopback.

    Attributes:
        health_port: Of `/health` and `/metrics`.
        supernode_port: Of the SuperNode's own programs.
    """

    health_port: _Port = 9464
    supernode_port: _Port = 9465
