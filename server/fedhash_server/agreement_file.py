"""Changing the roster and the release key of an agreement's file; all else stays to the letter.

People write comments into an agreement, which a YAML writer would lose. So the two sections are
exchanged as text, and the result is read again: if it does not say exactly what was meant, the
file stays as it was.

    >>> write_agreement_section(Path("agreement.yaml"), {"sites": {"hospital-a": "4f1c..."}})
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.durability import replace_file
from fedhash.errors import ConfigurationError, Problem, StorageError

__all__ = ["changed_agreement", "write_agreement_section"]


def changed_agreement(path: Path, sections: dict[str, Any]) -> Agreement:
    """The agreement as it would be with other top-level keys; nothing is written.

    Raises:
        ConfigurationError: The file is wrong, or would not be an agreement any more.
    """
    before = read_settings(path, Agreement)
    try:
        return Agreement.model_validate(before.model_dump() | sections)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ConfigurationError([Problem(path, None, each["msg"]) for each in problems]) from error


def write_agreement_section(path: Path, sections: dict[str, Any]) -> Agreement:
    """Set top-level keys of an agreement's file.

    Args:
        path: The file.
        sections: Key to its new value.

    Returns:
        The agreement as it now is.

    Raises:
        ConfigurationError: The file is wrong, before or after, or is written in a way that cannot
            be changed here; it stays as it was.
        StorageError: The operating system refuses.
    """
    meant = changed_agreement(path, sections)
    if meant == read_settings(path, Agreement):
        return meant
    trial = path.with_name(f".{path.name}.new")
    try:
        text = path.read_text(encoding="utf-8")
        for key, value in sections.items():
            text = _with_section(text, key, value)
        trial.write_text(text, encoding="utf-8")
        try:
            same = read_settings(trial, Agreement) == meant
        except ConfigurationError:
            same = False
        finally:
            trial.unlink()
        if not same:
            message = (
                f"{' and '.join(sections)} could not be changed here; write it by hand, as a "
                f"section that starts at the beginning of a line: "
                f"{yaml.safe_dump(sections, default_flow_style=True, width=10**6).strip()}"
            )
            raise ConfigurationError([Problem(path, None, message)])
        replace_file(path, text.encode())
    except OSError as error:
        raise StorageError(error, path) from error
    return meant


def _with_section(text: str, key: str, value: Any) -> str:
    """`text` with the section `key` exchanged, or added at the end."""
    section = yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False)
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if re.match(rf"{key}\s*:", line)), None)
    if start is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + section
    end = start + 1
    # the rest of a section is indented; a comment or blank line after it belongs to the next one
    while end < len(lines) and re.match(r"[ \t]+\S|\}|\]", lines[end]):
        end += 1
    return "".join(lines[:start]) + section + "".join(lines[end:])
