"""Measured figures and their CSV files: what the benches write and the documents' tables read.

write_figures(Path("build/bench/demo.csv"), Figure, [Figure("make demo", ..., "s", 97.2)])
read_figures(Path("build/bench/demo.csv"), Figure)
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

from fedhash.errors import DataError

__all__ = ["BENCH", "Figure", "SeededFigure", "read_figures", "write_figures"]

BENCH = Path("build/bench")
_NUMBERS = {"value": float, "sd": float, "seeds": int}


@dataclass(frozen=True)
class Figure:
    """One row: a contender's figure in a case, in its unit."""

    case: str
    contender: str
    figure: str
    unit: str
    value: float


@dataclass(frozen=True)
class SeededFigure(Figure):
    """A mean over seeds with its sample standard deviation, NaN for one seed."""

    sd: float
    seeds: int


F = TypeVar("F", bound=Figure)


def write_figures(path: Path, kind: type[F], figures: Iterable[F]) -> None:
    """Write a CSV file that is whole or absent; its columns are the fields of `kind`."""
    from fedhash_sim.run_folder import write_table  # late: it brings torch into what is measured

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, [field.name for field in fields(kind)], map(astuple, figures))


def read_figures(path: Path, kind: type[F]) -> list[F]:
    """The rows of a CSV file that `write_figures` wrote.

    Raises:
        DataError: Other columns, or a row that cannot be read.
    """
    columns = [field.name for field in fields(kind)]
    figures = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        try:
            if (found := next(reader, [])) != columns:
                raise DataError(
                    f"{path} has the columns {', '.join(found) or '(none)'}; expected "
                    f"{', '.join(columns)}. Run its bench again"
                )
            for row in reader:
                named = dict(zip(columns, row, strict=True))
                values = {name: _NUMBERS.get(name, str)(text) for name, text in named.items()}
                figures.append(kind(**values))
        except (ValueError, csv.Error) as error:
            raise DataError(
                f"{path}:{reader.line_num}: not a row of figures ({error}). Run its bench again"
            ) from error
    return figures
