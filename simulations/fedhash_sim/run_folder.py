"""The folder of one run: what was asked, what was found, and enough to go on after a crash.

    runs/demo/
      study.yaml agreement.yaml round.yaml   the configuration as it ran, overrides applied
      public_round.yaml                      the round file of the public patients, if there is one
      inputs.json                            version, and the manifest's hash
      run.json                               version, command, sizes: what the report says of itself
      data/input_files.json                  stamps of the files that the studies were read from
      data/seed-0/                           prepared studies and who holds them
      cells/federated-seed-0/                checkpoint, own tables, release/, codes.safetensors
      results.csv rounds.csv exchanges.csv sums.csv privacy.csv margins.csv costs.csv partition.csv
      holdings.csv                           all cells, tidy
      archives/                              each site's binary index, for `fedhash-sim search`
      plots/ report.html

1. A finished cell is never run twice; an unfinished one goes on from its last round.
2. A folder belongs to one resolved configuration and to unchanged input files; anything else is
   refused, not mixed in.
3. `replace` moves an earlier run aside, to `<folder>.previous` or the next number that is free;
   nothing is deleted, and a folder that a process works in stays where it is.

    >>> folder = RunFolder.open(Path("runs/demo"), study, replace=False)
    >>> folder.cell("federated", 0).is_done
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedhash import __version__
from fedhash.configuration import resolved
from fedhash.durability import replace_file
from fedhash.errors import CheckpointError, ConfigurationError, ReleaseError
from fedhash.registry.release import Release, load_release
from fedhash_sim.folder_kinds import INPUTS, LOCK, check_run, is_empty, place_for_earlier
from fedhash_sim.input_files import INPUT_FILES, changed_files
from fedhash_sim.refusal import RefusedByDataError, at_its_line
from fedhash_sim.results import TABLES
from fedhash_sim.settings import ManifestSource, ResolvedStudy, read_study

__all__ = [
    "CellFolder",
    "RunFolder",
    "configuration_files",
    "explained",
    "file_name",
    "write_table",
]

_CONFIGURATION = ("study.yaml", "agreement.yaml", "round.yaml", "public_round.yaml", INPUTS)


@dataclass(frozen=True)
class CellFolder:
    """Where one method under one seed keeps its things."""

    path: Path

    @property
    def is_done(self) -> bool:
        """Whether the cell has its results; they are written last."""
        return (self.path / "results.csv").is_file()


@dataclass(frozen=True)
class RunFolder:
    """A run folder whose configuration is written."""

    path: Path

    @classmethod
    def open(cls, path: Path, study: ResolvedStudy, *, replace: bool) -> RunFolder:
        """Make the folder, or go on in it.

        Raises:
            CheckpointError: It holds another study's run, or something that is no run, or the
                files that its studies were read from have changed.
            ConfigurationError: The study's manifest cannot be read.
        """
        try:
            return cls._open(path, study, replace=replace)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be made or read ({error}); choose another --out"
            ) from error

    @classmethod
    def _open(cls, path: Path, study: ResolvedStudy, *, replace: bool) -> RunFolder:
        if path.is_symlink() or path.name in {"", ".."}:  # to a larger disk, say, or --out .
            path = path.resolve()
        folder, files = cls(path), configuration_files(study, path.resolve())
        if not is_empty(path):
            check_run(path)
            if not replace:
                folder._check_same(files)
                folder._check_unchanged()
                return folder
            with folder.locked():
                path.rename(place_for_earlier(path))
        if path.exists():  # empty: one may stand in it, or it may be the root of a disk
            _write(path, files)
            return folder
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            _write(unfinished, files)
            unfinished.chmod(0o755)  # mkdtemp makes private folders, a run is none
            unfinished.rename(path)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return folder

    def _check_same(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            stored = self.path / name
            if not stored.is_file() or stored.read_bytes() != text.encode():
                raise CheckpointError(
                    f"{self.path} holds another run: its {name} differs from what is asked now. "
                    f"{_remedy(self.path)}"
                )

    def _check_unchanged(self) -> None:
        if changed := changed_files(self.path / "data" / INPUT_FILES):
            raise CheckpointError(
                f"{self.path} was prepared from other data: {changed[0]} has changed or is gone, "
                f"{len(changed)} files in all. {_remedy(self.path)}"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the folder; the system lets go when we die.

        Raises:
            CheckpointError: Another process works in it.
        """
        in_use = f"another process is working in {self.path}; wait for it, or choose another --out"
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CheckpointError(in_use) from error
            if not os.path.samestat(os.fstat(file.fileno()), (self.path / LOCK).stat()):
                raise CheckpointError(in_use)  # that has moved the folder since we opened the lock
            yield

    @contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """Of a study that its data refuses nothing stays: the mended one takes its place.

        What an earlier call has begun, or somebody has put there, does.
        """
        is_new = {each.name for each in self.path.iterdir()} <= {*_CONFIGURATION, LOCK}
        try:
            yield
        except ConfigurationError:
            if is_new:
                shutil.rmtree(self.path)
            raise

    def cells_done(self, study: ResolvedStudy) -> int:
        """How many cells of a study have their results here.

        Raises:
            CheckpointError: The folder holds another study's run, or something that is no run.
        """
        if is_empty(self.path):
            return 0
        check_run(self.path)
        self._check_same(configuration_files(study, self.path.resolve()))
        settings = study.settings
        cells = [self.cell(method, seed) for method in settings.methods for seed in settings.seeds]
        return sum(each.is_done for each in cells)

    def would_keep(self, study: ResolvedStudy, *, replace: bool) -> int:
        """How many cells `open` would find done; nothing is touched.

        Raises:
            CheckpointError: `open` would refuse.
        """
        if replace and not is_empty(self.path):
            check_run(self.path)
            return 0
        done = self.cells_done(study)
        self._check_unchanged()
        return done

    @classmethod
    def existing(cls, path: Path) -> tuple[RunFolder, ResolvedStudy]:
        """An earlier run and its study.

        Raises:
            CheckpointError: The folder is no run folder.
            ConfigurationError: Its configuration was damaged.
        """
        check_run(path)
        return cls(path), read_study(path / "study.yaml")

    def data(self, seed: int) -> Path:
        """Folder of a seed's prepared studies."""
        return self.path / "data" / f"seed-{seed}"

    def cell(self, method: str, seed: int) -> CellFolder:
        """Folder of one cell."""
        return CellFolder(self.path / "cells" / f"{method}-seed-{seed}")

    def release(self, study: ResolvedStudy, method: str, seed: int) -> Release:
        """The model of a finished cell.

        Raises:
            ReleaseError: The cell has none: it is not of this run, it is not finished, or it has a
                model for each site.
        """
        if method not in study.settings.methods:
            raise ReleaseError(
                f"the run has no method {method!r}, only {', '.join(study.settings.methods)}"
            )
        learning = study.round_of[method].learning
        if method == "local" or (method == "federated" and learning.normalisation_layers == "own"):
            raise ReleaseError(
                f"{self.cell(method, seed).path} has a model for each site and so no release: the "
                "sites of 'local' share nothing, and those of learning.normalisation_layers: own "
                "not all; take another method, or a run that averages all layers"
            )
        return load_release(self.cell(method, seed).path / "release")

    def archive(self, site: str) -> Path:
        """A site's index."""
        return self.path / "archives" / f"{file_name(site)}.sqlite"

    def collect(self, methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Join the cells' tables into the run's, in the order of methods and seeds.

        Raises:
            CheckpointError: A cell's table is damaged.
        """
        for name, columns in reversed(TABLES.items()):  # results.csv last: where it is, all are
            rows: list[Sequence[Any]] = []
            for method in methods:
                for seed in seeds:
                    rows += _cell_rows(self.cell(method, seed).path / name, columns)
            write_table(self.path / name, columns, rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file that is whole or as it was before, even if the power fails."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with explained(path):
        replace_file(path, text.getvalue().encode())


def file_name(name: str) -> str:
    """A file's name for a site or an attribute; those may have any name, files may not."""
    safe = "".join(each if each.isalnum() or each in "-_" else "_" for each in name)[:40]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # "a b" and "a.b" are two sites
    return f"{safe}-{digest}"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses under `path` into an error that says what to do.

    Raises:
        CheckpointError: For an OSError, and for what safetensors makes of one.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads our output any more; no file is at fault
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{getattr(error, 'filename', None) or path} cannot be used "
            f"({getattr(error, 'strerror', None) or error}); check rights and disk space, then run "
            "the same command again: what is done stays"
        ) from error


def _cell_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a cell's table, without the header."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except (FileNotFoundError, ValueError, csv.Error) as error:
        raise _damaged(path, str(error)) from error
    if header != list(columns) or any(len(row) != len(columns) for row in rows):
        raise _damaged(path, "it has other columns")
    return rows


def _damaged(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({found}); remove {path.parent / 'results.csv'} and run the study "
        "again: the cell's tables are written anew, nothing is trained twice"
    )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name in sorted(files, key=INPUTS.__eq__):  # last what makes it a run folder
        (folder / name).write_text(files[name], encoding="utf-8")


def _remedy(path: Path) -> str:
    place = place_for_earlier(path)
    return f"Choose another --out, or --replace to move the earlier run to {place}"


def configuration_files(study: ResolvedStudy, path: Path) -> dict[str, str]:
    """The texts of a run's configuration by file name, as it runs in the folder `path`.

    The study names its neighbours; studies with equal texts have equal figures.
    """
    settings = study.settings.model_copy(
        update={"agreement": path / "agreement.yaml", "round": path / "round.yaml"}
    )
    files = {
        "agreement.yaml": resolved(study.agreement),
        "round.yaml": resolved(study.round),
        INPUTS: _inputs(study),
    }
    if settings.public is not None and study.public_round is not None:
        public = settings.public.model_copy(update={"round": path / "public_round.yaml"})
        settings = settings.model_copy(update={"public": public})
        files["public_round.yaml"] = resolved(study.public_round)
    return {"study.yaml": resolved(settings, relative_to=path)} | files


def _inputs(study: ResolvedStudy) -> str:
    """What the figures depend on beside the settings, so that a changed manifest is noticed."""
    inputs = {"fedhash": __version__}
    if isinstance(study.settings.data, ManifestSource) and study.settings.data.manifest.is_file():
        manifest = study.settings.data.manifest
        with at_its_line(study):
            try:
                content = manifest.read_bytes()
            except OSError as error:
                message = (
                    f"the manifest {manifest} cannot be read ({error.strerror}); check its rights"
                )
                raise RefusedByDataError(("data", "manifest"), message) from error
        inputs["manifest_sha256"] = hashlib.sha256(content).hexdigest()
    return json.dumps(inputs, indent=2) + "\n"
