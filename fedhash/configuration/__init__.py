"""Reading of YAML configuration files into frozen settings.

Every mistake of a file is reported at once, each with its line, what was found and what was
expected; a misspelt key gets its nearest valid key. A command line may override single values.

    class Round(Settings):
        rounds: int = Field(gt=0)

    settings = read_settings(Path("round.yaml"), Round, overrides=["rounds=40"])
    Path("runs/1/round.yaml").write_text(resolved(settings), encoding="utf-8")
"""

from fedhash.configuration._document import KeyPath
from fedhash.configuration._words import did_you_mean
from fedhash.configuration.reading import (
    gathered,
    override,
    problem_at,
    read_settings,
    resolved,
)
from fedhash.configuration.schemas import json_schema, write_schemas
from fedhash.configuration.settings import Settings

__all__ = [
    "KeyPath",
    "Settings",
    "did_you_mean",
    "gathered",
    "json_schema",
    "override",
    "problem_at",
    "read_settings",
    "resolved",
    "write_schemas",
]
