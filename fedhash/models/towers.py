"""Building towers by their name in a round file.

>>> tower = build_tower("image", TowerSettings(name="image_hog"), outputs=64)
"""

from __future__ import annotations

from pydantic import ValidationError

from fedhash.configuration import KeyPath, did_you_mean
from fedhash.errors import ModelError
from fedhash.models import (  # noqa: F401 - importing a tower's module registers it
    image_convnet,
    image_hog,
    image_resnet18,
    report_ngrams,
    signal_convnet,
)
from fedhash.models.settings import TowerSettings
from fedhash.models.tower import TOWERS, Tower

__all__ = ["build_tower", "tower_problems"]


def build_tower(modality: str, settings: TowerSettings, outputs: int) -> Tower:
    """A new tower; its parameters come from torch's global generator.

    Raises:
        ModelError: It does not exist, does not read the modality, or an option is wrong.
    """
    if problems := tower_problems(modality, settings):
        raise ModelError("\n".join(message for _, message in problems))
    kind = TOWERS[settings.name]
    return kind(kind.Options.model_validate(settings.options), outputs)


def tower_problems(modality: str, settings: TowerSettings) -> list[tuple[KeyPath, str]]:
    """What is wrong with a tower's name and options, with keys below the tower's own."""
    kinds = {name: kind for name, kind in TOWERS.items() if kind.modality == modality}
    if settings.name not in kinds:
        message = (
            f"the tower {settings.name!r} was asked for the modality {modality!r}; "
            f"{did_you_mean(settings.name, sorted(kinds))}"
        )
        return [(("name",), message)]
    options = kinds[settings.name].Options
    try:
        options.model_validate(settings.options)
    except ValidationError as error:
        valid = ", ".join(sorted(options.model_fields)) or "none"
        problems: list[tuple[KeyPath, str]] = []
        for each in error.errors():
            place = ".".join(map(str, each["loc"])) or "options"
            message = f"option {place} of tower {settings.name}: {each['msg']}; it takes: {valid}"
            problems.append((("options", *each["loc"]), message))
        return problems
    return []
