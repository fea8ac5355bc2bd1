"""The rows of a manifest file as plain strings, with their line numbers: CSV or JSON Lines.

Rules: a row that cannot be taken apart becomes a problem and reading goes on; line numbers are
those of the file, also after quoted cells that span lines; nothing is guessed.

Sources: RFC 4180 (CSV), https://jsonlines.org.

    >>> problems = []
    >>> next(manifest_rows(Path("manifest.csv"), known_columns, problems))
    Row(line=2, cells={'study_id': 's1', 'patient_id': 'p1', 'positive': 'no_finding'})
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedhash.errors import DataError, ManifestError, Problem

__all__ = [
    "ATTRIBUTE_PREFIX",
    "FINDING_COLUMNS",
    "REQUIRED_COLUMNS",
    "Row",
    "hint",
    "manifest_rows",
]

REQUIRED_COLUMNS = ("study_id", "patient_id", "positive")
FINDING_COLUMNS = ("positive", "uncertain", "negative")
ATTRIBUTE_PREFIX = "attr."
_ATTRIBUTE_COLUMN = re.compile(r"attr\.\S.*")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and bytes that were not UTF-8


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the line it starts on, from 1, and its cells without surrounding white space."""

    line: int
    cells: dict[str, str]


def hint(name: str, known: Collection[str]) -> str:
    """``; did you mean 'nearest'?``, or nothing where no known name is near."""
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def manifest_rows(path: Path, known: Collection[str], problems: list[Problem]) -> Iterator[Row]:
    """Read the rows of a ``.csv`` or ``.jsonl`` file.

    Args:
        path: The manifest.
        known: Column names that mean something, besides ``attr.NAME``.
        problems: Rows and columns that cannot be used are appended here.

    Raises:
        ManifestError: The file cannot be opened, is of another type, or has no usable header.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise ManifestError(f"{path} is neither .csv nor .jsonl; save the manifest as one of them")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ManifestError(f"the manifest {path} is no file; name the CSV or JSON Lines file")
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their row alone.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for row in readers[path.suffix.lower()](path, file, known, problems):
                unreadable = [name for name, cell in row.cells.items() if _NOT_TEXT.search(cell)]
                if unreadable:
                    message = (
                        f"{unreadable} hold NUL bytes or text that is not UTF-8; "
                        "save the manifest as UTF-8"
                    )
                    problems.append(Problem(path, row.line, message))
                else:
                    yield row
    except OSError as error:
        raise ManifestError(
            f"the manifest {path} cannot be read ({error.strerror or error}); name a file that is "
            "there and that you may read"
        ) from error


def _csv_rows(
    path: Path, file: Iterable[str], known: Collection[str], problems: list[Problem]
) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ManifestError(f"the header of {path} is not CSV ({error})") from error
    _check_header(path, header, known)
    _report_unknown(path, 1, header, known, problems)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            message = (
                f"lines {line} to {reader.line_num} are not CSV ({error}); look for a quote that "
                "is not closed"
            )
            problems.append(Problem(path, line, message))
            continue
        if cells is None:
            return
        if not any(map(str.strip, cells)):
            continue  # a blank line is no row
        if len(cells) == len(header):
            yield Row(line, {n: cell.strip() for n, cell in zip(header, cells, strict=True)})
        else:
            message = (
                f"found {len(cells)} cells, expected {len(header)} as in the header; "
                "put cells that contain commas in double quotes"
            )
            problems.append(Problem(path, line, message))


def _check_header(path: Path, header: list[str], known: Collection[str]) -> None:
    if any(map(_NOT_TEXT.search, header)):
        raise ManifestError(f"the header of {path} is not UTF-8 text; save the manifest as UTF-8")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ManifestError(f"{path} has the columns {twice} more than once; keep one of each")
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        others = [name for name in header if name not in known]
        raise ManifestError(
            f"{path} has no column {missing[0]!r}{hint(missing[0], others)}; "
            f"found {header}, separate the columns by commas"
        )


def _json_rows(
    path: Path, file: Iterable[str], known: Collection[str], problems: list[Problem]
) -> Iterator[Row]:
    reported: set[str] = set()
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            cells = _json_cells(text)
        except (ValueError, RecursionError, DataError) as error:
            message = f"the line is not one JSON object of plain values ({error})"
            problems.append(Problem(path, line, message))
            continue
        _report_unknown(path, line, cells.keys() - reported, known, problems)
        reported |= cells.keys()
        yield Row(line, cells)


def _json_cells(text: str) -> dict[str, str]:
    row = json.loads(text, object_pairs_hook=_unique_keys)
    if not isinstance(row, dict):
        raise DataError(f"found a {type(row).__name__}")
    return {name: _as_cell(name, value) for name, value in row.items()}


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise DataError("a key stands in it twice")
    return dict(pairs)


def _as_cell(name: str, value: object) -> str:
    """A JSON value as the text that would stand in a CSV cell; lists only where findings are."""
    if isinstance(value, dict) or (isinstance(value, list) and name not in FINDING_COLUMNS):
        raise DataError(f"{name} holds a {type(value).__name__}")
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else json.dumps(value)


def _report_unknown(
    path: Path, line: int, names: Iterable[str], known: Collection[str], problems: list[Problem]
) -> None:
    unknown = sorted(
        name for name in names if name not in known and not _ATTRIBUTE_COLUMN.fullmatch(name)
    )
    if unknown:
        found = ", ".join(f"{name!r}{hint(name, known)}" for name in unknown)
        message = (
            f"unknown columns are not read: {found}; correct the name, or write attr.NAME for "
            "an attribute"
        )
        problems.append(Problem(path, line, message))
