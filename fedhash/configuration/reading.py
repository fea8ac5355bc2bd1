"""From a YAML file to settings, and back.

Rules:
    1. All problems of a file come in one ConfigurationError, in the order of their lines.
    2. A relative path in a file starts at that file's folder; on a command line, at the working
       directory. Settings that were read hold absolute paths only.
    3. ``read_settings`` of a ``resolved`` dump gives equal settings.

    study = read_settings(Path("study.yaml"), Study, overrides=["sites=20", "a.b=[1]"])
    (run_folder / "study.yaml").write_text(resolved(study), encoding="utf-8")
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fedhash.configuration._annotations import Types, alternatives, entries
from fedhash.configuration._document import OVERRIDE, Document, KeyPath, PlainDumper
from fedhash.configuration._explanation import explain
from fedhash.configuration._words import found
from fedhash.configuration.settings import Settings
from fedhash.errors import ConfigurationError, Problem

__all__ = ["gathered", "override", "problem_at", "read_settings", "resolved"]

S = TypeVar("S", bound=Settings)


def read_settings(path: Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """Read and validate a YAML file.

    Args:
        path: A UTF-8 file with one mapping, at most 1 MB.
        kind: The settings to read.
        overrides: Assignments `a.b.c=value` that replace single values; the value is YAML, an
            entry of a list is named by its number from 0. They are reported as file `--set`.

    Raises:
        ConfigurationError: Anything is wrong; holds every problem found.
    """
    document = Document.read(path)
    if not isinstance(document.data, dict):
        content = "is empty" if document.data is None else f"holds {found(document.data)}"
        example = f"{next(iter(kind.model_fields), 'key')}: ..."
        reason = f"the file {content}; expected a mapping of keys to values, such as '{example}'"
        raise ConfigurationError([Problem(path, None, reason)])
    for assignment in overrides:
        document.override(assignment)

    def absolute(file: str, at: KeyPath) -> str:
        from_command_line = document.place(at)[0] == OVERRIDE
        folder = Path.cwd() if from_command_line else path.resolve().parent
        return _absolute(file, folder)

    problems = document.problems
    try:
        # JSON is the strict mode in which a list may be a tuple and text a path, but never "3" a 3
        data = _map_paths(document.data, alternatives(kind), absolute)
        settings = kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems += explain(error, document, kind)
    if problems:
        raise ConfigurationError(sorted(problems, key=lambda p: (p.file == OVERRIDE, p.line or 0)))
    return settings


@contextmanager
def gathered(problems: list[Problem]) -> Iterator[None]:
    """Go on after a wrong file: its problems join `problems`, which the caller raises at the end.

    problems: list[Problem] = []
    with gathered(problems):
        agreement = read_settings(agreement_file, Agreement)
    with gathered(problems):
        settings = read_settings(round_file, RoundSettings)
    if problems:
        raise ConfigurationError(problems)
    """
    try:
        yield
    except ConfigurationError as error:
        problems += error.problems


def override(key: str, value: Any, kind: type[Settings], folder: Path) -> str:
    """An override of a value that stands in a file, whose relative paths start at its folder.

    Args:
        key: `a.b.c`.
        value: Plain data.
        kind: The settings that the override is for.
        folder: Of the file.
    """
    types = alternatives(kind)
    for part in key.split("."):
        types = entries(types, part)
    absolute = _map_paths(value, types, lambda file, _: _absolute(file, folder))
    return f"{key}={json.dumps(absolute, ensure_ascii=False)}"


def problem_at(path: Path, key: KeyPath, message: str, overrides: Sequence[str] = ()) -> Problem:
    """A problem that shows only when several files are compared, at the place of its key.

    Args:
        path: A file that was read.
        key: Where the value stands; without it, the nearest mapping or list around it is named.
        message: What was found, what was expected and what to do.
        overrides: As the file was read with.

    Raises:
        ConfigurationError: The file has changed and cannot be read any more.
    """
    document = Document.read(path)
    for assignment in overrides:
        document.override(assignment)
    return Problem(*document.place(key), message)


def resolved(settings: Settings, relative_to: Path | None = None) -> str:
    """All settings, defaults included, as YAML; relative paths become absolute.

    Args:
        settings: Of fields with an order (no sets), so that equal settings give equal text.
        relative_to: An absolute folder; paths inside it are written relative to it, so that a file
            in it can be moved together with its neighbours.
    """

    def written(file: str, _: KeyPath) -> str:
        path = Path(_absolute(file, Path.cwd()))
        inside = relative_to is not None and path.is_relative_to(relative_to)
        return str(path.relative_to(relative_to)) if relative_to and inside else str(path)

    data = _map_paths(settings.model_dump(mode="json"), alternatives(type(settings)), written)
    return yaml.dump(data, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=100)


def _absolute(file: str, folder: Path) -> str:
    # links stay: a site's archive is one, and its place is the link's, not that of what it names
    return file if Path(file).is_absolute() else os.path.abspath(folder / file)  # noqa: PTH100


def _map_paths(
    data: Any, types: Types, change: Callable[[str, KeyPath], str], at: KeyPath = ()
) -> Any:
    """A copy of the data in which every text that is annotated as a Path is changed."""
    if isinstance(data, dict):
        return {k: _map_paths(v, entries(types, k), change, (*at, k)) for k, v in data.items()}
    if isinstance(data, list):
        return [_map_paths(v, entries(types, i), change, (*at, i)) for i, v in enumerate(data)]
    if isinstance(data, str) and Path in types and str not in types:
        return change(data, at)
    return data
