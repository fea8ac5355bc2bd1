"""The manifest: one table that names every study of a site.

Rules:
1. A row that cannot be used is reported by line with the reason and never dropped in silence; the
   other rows are read all the same.
2. Every row is judged by itself, apart from the uniqueness of study_id and rule 4, so adding
   studies changes no other study.
3. Content is loaded once as a check and then on demand.
4. A patient_id that stands in two forms of Unicode, composed and decomposed, would be two patients:
   the rows of the second form are not used.

Columns of the CSV header (or keys of each JSON Lines object; UTF-8):

| column | content |
|---|---|
| study_id | unique within the site |
| patient_id | unique within the site |
| positive | findings that are present, separated by ";" or as a JSON list; at least one |
| uncertain | optional: findings that the reader hedged |
| negative | optional: findings that are absent |
| consent | optional: yes, no, true, false, 1 or 0; without the column every patient consents |
| image, report, signal, ... | content, see `fedhash.data.modalities`; blank where it is missing |
| attr.NAME | optional: an attribute to filter and group by, such as attr.site |

A finding listed nowhere is negative, unless there is a column `negative`: then it is uncertain.

    >>> manifest = read_manifest(Path("manifest.csv"), ["no_finding", "effusion"], ["image"])
    >>> for problem in manifest.problems:
    ...     print(problem)
    manifest.csv:7: study_id 's4' stands on line 5 already; give every study its own
    >>> consenting = [study for study in manifest.studies if study.consent]
"""

from __future__ import annotations

import csv
import json
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhash.data._manifest_rows import (
    ATTRIBUTE_PREFIX,
    FINDING_COLUMNS,
    REQUIRED_COLUMNS,
    Row,
    hint,
    manifest_rows,
)
from fedhash.data.modalities import MODALITIES
from fedhash.data.study import Content, Study
from fedhash.errors import DataError, Problem

__all__ = [
    "Manifest",
    "ManifestRow",
    "read_manifest",
    "studies_without_consent",
    "write_manifest",
]

_CONSENT = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Manifest:
    """What a manifest file holds.

    Attributes:
        path: The file.
        studies: Every usable row in file order, consenting or not.
        problems: Every row and column that cannot be used, by line.
    """

    path: Path
    studies: tuple[Study, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class ManifestRow:
    """One row to write.

    Attributes:
        study_id: Unique within the manifest.
        patient_id: Unique within the site.
        positive: Findings that are present.
        contents: Modality name to the cell that names its content.
        uncertain: Findings that the reader hedged.
        attributes: Attribute name to value.
        consent: Whether the patient consents.
    """

    study_id: str
    patient_id: str
    positive: Collection[str]
    contents: Mapping[str, str]
    uncertain: Collection[str] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    consent: bool = True

    def cells(self) -> dict[str, str]:
        """Column name to text."""
        return {
            "study_id": self.study_id,
            "patient_id": self.patient_id,
            "positive": ";".join(sorted(self.positive)),
            "uncertain": ";".join(sorted(self.uncertain)),
            "consent": "yes" if self.consent else "no",
            **self.contents,
            **{ATTRIBUTE_PREFIX + name: value for name, value in self.attributes.items()},
        }


def read_manifest(path: Path, findings: Sequence[str], modalities: Sequence[str]) -> Manifest:
    """Read a manifest under an agreement's vocabulary.

    Args:
        path: A ``.csv`` or ``.jsonl`` file.
        findings: The vocabulary; other findings make their row unusable.
        modalities: The modalities to read; columns of other registered modalities are left alone.

    Raises:
        DataError: A modality is not registered.
        ManifestError: The file as a whole cannot be read.
    """
    for name in modalities:
        if name not in MODALITIES:
            raise DataError(
                f"there is no modality {name!r}{hint(name, MODALITIES)}; "
                f"registered are {sorted(MODALITIES)}"
            )
    known = _known_columns()
    studies: list[Study] = []
    problems: list[Problem] = []
    line_of: dict[str, int] = {}  # study_id to its first line
    form_of: dict[str, str] = {}  # patient_id in NFC to how it is written
    for row in manifest_rows(path, known, problems):
        try:
            study_id = _new_study_id(row, line_of)
            patient_id = _patient_id(row, form_of)
            study = _study(row, study_id, patient_id, findings, modalities, path.parent)
            studies.append(study)
        except DataError as error:
            problems.append(Problem(path, row.line, str(error)))
    return Manifest(path, tuple(studies), tuple(problems))


def studies_without_consent(path: Path) -> frozenset[str]:
    """Ids of the studies whose consent is no, or illegible; no content is looked at.

    Raises:
        ManifestError: The file as a whole cannot be read.
    """
    return frozenset(
        row.cells.get("study_id", "")
        for row in manifest_rows(path, _known_columns(), problems=[])
        if not _CONSENT.get(row.cells.get("consent", "yes").lower(), False)
    )


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write a CSV manifest, whole or not at all.

    Args:
        path: The file, replaced if it exists; its folder is made.
        rows: The rows, in the order of the file.
    """
    tables = [row.cells() for row in rows]
    columns = list(dict.fromkeys(name for cells in tables for name in cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with temporary.open("w", encoding="utf-8", newline="") as file:
            # Lines end in CR LF (RFC 4180), which makes the writer quote cells with either.
            writer = csv.DictWriter(file, columns or REQUIRED_COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(tables)
        temporary.replace(path)


def _known_columns() -> set[str]:
    return {*REQUIRED_COLUMNS, *FINDING_COLUMNS, "consent", *MODALITIES}


def _new_study_id(row: Row, line_of: dict[str, int]) -> str:
    """The row's study_id, noted in `line_of`, or a DataError where an earlier row has it."""
    study_id = _identifier(row, "study_id")
    if line_of.setdefault(study_id, row.line) != row.line:
        raise DataError(
            f"study_id {study_id!r} stands on line {line_of[study_id]} already; "
            "give every study its own"
        )
    return study_id


def _patient_id(row: Row, form_of: dict[str, str]) -> str:
    """The row's patient_id, noted in `form_of`, or a DataError where an earlier form differs."""
    patient_id = _identifier(row, "patient_id")
    if form_of.setdefault(unicodedata.normalize("NFC", patient_id), patient_id) != patient_id:
        raise DataError(
            f"patient_id {patient_id!r} stands in another form of Unicode above and would count as "
            "two patients; write it in one"
        )
    return patient_id


def _study(
    row: Row,
    study_id: str,
    patient_id: str,
    findings: Sequence[str],
    modalities: Sequence[str],
    folder: Path,
) -> Study:
    """The study of one row, or a DataError with the first reason against it."""
    stated = {column: _findings(row, column, findings) for column in FINDING_COLUMNS}
    positive, uncertain, negative = (stated[column] for column in FINDING_COLUMNS)
    twice = sorted((positive & uncertain) | (positive & negative) | (uncertain & negative))
    if twice:
        raise DataError(
            f"{', '.join(twice)} stands in more than one of the columns "
            f"{', '.join(FINDING_COLUMNS)}; keep it in one"
        )
    if not positive:
        raise DataError(
            "no finding is positive; name at least one (a normal study has one as well, such as "
            "no_finding)"
        )
    if "negative" in row.cells:
        uncertain = frozenset(findings) - positive - negative
    contents = _contents(row, modalities, folder)
    attributes = {
        name.removeprefix(ATTRIBUTE_PREFIX): cell
        for name, cell in row.cells.items()
        if name.startswith(ATTRIBUTE_PREFIX) and cell
    }
    return Study(study_id, patient_id, contents, positive, uncertain, attributes, _consent(row))


def _identifier(row: Row, column: str) -> str:
    value = row.cells.get(column, "")
    if not value:
        raise DataError(f"{column} is blank; every study needs one")
    return value


def _findings(row: Row, column: str, findings: Sequence[str]) -> frozenset[str]:
    cell = row.cells.get(column, "")
    names: object = [name.strip() for name in cell.split(";") if name.strip()]
    if cell.startswith("["):
        try:
            names = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{column} starts as a JSON list and is none ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{column} is {cell!r}; write finding;finding or a JSON list of strings")
    for name in names:
        if name not in findings:
            raise DataError(
                f"{column} holds {name!r}, which is not in the vocabulary{hint(name, findings)}"
            )
    return frozenset(names)


def _contents(row: Row, modalities: Sequence[str], folder: Path) -> dict[str, Content]:
    contents = {}
    for name in modalities:
        cell = row.cells.get(name, "")
        if cell:
            try:
                contents[name] = MODALITIES[name].read(cell, folder)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
    if not contents:
        raise DataError(f"there is no content in any of {', '.join(modalities)}; fill in one")
    return contents


def _consent(row: Row) -> bool:
    cell = row.cells.get("consent", "yes")
    if cell.lower() not in _CONSENT:
        raise DataError(f"consent is {cell!r}; write yes or no, it is never guessed")
    return _CONSENT[cell.lower()]
