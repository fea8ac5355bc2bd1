"""The base of every settings object: frozen, strict, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """Immutable settings read from YAML; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")
