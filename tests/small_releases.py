"""Releases of a tiny model, and a consortium that signs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings, resolved
from fedhash.data.manifest import ManifestRow, write_manifest
from fedhash.learning.loss import Margins
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.registry import Release, save_release
from fedhash.registry.registry import Registry
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.settings import SiteSettings

KEY = SiteIdentity.from_seed(b"the coordinator's release key...")
AGREEMENT = Agreement(
    name="small consortium",
    findings=("no_finding", "edema", "effusion"),
    code_bits=64,
    modalities=("report",),
    release_key=KEY.public_hex,
)
MODEL = ModelSettings(
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 256, "character_features": 32, "hidden": 8},
        )
    }
)


def release_into(folder: Path, seed: int, **changes: Any) -> Release:
    """The release of a model that nobody trained, into a folder named by its id."""
    model = build_model(MODEL, AGREEMENT.code_bits, seed=seed)
    parts = {
        "agreement": AGREEMENT,
        "model_settings": MODEL,
        "vector": Layout.of(model).flatten(model),
        "margins": Margins(np.full(3, 0.3, np.float32), np.ones(3, np.float32)),
        "metrics": {},
        "run_id": f"run-{seed}",
        "named_by_id": True,
    }
    return save_release(folder, **(parts | changes))


def registry_in(folder: Path) -> Registry:
    return Registry(folder, AGREEMENT, KEY)


def make_site(folder: Path, patients: int = 12, studies_each: int = 2) -> SiteSettings:
    """A site of AGREEMENT; each study's report holds a word of its patient's own."""
    rows = [
        ManifestRow(
            f"study-{number}-{place}",
            f"patient-{number}",
            {"effusion" if number % 2 else "edema"},
            {"report": f"Effusion of the left lung, {word_of(number)}, take {place}."},
            attributes={"sex": "f" if number % 3 else "m"},
        )
        for number in range(patients)
        for place in range(studies_each)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "manifest.csv", rows)
    (folder / "agreement.yaml").write_text(resolved(AGREEMENT))
    (folder / "site.yaml").write_text(
        "name: hospital-a\nagreement: agreement.yaml\nmanifest: manifest.csv\n"
        "archive: state/archive.sqlite\nhandle_key: state/handle.key\nstate: state\n"
        "releases: {poll_s: 0.05}\n"
    )
    return read_settings(folder / "site.yaml", SiteSettings)


def word_of(number: int) -> str:
    """A word that only the reports of one patient hold."""
    return "zq" + "".join(chr(ord("a") + int(digit)) for digit in str(number)) + "xv"
