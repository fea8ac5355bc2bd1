"""`fedhash-sim` called as a user calls it, for the tests of its commands."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from fedhash_sim.cli import app


def run(*arguments: object, ok: bool = True) -> str:
    """What the command prints, or its error where it is to fail; tracebacks come through."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert (result.exit_code == 0) == ok, result.output + result.stderr
    return result.stdout if ok else result.stderr.replace("\n", " ")


def run_all(study_file: Path, out: Path, *more: object) -> None:
    run("run", study_file, "--out", out, "--workers", 1, *more)


def study_of(run_folder: Path) -> Path:
    return run_folder.parent / "study" / "study.yaml"


def phantom_manifest(
    folder: Path, change: Callable[[int, dict[str, str]], object] = lambda _, __: None
) -> Path:
    """A manifest of a phantom site; `change` is given the number and the cells of each row."""
    run("phantom", folder, "--sites", 1, "--patients-per-site", 40)
    manifest = folder / "site-0" / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        change(number, row)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def of_manifest(manifest: Path, *, scheme: str = "{scheme: iid, sites: 3}") -> tuple[str, ...]:
    """Changes of the small study: one cell, on a manifest."""
    return (
        *("--set", f"data={{kind: manifest, manifest: {manifest}}}", "--set", "seeds=[0]"),
        *("--set", f"partition={scheme}", "--set", "methods=[central]"),
        *("--set", "evaluation.every_rounds=4"),
    )
