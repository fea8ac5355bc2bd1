"""A study that trains in seconds: reports only, three sites."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhash_sim.cli import app

ROUND = """
model:
  towers:
    report: {name: report_ngrams, options: {hidden: 16, word_features: 64, character_features: 64}}
learning: {local_steps: 2, learning_rate: 0.005}
rounds: 4
weighting: uniform
"""

STUDY = """
name: small
agreement: agreement.yaml
round: round.yaml
data: {kind: phantom, sites: 3, patients_per_site: 25}
seeds: [0, 1]
evaluation: {groups: [sex], every_rounds: 2}
"""


def write_study(folder: Path) -> Path:
    root = Path(__file__).parents[2]
    folder.mkdir()
    agreement = (root / "configs" / "agreement" / "phantom.yaml").read_text()
    (folder / "agreement.yaml").write_text(agreement)
    (folder / "round.yaml").write_text(ROUND)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one seed, trained once for all tests; copy it before use."""
    folder = tmp_path_factory.mktemp("finished")
    study = write_study(folder / "study")
    arguments = ["run", str(study), "--out", str(folder / "run"), "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, "--set", "seeds=[0]"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, and the study beside it."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"
