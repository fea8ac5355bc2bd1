"""The base of all recipes and their registry.

A recipe writes the manifest of a public data set that the user has downloaded.

Rules: arrays and images stay where they are, so the manifest names them by absolute path; a row of
the set that cannot be a study is counted with the reason; labels are taken as published, and every
choice made here stands in the recipe's docstring.

    >>> report = RECIPES["ppg_bp"].write(Path("/data/ppg_bp"), Path("runs/ppg_bp"))
    >>> report.rows, report.skipped
    (657, {})
"""

from __future__ import annotations

import csv
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from fedhash.data.manifest import ManifestRow, write_manifest
from fedhash.errors import DataError

__all__ = [
    "RECIPES",
    "Recipe",
    "RecipeReport",
    "Skipped",
    "age_band",
    "read_table",
    "register_recipe",
]


@dataclass(frozen=True)
class Skipped:
    """A row of the set that becomes no study, and why."""

    reason: str


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe wrote.

    Attributes:
        manifest: The file.
        rows: Studies written.
        skipped: Reason to the number of rows left out.
    """

    manifest: Path
    rows: int
    skipped: Mapping[str, int]


class Recipe(ABC):
    """The way from a published data set to a manifest.

    Attributes:
        name: The set's name, as in the simulator's study files.
        findings: The vocabulary, in the order of the label matrix.
        modalities: What its studies hold.
        licence: The set's own licence, to be named beside every figure.
    """

    name: ClassVar[str]
    findings: ClassVar[tuple[str, ...]]
    modalities: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]

    @abstractmethod
    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """Every row of the set, in published order.

        Args:
            source: The absolute folder of the set.

        Raises:
            OSError: A file of the set is missing.
            KeyError: A table lacks a column, or a label is not among the published ones.
            ValueError: A number or a file has another form than published.
        """

    def write(self, source: Path, target: Path) -> RecipeReport:
        """Write ``manifest.csv``.

        Args:
            source: The folder of the data set.
            target: The folder of the manifest, made if it is missing.

        Raises:
            DataError: Files of the set are missing or have another form than the recipe expects.
        """
        studies: list[ManifestRow] = []
        skipped: Counter[str] = Counter()
        try:
            for row in self.rows(source.resolve()):
                if isinstance(row, Skipped):
                    skipped[row.reason] += 1
                else:
                    studies.append(row)
        except (OSError, KeyError, ValueError, csv.Error, zipfile.BadZipFile) as error:
            raise DataError(
                f"{source} does not hold {self.name} as its recipe expects ({error!r}); "
                "name the folder of the whole data set, with the files that the recipe lists"
            ) from error
        write_manifest(target / "manifest.csv", studies)
        return RecipeReport(target / "manifest.csv", len(studies), dict(skipped))


RECIPES: dict[str, Recipe] = {}

RecipeClass = TypeVar("RecipeClass", bound=type[Recipe])


def register_recipe(recipe: RecipeClass) -> RecipeClass:
    """Class decorator that makes a recipe known under its name.

    Raises:
        DataError: The name is taken.
    """
    if recipe.name in RECIPES:
        raise DataError(f"a recipe named {recipe.name!r} is registered already; rename one")
    RECIPES[recipe.name] = recipe()
    return recipe


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a published CSV table, by column name.

    Raises:
        OSError: The table is missing.
        ValueError: The table is empty, or a row is longer or shorter than the header.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return [dict(zip(header, row, strict=True)) for row in rows]


def age_band(years: str) -> str:
    """``0-17``, ``18-39``, ``40-64``, ``65+``, or nothing where the age is unknown."""
    if not years:
        return ""
    bands = ((18, "0-17"), (40, "18-39"), (65, "40-64"))
    return next((band for limit, band in bands if float(years) < limit), "65+")
