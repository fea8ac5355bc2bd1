"""Studies whose sites keep normalisation layers of their own: who encodes what, and no release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedhash.codes import pack_signs
from fedhash.errors import ReleaseError
from fedhash.evaluation.direction import evaluate_direction
from fedhash.learning.own_layers import OWN_LAYERS, own_places, with_own_layers
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.layout import Layout
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.site_state import FileSiteState
from fedhash_sim.cells import run_cell
from fedhash_sim.consortium import Consortium, build_consortium
from fedhash_sim.run_folder import RunFolder, file_name
from fedhash_sim.search import SimulatedConsortium
from fedhash_sim.settings import read_study

OWN = (
    *("seeds=[0]", "methods=[federated, central]", "evaluation.every_rounds=1"),
    *("round.rounds=2", "round.aggregation=plain", "round.learning.learning_rate=0.05"),
    "round.learning.normalisation_layers=own",
    "data={kind: phantom, sites: 3, patients_per_site: 12}",
)


def cells(study_file: Path, out: Path, *changes: str) -> RunFolder:
    """Both cells of the study, trained and evaluated, without tables and pictures of the run."""
    study = read_study(study_file, [*OWN, *changes])
    folder = RunFolder.open(out, study, replace=False)
    build_consortium(study, 0, folder.data(0))
    for method in study.settings.methods:
        run_cell(out, method, 0, lambda _: None)
    return folder


def figures(folder: RunFolder) -> pd.Series:
    """mAP of the federated method by round and group."""
    results = pd.read_csv(folder.cell("federated", 0).path / "results.csv")
    return results[results["metric"] == "map"].set_index(["round", "group"])["value"]


def site_models(folder: RunFolder, number: int) -> dict[str, HashModel]:
    """The sites' models after the last round, from what the run left on disk."""
    _, study = RunFolder.existing(folder.path)
    work = folder.cell("federated", 0).path / "models" / "0"
    found = Checkpoints(work / "checkpoints").newest()
    assert found is not None
    plan, state = found
    models = {}
    for site in plan.sites:
        model = study.build_model(0)
        memory = FileSiteState(work / "sites" / "rounds" / file_name(site))
        carried = memory.carried(plan.run_id, number)
        assert carried is not None
        assert carried[OWN_LAYERS].any()
        own = own_places(model, plan.settings.learning)
        Layout.of(model).load(model, with_own_layers(state.model, own, carried))
        models[site] = model
    return models


def test_each_site_encodes_its_own_and_asks_with_its_own(study_file: Path, tmp_path: Path) -> None:
    folder = cells(study_file, tmp_path / "run")
    _, study = RunFolder.existing(folder.path)
    models = site_models(folder, 2)
    consortium = Consortium.load(folder.data(0))
    held = {site: consortium.database(site) for site in consortium.sites}
    codes = np.concatenate(
        [pack_signs(encode_studies(models[site], held[site], "report")) for site in held]
    )
    labels = np.concatenate([each.labels.numpy() for each in held.values()])
    queries = consortium.queries()
    expected = {}
    for site, model in models.items():
        rows = evaluate_direction(
            pack_signs(encode_studies(model, queries, "report")),
            queries.labels.numpy(),
            codes,
            labels,
            findings=study.agreement.findings,
        )
        expected[site] = {(row.metric, row.group): row.value for row in rows}["map", "all"]
    assert len(set(expected.values())) == 3

    found = figures(folder)
    for site, value in expected.items():
        assert found[2, f"site_model={site}"] == pytest.approx(value, abs=1e-6)
    assert found[2, "all"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert {number for number, _ in found.index} == {1, 2}

    assert not (folder.cell("federated", 0).path / "release").exists()
    assert (folder.cell("central", 0).path / "release").is_dir()  # one party, one model
    with pytest.raises(ReleaseError, match="has a model for each site and so no release"):
        SimulatedConsortium.open(folder.path)

    vectorised = figures(
        cells(study_file, tmp_path / "vectorised", "engine=vectorised", "methods=[federated]")
    )
    assert list(vectorised.index) == list(found.index)
    assert (vectorised - found).abs().max() < 0.01  # a bit that rounding decides may turn
