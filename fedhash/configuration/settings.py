"""The base of every settings object: frozen, strict, and closed to unknown keys.

Python code passes values of the declared types ("3" is no int, a list is no tuple). Plain JSON data
has neither tuples nor paths and is read with ``model_validate_json``, which allows a list for a
tuple and text for a Path or an Enum, and is as strict with everything else.

    class Loss(Settings):
        margin: float = 0.3

    Loss(margin="0.3")                           # ValidationError
    Loss.model_validate_json('{"margin": 1}')    # Loss(margin=1.0)
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """Immutable settings read from YAML; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
