"""A run as event files for TensorBoard: a folder for each cell under FOLDER/<run>.

Each export writes the run's folder anew and puts it in the place of the earlier one, so nothing is
there twice. Anything else than event files in its place is refused.

    >>> write_tensorboard(RunHistory.read(Path("runs/demo")), Path("runs/tensorboard"))
    Path('runs/tensorboard/demo')
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fedhash.errors import CheckpointError, ConfigurationError, Problem
from fedhash_sim.export.history import RunHistory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["write_tensorboard"]

_EVENTS = "events.out.tfevents."  # how the writer begins the names of its files
_RUN = ".fedhash-run"  # tells which run it is, by its digest


def write_tensorboard(history: RunHistory, folder: Path) -> Path:
    """Write the run below `folder`, which may hold other runs.

    Returns:
        The run's folder.

    Raises:
        ConfigurationError: TensorBoard is not installed.
        CheckpointError: Another run, or something that is no event file, is in the way, or a
            picture is damaged.
    """
    writer_type = _writer_type()
    target = folder / history.name
    for path in target.rglob("*"):
        if path.is_file() and path.name != _RUN and not path.name.startswith(_EVENTS):
            raise CheckpointError(
                f"{path} is no event file, so {target} is not replaced; choose another folder"
            )
    if target.exists() and (
        not (target / _RUN).is_file() or (target / _RUN).read_text() != history.digest
    ):
        raise CheckpointError(
            f"{target} holds another run of this name, so it is not replaced; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{history.name}-", dir=folder))
    try:
        for cell in history.cells:
            with writer_type(str(unfinished / cell.name)) as writer:
                for name, curve in cell.curves.items():
                    for number, value in curve:
                        writer.add_scalar(name, value, number)
                lines = [f"| {key} | {value} |" for key, value in cell.settings.items()]
                writer.add_text("settings", "\n".join(["| key | value |", "|---|---|", *lines]))
        with writer_type(str(unfinished / "run")) as writer:
            for path in history.configuration:
                text = path.read_text("utf-8", "backslashreplace")
                writer.add_text(path.name, "".join(f"    {line}\n" for line in text.splitlines()))
            for path in history.pictures:
                writer.add_image(path.stem, _pixels(path), dataformats="HWC")
        (unfinished / _RUN).write_text(history.digest)
        unfinished.chmod(0o755)  # mkdtemp makes private folders, a run is none
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _pixels(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise CheckpointError(
            f"{path} is no picture ({error}); draw it again: fedhash-sim report "
            f"{path.parent.parent}"
        ) from error


def _writer_type() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        reason = "TensorBoard's writer is not installed; pip install 'fedhash[tensorboard]'"
        raise ConfigurationError([Problem(Path("--tensorboard"), None, reason)]) from error
    return SummaryWriter
