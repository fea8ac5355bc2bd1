"""Every committed configuration file is valid, and its schema is the one that the code accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedhash.agreement import Agreement
from fedhash.configuration import json_schema, read_settings
from fedhash.data.recipes import RECIPES
from fedhash_sim.schemas import CONFIGURATION_KINDS
from fedhash_sim.settings import RecipeSource, read_study

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "configs" / "schemas"
CONFIGS = sorted(
    path for kind in CONFIGURATION_KINDS for path in (ROOT / "configs" / kind).glob("*.yaml")
)
STUDIES = sorted((ROOT / "configs" / "study").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGURATION_KINDS)
def test_the_committed_schema_is_the_code_s(name: str) -> None:
    stored = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    assert stored == json_schema(CONFIGURATION_KINDS[name]), "run: make schemas"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_committed_file_names_its_schema_and_keeps_it(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named, "the first line names the schema"
    schema = (path.parent / named[1]).resolve()
    assert schema.parent == SCHEMAS
    jsonschema.validate(yaml.safe_load(text), json.loads(schema.read_text()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_committed_file_is_read(path: Path) -> None:
    settings = read_settings(path, CONFIGURATION_KINDS[path.parent.name])
    assert settings.model_fields_set


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_committed_study_is_read_with_all_that_it_names(path: Path) -> None:
    study = read_study(path)
    assert set(study.round_of) == set(study.settings.methods)
    if isinstance(study.settings.data, RecipeSource):
        recipe = RECIPES[study.settings.data.recipe]
        assert study.agreement.findings == recipe.findings
        assert set(study.round.model.towers) <= set(recipe.modalities)


def test_every_recipe_has_its_agreement() -> None:
    vocabularies = {
        read_settings(path, Agreement).findings
        for path in (ROOT / "configs" / "agreement").glob("*.yaml")
    }
    assert {recipe.findings for recipe in RECIPES.values()} <= vocabularies
