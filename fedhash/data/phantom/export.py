"""Write a phantom as files, in the form in which a site brings its own data.

>>> export_phantom(studies, Path("phantom"))
>>> read_manifest(Path("phantom/manifest.csv"), PHANTOM_FINDINGS, ["image", "report"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from fedhash.data.manifest import ManifestRow, write_manifest
from fedhash.data.study import Study

__all__ = ["export_phantom"]


def export_phantom(studies: Sequence[Study], folder: Path) -> None:
    """Write 8-bit PNG images, one signals.npz and manifest.csv, which holds the reports.

    Args:
        studies: From `generate_phantom`, or those of one site.
        folder: Made if need be; files of the same names are replaced.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows, signals = [], []
    for number, study in enumerate(studies):
        image = np.asarray(study.contents["image"].load())
        png = f"images/{study.study_id}.png"
        PIL.Image.fromarray(np.round(255 * image).astype(np.uint8)).save(folder / png)
        signals.append(np.asarray(study.contents["signal"].load()))
        contents = {
            "image": png,
            "report": str(study.contents["report"].load()),
            "signal": f"signals.npz#signals/{number}",
        }
        rows.append(
            ManifestRow(
                study.study_id,
                study.patient_id,
                study.positive,
                contents,
                study.uncertain,
                study.attributes,
                study.consent,
            )
        )
    np.savez_compressed(folder / "signals.npz", signals=np.stack(signals))
    write_manifest(folder / "manifest.csv", rows)
