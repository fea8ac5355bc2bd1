"""Which tower serves which modality: the part of a round's configuration that fixes the model.

    >>> ModelSettings(towers={"image": TowerSettings(name="image_hog", options={"cell_px": 8})})

Options belong to the tower: `fedhash.models.hash_model.build_model` checks them against the
tower's own settings and names the valid ones in its error.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["ModelSettings", "TowerSettings"]


class TowerSettings(Settings):
    """One tower by name, with the options that differ from its defaults."""

    name: str
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


class ModelSettings(Settings):
    """The hash model: one tower a modality.

    Attributes:
        towers: Modality to tower.
        head: sign: a tower ends in b outputs, whose signs are the code; logits: it ends in one
            output a finding, and a published map makes the b bits (`fedhash.models.logits_head`);
            prototypes: as sign, and the model has b more numbers a finding, which the loss
            learned_prototypes trains and no code depends on.
        temperature: Of that map; a small one makes the codes of doubtful studies surer.
    """

    towers: dict[str, TowerSettings] = Field(min_length=1)
    head: Literal["sign", "logits", "prototypes"] = "sign"
    temperature: float = Field(default=0.75, ge=0.01, le=100)
