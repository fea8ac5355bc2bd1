"""What the frozen towers of a study read: made of its public patients, once a seed.

>>> frozen = freeze_towers(study, public_studies, seed=0, folder=Path("runs/demo/data/seed-0"))
>>> settings = with_digests(study.round, frozen)       # model.towers.*.options.sha256 filled in
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhash.data.study import Study
from fedhash.errors import DataError
from fedhash.learning.freezing import freeze
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures, frozen_file
from fedhash.models.frozen_tower import FrozenTowerOptions
from fedhash.models.hash_model import build_model, frozen_modalities
from fedhash.models.layout import Layout
from fedhash.models.prepared import prepare_studies
from fedhash.rounds.coordinator import RoundRecord
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.federation import Federation, train_federation
from fedhash_sim.run_folder import explained
from fedhash_sim.settings import ResolvedStudy

__all__ = ["freeze_towers", "with_digests"]


def freeze_towers(
    study: ResolvedStudy, public: Sequence[Study], seed: int, folder: Path
) -> dict[str, FrozenFeatures]:
    """Make and keep the features of every frozen tower; none without such towers.

    Args:
        study: The comparison.
        public: The studies of its public patients.
        seed: Of the towers' first parameters and of their training.
        folder: The seed's own.

    Raises:
        DataError: There are no public studies to make them of.
        ModelError: The public studies are too few for the dimensions asked for.
    """
    modalities = frozen_modalities(study.round.model)
    if not modalities:
        return {}
    settings, public_round = study.settings.public, study.public_round
    if settings is None or public_round is None:
        raise DataError("frozen towers need public patients; add public: {share: ..., round: ...}")
    anchors = Anchors.build(study.agreement)
    model = build_model(public_round.model, study.agreement.code_bits, seed, anchors=anchors)
    studies = prepare_studies(model, public, study.agreement.findings)
    if settings.layer == "last":
        federation = Federation(
            "public",
            f"public-seed-{seed}",
            study.agreement.model_copy(update={"smallest_cohort": 1}),
            public_round.model_copy(update={"aggregation": "plain"}),
            {"public": studies},
            seed,
        )
        outcome = train_federation(federation, "inprocess", folder / "public-training", _untold)
        Layout.of(model).load(model, outcome.model)
    frozen = {}
    for modality in modalities:
        options = FrozenTowerOptions.model_validate(study.round.model.towers[modality].options)
        frozen[modality] = freeze(
            modality,
            public_round.model.towers[modality],
            model.tower(modality),
            settings.layer,
            studies,
            anchors,
            dimensions=options.dimensions,
        )
        path = folder / frozen_file(modality)
        with explained(path):
            path.write_bytes(frozen[modality].to_bytes())
    return frozen


def with_digests(settings: RoundSettings, frozen: Mapping[str, FrozenFeatures]) -> RoundSettings:
    """A round whose frozen towers name these features."""
    towers = dict(settings.model.towers)
    for modality, each in frozen.items():
        options = towers[modality].options | {"sha256": each.sha256}
        towers[modality] = towers[modality].model_copy(update={"options": options})
    model = settings.model.model_copy(update={"towers": towers})
    return settings.model_copy(update={"model": model})


def _untold(record: RoundRecord, models: object) -> None:
    """The public patients' training has no progress of its own on the screen."""
