from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedhash.errors import ModelError
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings


def small_model(seed: int = 1, hidden: int = 8) -> HashModel:
    options = {"word_features": 16, "character_features": 16, "hidden": hidden}
    towers = {
        "report": TowerSettings(name="report_ngrams", options=options),
        "signal": TowerSettings(name="signal_convnet", options={"width": 8}),
    }
    return build_model(ModelSettings(towers=towers), code_bits=16, seed=seed)


def test_a_vector_carries_a_model_to_another() -> None:
    one, other = small_model(seed=1), small_model(seed=2)
    layout = Layout.of(one)
    vector = layout.flatten(one)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    layout.load(other, vector)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_entries_name_the_places_in_the_vector() -> None:
    model = small_model()
    layout = Layout.of(model)
    vector = layout.flatten(model)
    parts = layout.split(vector)
    parameters = dict(model.named_parameters())
    assert [entry.name for entry in layout.entries] == list(parameters)
    for (name, shape, offset), part in zip(layout.entries, parts, strict=True):
        values = vector[offset : offset + int(np.prod(shape))].reshape(shape)
        assert (values == parameters[name].detach().numpy()).all()
        assert (values == part.numpy()).all()


def test_vectors_are_copies() -> None:
    model = small_model()
    layout = Layout.of(model)
    vector = layout.flatten(model)
    kept = vector.copy()
    layout.load(model, vector)
    vector += 1
    assert (layout.flatten(model) == kept).all()
    layout.split(vector)[0].zero_()
    assert (vector == kept + 1).all()
    read_only = np.frombuffer(kept.tobytes(), dtype=np.float32)
    layout.load(model, read_only)


def test_the_digest_stands_for_names_shapes_and_order() -> None:
    assert Layout.of(small_model(seed=1)).digest() == Layout.of(small_model(seed=2)).digest()
    layers = [nn.Linear(3, 4), nn.Linear(4, 3)]
    variants = [
        nn.Sequential(*layers),
        nn.Sequential(*layers[::-1]),
        nn.ModuleDict({"a": layers[0], "b": layers[1]}),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, bias=False)),
    ]
    assert len({Layout.of(variant).digest() for variant in variants}) == len(variants)


def test_a_model_of_another_layout_is_refused() -> None:
    layout = Layout.of(small_model())
    with pytest.raises(ModelError, match=r"the model has the layout .* build it from the same"):
        layout.flatten(small_model(hidden=9))


def test_a_vector_of_another_length_is_refused() -> None:
    model = small_model()
    layout = Layout.of(model)
    before = layout.flatten(model)
    with pytest.raises(ModelError, match=r"a vector of shape \(3,\) was given"):
        layout.load(model, np.zeros(3, dtype=np.float32))
    assert (layout.flatten(model) == before).all()


def test_batch_statistics_have_no_layout() -> None:
    with pytest.raises(ModelError, match=r"'1\.running_mean' beside its parameters"):
        Layout.of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
