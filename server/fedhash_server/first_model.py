"""The model before a run's first round: from a seed, frozen features or an earlier release.

1. A frozen tower starts from the head of its file, on the coordinator's side as at the sites; so
   the file has to be here, or be part of the release that the run starts from.
2. A run that starts from a release takes all of its parameters. Layout, anchors and frozen features
   have to be the same, or the numbers would mean something else.

    >>> first = first_model(agreement, settings, run)
    >>> CoordinatorState.start(plan, agreement, first.vector)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from fedhash.agreement import Agreement
from fedhash.errors import ModelError
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.hash_model import build_model, frozen_modalities
from fedhash.models.layout import Layout
from fedhash.registry.release import Release, load_release
from fedhash.rounds.settings import RoundSettings
from fedhash_server.settings import RunSettings

__all__ = ["FirstModel", "first_model"]


@dataclass(frozen=True, eq=False)
class FirstModel:
    """What a run starts from.

    Attributes:
        vector: All parameters, in the order of the layout.
        layout: Of the model.
        frozen: Modality to the features of its frozen tower.
        parent: The release that the parameters come from, if any.
    """

    vector: Float32[np.ndarray, " d"]
    layout: Layout
    frozen: Mapping[str, FrozenFeatures]
    parent: Release | None


def first_model(agreement: Agreement, settings: RoundSettings, run: RunSettings) -> FirstModel:
    """The first model of a run whose files fit each other.

    Raises:
        ModelError: The model cannot be built, a file of frozen features is missing or another than
            the round file names, or the release is of another model.
        ReleaseError: The release to start from does not verify.
    """
    parent = None if run.parent is None else load_release(run.parent)
    frozen = _frozen(settings, run, parent)
    anchors = Anchors.build(agreement)
    model = build_model(
        settings.model, agreement.code_bits, run.seed, anchors=anchors, frozen=frozen
    )
    layout = Layout.of(model)
    if parent is None:
        return FirstModel(layout.flatten(model), layout, frozen, None)
    theirs = Layout.of(parent.build_model()).digest()
    if (theirs, Anchors.build(parent.agreement).digest()) != (layout.digest(), anchors.digest()):
        raise ModelError(
            f"the run starts from release {parent.release_id[:12]}, which has other towers or "
            "another vocabulary than the round file and the agreement: its parameters would mean "
            "nothing here; name a release of the same model, or remove parent"
        )
    return FirstModel(parent.vector, layout, frozen, parent)


def _frozen(
    settings: RoundSettings, run: RunSettings, parent: Release | None
) -> dict[str, FrozenFeatures]:
    wanted = frozen_modalities(settings.model)
    if strangers := sorted(set(run.frozen) - set(wanted)):
        raise ModelError(
            f"frozen names a file for {', '.join(strangers)}, and the round file has no frozen "
            "tower of that modality; remove it"
        )
    frozen = {modality: FrozenFeatures.load(path) for modality, path in run.frozen.items()}
    if parent is not None:
        frozen = {name: each for name, each in parent.frozen.items() if name in wanted} | frozen
    if missing := [modality for modality in wanted if modality not in frozen]:
        raise ModelError(
            f"the tower of {missing[0]!r} is frozen, and its file is not named: its head is where "
            "training starts, and a release holds it; add to the run file frozen: "
            f"{{{missing[0]}: FILE}}, the file that 'fedhash-sim freeze' made"
        )
    for modality, features in frozen.items():
        named = settings.model.towers[modality].options.get("sha256")
        if named != features.sha256:
            raise ModelError(
                f"the frozen features for {modality!r} have the SHA-256 {features.sha256}, the "
                f"round file names {named or 'none'}; use the same file on all sides"
            )
    return frozen
