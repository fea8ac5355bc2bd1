"""The evaluation of a study file: who asks, what, and of which database.

>>> EvaluationSettings(held_out_database=0.3, groups=("sex",), every_rounds=10)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from fedhash.configuration import Settings

__all__ = ["Direction", "EvaluationSettings"]

_OTHER_GROUPS = {"finding", "radius", "site_model"}  # of results.csv, beside those by attribute


class Direction(Settings):
    """Queries of one modality against codes of another."""

    query: str
    target: str


class EvaluationSettings(Settings):
    """What is asked and of which database."""

    queries: Literal["val", "test"] = "test"
    held_out_database: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training patients kept from training as the database; "
        "0: the database is what was trained on",
    )
    directions: tuple[Direction, ...] = Field(
        default=(), description="default: every ordered pair of the agreement's modalities"
    )
    groups: tuple[str, ...] = Field(default=(), description="attributes to report by")
    depth: int | None = Field(
        default=None, ge=1, description="ranks that count, R of mAP@R; default: the whole ranking"
    )
    every_rounds: int | None = Field(default=None, ge=1, description="default: the end only")

    @field_validator("directions")
    @classmethod
    def _each_direction_once(cls, directions: tuple[Direction, ...]) -> tuple[Direction, ...]:
        for number, each in enumerate(directions):
            if each in directions[:number]:
                raise ValueError(f"holds {each.query} -> {each.target} twice; name each once")
        return directions

    @field_validator("groups")
    @classmethod
    def _groups_have_names_of_their_own(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(groups)) < len(groups):
            raise ValueError("holds an attribute twice; name each once")
        if taken := sorted(_OTHER_GROUPS & set(groups)):
            raise ValueError(f"{taken[0]} is a group of results.csv already; rename the attribute")
        return groups
