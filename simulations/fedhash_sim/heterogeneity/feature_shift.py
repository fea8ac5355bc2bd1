"""Feature shift: each site has a look of its own, which all that it holds wears.

1. A look is drawn from the seed, the site's name and the modality; what is random in one exam, such
   as the grain of an image, from these and the study's id. So neither a site nor a study more
   changes another one's.
2. The content is changed when it is loaded, before a tower prepares it.

>>> restyled(content, "image", "site-00", "s17", strength=0.5, seed=0).load()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedhash.configuration import KeyPath, did_you_mean
from fedhash.data.phantom.styles import draw_scanner, draw_sensor
from fedhash.data.study import Content
from fedhash.randomness import numpy_stream
from fedhash_sim.heterogeneity.images import through_scanner
from fedhash_sim.heterogeneity.reports import as_written, draw_habits
from fedhash_sim.heterogeneity.settings import FeatureShift
from fedhash_sim.heterogeneity.signals import through_sensor

__all__ = ["restyled", "shift_faults", "shifted_modalities"]

_Look = Callable[[np.ndarray | str, np.random.Generator], np.ndarray | str]
_DRAWS: Mapping[str, Callable[[float, np.random.Generator], _Look]] = {
    "image": lambda strength, rng: partial(through_scanner, scanner=draw_scanner(strength, rng)),
    "report": lambda strength, rng: partial(as_written, habits=draw_habits(strength, rng)),
    "signal": lambda strength, rng: partial(through_sensor, sensor=draw_sensor(strength, rng)),
}
_NAME = "feature shift"


def shifted_modalities(settings: FeatureShift, modalities: Sequence[str]) -> tuple[str, ...]:
    """The modalities that get looks, of those of the round's model."""
    if settings.strength == 0:
        return ()
    return tuple(each for each in settings.modalities or _DRAWS if each in modalities)


def shift_faults(settings: FeatureShift, modalities: Sequence[str]) -> list[tuple[KeyPath, str]]:
    """What cannot be: the key of the study file, and what to do.

    Args:
        settings: What the study asks for.
        modalities: Those of the round's model.
    """
    able = [each for each in modalities if each in _DRAWS]
    if settings.modalities is None and not able:
        message = (
            f"feature_shift knows looks of {', '.join(_DRAWS)}, and the round's model has "
            f"{', '.join(modalities)}; leave it out"
        )
        return [(("feature_shift",), message)]
    return [
        (
            ("feature_shift", "modalities", number),
            f"feature_shift.modalities names {each!r}, "
            + ("which has no look" if each in modalities else "which has no tower in the round")
            + f"; {did_you_mean(each, able)}",
        )
        for number, each in enumerate(settings.modalities or ())
        if each not in able
    ]


def restyled(
    content: Content, modality: str, site: str, study_id: str, *, strength: float, seed: int
) -> Content:
    """A content of one study with the look of a site.

    Args:
        content: As the source has it.
        modality: One of `shifted_modalities`.
        site: Whose look it gets.
        study_id: Of the study.
        strength: Of the shift.
        seed: The experiment's.
    """
    look = _DRAWS[modality](strength, numpy_stream(seed, _NAME, modality, site))
    return _Restyled(content, look, seed, (_NAME, modality, site, study_id))


@dataclass(frozen=True, slots=True)
class _Restyled:
    """A content that gets its look when it is loaded, the same each time."""

    content: Content
    look: _Look
    seed: int
    name: tuple[str, ...]

    def load(self) -> np.ndarray | str:
        """See :class:`fedhash.data.study.Content`."""
        return self.look(self.content.load(), numpy_stream(self.seed, *self.name))
