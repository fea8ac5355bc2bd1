"""Dumps of settings that read back equal, and the JSON Schemas that editors use."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_configuration import Convnet, Hog, Learning, Speed, Study

from fedhash.configuration import json_schema, read_settings, resolved, write_schemas

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
tricky = st.sampled_from(
    ["no", "~", "", "1e-3", "3", " a ", "- a", "a: b", "#", "\n", "<<", "=", "\x85"]
)
files = st.sampled_from([Path("/a"), Path("/a b/ü: #.csv"), Path("/x/y")])
towers = st.one_of(
    st.builds(Convnet, name=st.just("convnet"), weights=st.none() | files),
    st.builds(Hog, name=st.just("hog"), cells=st.tuples(st.integers(), st.integers())),
)
studies = st.builds(
    Study,
    title=words | tricky,
    rounds=st.integers(min_value=5),
    plots=st.booleans(),
    manifest=files,
    extra=st.lists(files, max_size=3).map(tuple),
    towers=st.dictionaries(words | tricky, towers, max_size=3),
    chain=st.lists(towers, max_size=3).map(tuple),
    learning=st.builds(
        Learning,
        learning_rate=st.floats(max_value=1, allow_nan=False, allow_infinity=False),
        local_steps=st.none() | st.integers() | st.just("all"),
        speed=st.sampled_from(Speed),
    ),
    note=st.none() | words | tricky,
)


@given(study=studies)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_dump_reads_back_equal(study, tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved(study), encoding="utf-8", newline="")
    again = read_settings(path, Study)
    assert again == study
    assert resolved(again) == resolved(study)


def test_a_dump_holds_defaults_in_their_order_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = resolved(Study(title="a", rounds=1, extra=(Path("b"), Path("/c"))))
    assert text.startswith("title: a\nrounds: 1\nplots: true\nmanifest: /data/manifest.csv\n")
    assert f"extra:\n- {tmp_path / 'b'}\n- /c\n" in text
    assert list(yaml.safe_load(text)) == list(Study.model_fields)


# --- schemas


def test_the_schema_accepts_and_refuses_what_reading_does():
    schema = json_schema(Study)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {"title": "a", "rounds": 3, "towers": {"image": {"name": "hog", "cells": [1, 2]}}}
    assert validator.is_valid(good)
    for wrong in [
        {"title": "a"},
        {**good, "rounds": "3"},
        {**good, "rounds": 0},
        {**good, "x": 1},
        {**good, "towers": {"image": {"name": "resnet"}}},
    ]:
        assert not validator.is_valid(wrong)
        with pytest.raises(ValidationError):
            Study.model_validate_json(json.dumps(wrong))


def test_schemas_are_written_the_same_every_time(tmp_path):
    kinds = {"study": Study, "learning": Learning}
    write_schemas(tmp_path / "one", kinds)
    write_schemas(tmp_path / "two", kinds)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["learning.schema.json", "study.schema.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one/study.schema.json").read_text()) == json_schema(Study)
