"""A study that trains in seconds: reports only, three sites."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    root = Path(__file__).parents[2]
    folder = tmp_path / "study"
    folder.mkdir()
    agreement = (root / "configs" / "agreement" / "phantom.yaml").read_text()
    (folder / "agreement.yaml").write_text(agreement)
    (folder / "round.yaml").write_text(ROUND)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"
