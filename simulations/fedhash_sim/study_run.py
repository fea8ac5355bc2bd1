"""A whole comparison: data, cells in parallel, tables, archives and the report.

>>> run_study(study, Path("runs/demo"), workers=2, replace=False, command="...", console=console)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from fedhash import __version__
from fedhash.models.layout import Layout
from fedhash_sim.cell_workers import Cell, run_cells
from fedhash_sim.consortium import (
    Consortium,
    build_consortium,
    deal,
    deal_each,
    write_holdings,
    write_partition,
)
from fedhash_sim.progress import live_progress
from fedhash_sim.report import write_report
from fedhash_sim.run_folder import RunFolder, explained
from fedhash_sim.settings import ResolvedStudy

__all__ = ["describe", "finish_run", "open_cells", "plan_study", "prepare_run", "run_study"]

_SHOWN_PROBLEMS = 5


def run_study(
    study: ResolvedStudy,
    path: Path,
    *,
    workers: int,
    replace: bool,
    command: str,
    console: Console,
) -> RunFolder:
    """Run what is left of a study and write its tables and report.

    Args:
        study: The comparison.
        path: The run folder; an unfinished run of the same study goes on.
        workers: Cells that train at the same time, one thread each.
        replace: Move an earlier run aside first.
        command: The command line, for the report.
        console: Where progress is shown.

    Raises:
        FedhashError: The study cannot be run; what is finished stays and is not run again.
    """
    folder = RunFolder.open(path, study, replace=replace)
    with explained(path), folder.locked():
        with folder.removed_if_refused():
            prepare_run(folder, study, command, console)
        cells = open_cells(folder, study)
        with live_progress([str(each) for each in cells], console) as show:
            run_cells(cells, workers, lambda _, progress: show(progress))
        finish_run(folder, study, console)
    return folder


def prepare_run(folder: RunFolder, study: ResolvedStudy, command: str, console: Console) -> None:
    """Load, split, deal and prepare the studies of every seed, and write what the report tells.

    Raises:
        FedhashError: The data cannot be had, or not be split or dealt as asked.
    """
    with console.status("dealing the patients of all seeds"):
        dealt = deal(study, {seed: folder.data(seed) for seed in study.settings.seeds})
    consortia = {}
    for seed in study.settings.seeds:
        with console.status(f"preparing the studies of seed {seed}"):
            of_seed = dealt.pop(seed, None)  # a phantom's images are let go of
            consortia[seed] = build_consortium(study, seed, folder.data(seed), of_seed)
    for line in _data_problems(study, consortia):
        console.print(line, markup=False, highlight=False)
    write_partition(folder.path / "partition.csv", consortia, study.agreement.findings)
    write_holdings(folder.path / "holdings.csv", consortia)
    about = describe(study, consortia) | {"command": command}
    (folder.path / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def open_cells(folder: RunFolder, study: ResolvedStudy) -> list[Cell]:
    """The cells of a study that have no results yet."""
    return [
        Cell(folder.path, method, seed)
        for seed in study.settings.seeds
        for method in study.settings.methods
        if not folder.cell(method, seed).is_done
    ]


def finish_run(folder: RunFolder, study: ResolvedStudy, console: Console) -> None:
    """Write the tables and the report of a run whose cells are all done.

    Raises:
        FedhashError: A cell's table is damaged.
    """
    folder.collect(study.settings.methods, study.settings.seeds)
    with console.status("drawing the report"):
        write_report(folder.path)


def _data_problems(study: ResolvedStudy, consortia: Mapping[int, Consortium]) -> list[str]:
    """The first of what was left out; all of it stands in run.json and in the report."""
    first = next(iter(consortia.values()))
    lines: list[str] = []
    for each in (first.problems, _notes(study, consortia)):
        lines += each[:_SHOWN_PROBLEMS]
        if len(each) > _SHOWN_PROBLEMS:
            lines.append(f"... and {len(each) - _SHOWN_PROBLEMS} more, see run.json")
    if first.without_consent:
        lines.append(f"{first.without_consent} studies are left out for want of consent")
    return lines


def _notes(study: ResolvedStudy, consortia: Mapping[int, Consortium]) -> list[str]:
    return [
        f"seed {seed}: {note}"
        for seed, each in consortia.items()
        for note in (*each.roles.notes, *_without_pairs(study, each))
    ]


def _without_pairs(study: ResolvedStudy, consortium: Consortium) -> list[str]:
    """Of sites where the contrastive loss, which pairs modalities, has nothing to learn from."""
    at_sites = [study.round_of[each] for each in ("local", "federated") if each in study.round_of]
    if all(each.loss.name != "contrastive" for each in at_sites):
        return []
    notes = []
    for site in consortium.sites:
        present = torch.stack(list(consortium.training(site).present.values()))
        if not (present.sum(dim=0) > 1).any():
            notes.append(
                f"no training study of site {site!r} has two modalities: the loss contrastive, "
                "which pairs them, learns nothing there"
            )
    return notes


def plan_study(study: ResolvedStudy) -> dict[str, Any]:
    """What a run would do: the data is loaded, split and dealt, nothing is prepared or trained.

    Returns:
        JSON-able facts, and under `seeds` one entry for each seed with its sites.

    Raises:
        FedhashError: The study cannot be run with one of its seeds.
    """
    settings = study.settings
    seeds: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        for seed, dealt in deal_each(study, settings.seeds, Path(scratch)):
            pool, roles = dealt.pool, dealt.roles
            seeds.append(
                {
                    "seed": seed,
                    "training studies": {site: len(ids) for site, ids in roles.training.items()},
                    "database studies": {site: len(ids) for site, ids in roles.database.items()},
                    "public studies": len(roles.public),
                    "queries": len(roles.queries),
                    "missing modalities": {s: list(lost) for s, lost in roles.missing.items()},
                    "notes": list(roles.notes),
                }
            )
    model = study.build_model(settings.seeds[0])
    return {
        "study": settings.name,
        "methods": list(settings.methods),
        "cells": len(settings.seeds) * len(settings.methods),
        "rounds": {method: each.rounds for method, each in study.round_of.items()},
        "model parameters": Layout.of(model).size,
        "held-out database": settings.evaluation.held_out_database,
        "seeds": seeds,
        "rows with problems": list(pool.problems),
        "studies without consent": pool.without_consent,
    }


def describe(study: ResolvedStudy, consortia: dict[int, Consortium]) -> dict[str, Any]:
    """What the report and `run.json` say of a study."""
    settings = study.settings
    first = consortia[settings.seeds[0]]
    model = study.build_model(settings.seeds[0])
    patients = {p for site in first.sites for p in first.training(site).patient_ids}
    held_out = settings.evaluation.held_out_database
    federated = study.round_of.get("federated")  # the one method with anything to hide
    facts = {
        "sites": len(first.sites),
        "training patients": len(patients),
        "training studies": len(first.training(*first.sites)),
        "database studies": len(first.database(*first.sites)),
        "queries": len(first.queries()),
        "public studies": len(first.roles.public),
        "findings": len(study.agreement.findings),
        "code bits": study.agreement.code_bits,
        "model parameters": Layout.of(model).size,
        "rounds": study.round.rounds,
        "seeds": len(settings.seeds),
    }
    return {
        "study": settings.name,
        "version": __version__,
        "facts": {name: f"{value:,}" for name, value in facts.items()},
        "seeds": list(settings.seeds),
        "methods": list(settings.methods),
        "engine": settings.engine,
        "aggregation": federated.aggregation if federated else None,
        "privacy": {
            method: each.privacy.model_dump()
            | {
                "steps": each.learning.local_steps,
                "statistics": each.margin_schedule and each.margin_schedule.noise_multiplier,
            }
            for method, each in study.round_of.items()
        },
        "queries": f"{settings.evaluation.queries} split, patients that no site trained on",
        "database": f"held out, {held_out:.0%} of the training patients"
        if held_out
        else "the studies that were trained on",
        "ranking": "the whole ranking counts"
        if settings.evaluation.depth is None
        else f"the first {settings.evaluation.depth} ranks count",
        "problems": list(first.problems),
        "notes": _notes(study, consortia),
        "without_consent": first.without_consent,
    }
