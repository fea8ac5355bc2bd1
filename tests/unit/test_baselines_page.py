"""docs/baselines.md says what the code does, and everything that it writes can be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.learning.losses import LOSSES, PRIVATE_LOSSES
from fedhash.learning.settings import _READ, LossSettings
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.settings import RoundSettings, check_privacy, check_round
from fedhash_sim.engines.vectorised import unfit
from fedhash_sim.sweeps.points import read_sweep

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
BASE = ROOT / "configs" / "round" / "phantom_hog.yaml"
PRIVACY = SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.5)
FRAGMENTS = {
    title: yaml.safe_load(fragment)
    for title, fragment in re.findall(
        r"^### (.+?)\n+```yaml\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
    )
}


def table(title: str) -> dict[str, dict[str, str]]:
    """The rows of a section's table by their first cell."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    names, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


BASELINES, LOSS_ROWS = table("Federated baselines"), table("Losses")


def agreement(name: str) -> Agreement:
    return read_settings(ROOT / "configs" / "agreement" / f"{name}.yaml", Agreement)


def with_fragment(fragment: dict[str, Any], folder: Path) -> RoundSettings:
    """The base file with a fragment; a section that has a name is replaced, as --set does it."""
    content = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    for key, value in fragment.items():
        merges = isinstance(value, dict) and "name" not in value
        content[key] = content.get(key, {}) | value if merges else value
    path = folder / "round.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_settings(path, RoundSettings)


def columns(settings: RoundSettings) -> tuple[str, str]:
    """private and vectorised, as the code has them."""
    private = settings.model_copy(update={"privacy": PRIVACY, "weighting": "uniform"})
    refused = check_privacy(private, agreement("phantom_private"))
    plain = settings.model_copy(update={"aggregation": "plain"})
    return "no" if refused else "yes", "no" if unfit(plain) else "yes"


def test_every_baseline_has_a_fragment_and_no_fragment_is_untested() -> None:
    assert list(FRAGMENTS) == list(BASELINES)
    assert PAGE.count("```yaml") == len(FRAGMENTS)
    assert len(BASELINES) == 7


@pytest.mark.parametrize("name", BASELINES)
def test_a_fragment_is_read_and_the_row_says_what_the_code_does(name: str, tmp_path: Path) -> None:
    settings = with_fragment(FRAGMENTS[name], tmp_path)
    assert check_round(settings, agreement("phantom")) == []
    row = BASELINES[name]
    assert (row["private"], row["vectorised"]) == columns(settings)
    path, _, value = row["setting"].strip("`").partition(": ")
    found: Any = settings
    for key in path.split("."):
        found = getattr(found, key)
    assert str(found) == value if value else found


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_listed_with_what_the_code_says_of_it(name: str) -> None:
    row = LOSS_ROWS[name]
    assert row["private"] == ("yes" if name in PRIVATE_LOSSES else "no")
    base = read_settings(BASE, RoundSettings)
    settings = base.model_copy(update={"loss": LossSettings(name=name)})
    assert (row["private"], row["vectorised"]) == columns(settings)
    constants = row["reads, with its defaults"]
    read = re.findall(r"(?:^|, )(scale|beta|gamma|kappa|margin|temperature) ([^,]+)", constants)
    assert {constant for constant, _ in read} == set(_READ[name])
    for constant, default in read:
        if _READ[name][constant] is not None:
            assert float(default) == _READ[name][constant]


def test_nothing_else_is_listed() -> None:
    assert set(LOSS_ROWS) == set(LOSSES)


def test_the_search_over_the_baselines_has_all_of_them() -> None:
    read = read_sweep(ROOT / "configs" / "sweep" / "federated.yaml", ["seeds=[0]"])
    assert {each.choices["baseline"] for each in read.points} == {
        name.lower().replace(" ", "_") for name in BASELINES
    }
    for point in read.points:
        assert point.study.round.learning.optimiser == "sgd"
