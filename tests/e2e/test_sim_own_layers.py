"""Studies whose sites keep normalisation layers of their own: who encodes what, and no release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sim_command import run, run_all

from fedhash.codes import pack_signs
from fedhash.evaluation.direction import evaluate_direction
from fedhash.learning.own_layers import OWN_LAYERS, own_places, with_own_layers
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.layout import Layout
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.site_state import FileSiteState
from fedhash_sim.consortium import Consortium
from fedhash_sim.results import read_results
from fedhash_sim.run_folder import RunFolder, file_name

OWN = (
    *("--set", "seeds=[0]", "--set", "methods=[federated, central]", "--set", "round.rounds=2"),
    *("--set", "round.learning.normalisation_layers=own", "--set", "round.aggregation=plain"),
    *("--set", "round.learning.learning_rate=0.05", "--set", "evaluation.every_rounds=1"),
)


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
    run_all(study_file, tmp_path / "run", *OWN)
    folder, study = RunFolder.existing(tmp_path / "run")
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

    results = read_results(folder.path)
    last = results[(results["method"] == "federated") & (results["round"] == 2)]
    last = last[last["metric"] == "map"].set_index("group")["value"]
    for site, value in expected.items():
        assert last[f"site_model={site}"] == pytest.approx(value, abs=1e-6)
    assert last["all"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)

    release = folder.cell("federated", 0).path / "release"
    assert not release.exists()
    assert (folder.cell("central", 0).path / "release").is_dir()  # one party, one model
    message = run("search", folder.path, "--report", "Effusion.", ok=False)
    assert "has a model for each site and so no release" in " ".join(message.split())

    more = ("--set", "engine=vectorised", "--set", "methods=[federated]")
    run_all(study_file, tmp_path / "vectorised", *OWN, *more)
    vectorised = read_results(tmp_path / "vectorised")
    figures = [
        found[found["metric"] == "map"].set_index(["round", "group"])["value"]
        for found in (results[results["method"] == "federated"], vectorised)
    ]
    assert {number for number, _ in figures[0].index} == {1, 2}
    differences = (figures[0] - figures[1]).abs()
    assert len(differences) == len(figures[0])
    assert differences.max() < 0.01  # a bit that rounding decides may turn
