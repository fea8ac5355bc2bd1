"""Releases of a tiny model, and a consortium that signs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedhash.agreement import Agreement
from fedhash.learning.loss import Margins
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.registry import Release, save_release
from fedhash.registry.registry import Registry
from fedhash.secagg.identity import SiteIdentity

KEY = SiteIdentity.from_seed(b"the coordinator's release key...")
AGREEMENT = Agreement(
    name="small consortium",
    findings=("no_finding", "edema", "effusion"),
    code_bits=16,
    modalities=("report",),
    release_key=KEY.public_hex,
)
MODEL = ModelSettings(
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 32, "character_features": 32, "hidden": 4},
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
