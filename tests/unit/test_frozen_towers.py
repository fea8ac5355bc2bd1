"""Frozen towers: what they read is made of public studies, kept as one file and never changes."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.decomposition import PCA

from fedhash.agreement import Agreement
from fedhash.errors import ModelError, ReleaseError
from fedhash.learning.freezing import freeze
from fedhash.learning.loss import Margins
from fedhash.learning.losses.logistic import LogisticLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import BIAS_INPUT, FrozenFeatures, base_features
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.layout import Layout
from fedhash.models.logits_head import LogitsHead
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.models.towers import build_tower
from fedhash.registry import load_release, save_release

AGREEMENT = Agreement(
    name="test", findings=("none", "edema", "effusion"), code_bits=64, modalities=("image",)
)
ANCHORS = Anchors.build(AGREEMENT)
HOG = TowerSettings(name="image_hog", options={"image_size_px": 16, "cell_px": 8, "hidden": 12})
RNG = np.random.default_rng(0)
LABELS = torch.from_numpy(np.eye(3, dtype=np.int8)[np.arange(60) % 3])


def images() -> list[np.ndarray]:
    """Edges whose direction tells the finding."""
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    kinds = [np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.tile(1 - ramp, (16, 1))]
    return [
        (kinds[place % 3] + 0.3 * RNG.random((16, 16))).astype(np.float32) for place in range(60)
    ]


IMAGES = images()


def public_studies(settings_of_tower: TowerSettings = HOG) -> PreparedStudies:
    tower = build_tower("image", settings_of_tower, 64)
    ids = tuple(map(str, range(60)))
    return PreparedStudies(
        ids,
        ids,
        LABELS,
        {"image": tower.prepare(IMAGES)},
        {"image": torch.ones(60, dtype=torch.bool)},
        tuple({} for _ in ids),
    )


def frozen_of(layer: Any = "prepared", dimensions: int = 5) -> FrozenFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = build_tower("image", HOG, 64)
    return freeze("image", HOG, tower, layer, public_studies(), ANCHORS, dimensions=dimensions)


FROZEN = frozen_of()


def model_settings(frozen: FrozenFeatures = FROZEN, **changes: Any) -> ModelSettings:
    options = {"dimensions": frozen.dimensions, "sha256": frozen.sha256} | changes
    return ModelSettings(
        towers={"image": TowerSettings(name="frozen_image", options=options)}, head="logits"
    )


def model_of(frozen: FrozenFeatures = FROZEN, **changes: Any) -> HashModel:
    return build_model(
        model_settings(frozen, **changes), 64, 0, anchors=ANCHORS, frozen={"image": frozen}
    )


@pytest.mark.parametrize("layer", ["prepared", "last"])
def test_features_of_public_studies_are_centred_and_of_mean_square_norm_one(layer: str) -> None:
    frozen = frozen_of(layer)
    features = frozen.of(IMAGES)
    assert features.shape == (60, 6)
    assert torch.equal(features[:, -1], torch.full((60,), BIAS_INPUT))
    torch.testing.assert_close(features[:, :-1].mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
    assert features[:, :-1].square().sum(dim=1).mean().item() == pytest.approx(1, abs=1e-4)
    products = features[:, :-1].T @ features[:, :-1]
    diagonal = torch.diagonal(products)
    torch.testing.assert_close(products, torch.diag(diagonal), atol=1e-3, rtol=0)
    base = base_features(frozen.tower, frozen.tower.prepare(IMAGES), frozen.layer)
    variance = PCA(5).fit(base.numpy()).explained_variance_ * 59 / 60
    whitened = variance / (variance + variance.mean())
    np.testing.assert_allclose(diagonal.numpy() / 60, whitened / whitened.sum(), rtol=1e-3)


def test_a_file_comes_back_byte_for_byte_and_the_same_data_gives_the_same_file() -> None:
    again = FrozenFeatures.from_bytes(FROZEN.to_bytes(), "a file")
    assert again.sha256 == FROZEN.sha256 == frozen_of().sha256
    assert again.to_bytes() == FROZEN.to_bytes()
    assert torch.equal(again.of(IMAGES), FROZEN.of(IMAGES))
    assert frozen_of(dimensions=4).sha256 != FROZEN.sha256


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(FROZEN.to_bytes()) - 1), change=st.integers(1, 255))
def test_a_damaged_file_is_refused_or_has_another_digest(place: int, change: int) -> None:
    content = bytearray(FROZEN.to_bytes())
    content[place] ^= change
    with contextlib.suppress(ModelError):
        damaged = FrozenFeatures.from_bytes(bytes(content), "a file")
        assert damaged.sha256 != FROZEN.sha256
        with pytest.raises(ModelError, match="use the same file"):
            build_model(model_settings(), 64, 0, anchors=ANCHORS, frozen={"image": damaged})


@pytest.mark.parametrize("content", [b"", b"x", FROZEN.to_bytes()[:-1], b"\xff" * 64])
def test_what_is_no_file_of_features_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="holds no frozen features"):
        FrozenFeatures.from_bytes(content, "a file")


def altered(**changes: torch.Tensor) -> bytes:
    """A file of which somebody changed tensors."""
    return save(load(FROZEN.to_bytes()) | changes)


def about(**changes: Any) -> torch.Tensor:
    """The JSON text of a file of which somebody changed entries."""
    text = json.loads(load(FROZEN.to_bytes())["about"].numpy().tobytes()) | changes
    return torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "text",
    [
        torch.tensor(10**7, dtype=torch.int64),  # bytes(10**7) would be as many
        torch.tensor(7, dtype=torch.uint8),
        torch.ones(5),
        torch.ones(2, 5, dtype=torch.uint8),
        torch.full(((1 << 16) + 1,), ord(" "), dtype=torch.uint8),
    ],
)
def test_a_text_of_another_kind_or_size_is_never_made_bytes(text: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"'about' is .* no text"):
        FrozenFeatures.from_bytes(altered(about=text), "a file")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tower.", lambda part: torch.full_like(part, torch.nan), "not finite"),
        ("tower.", lambda part: torch.full_like(part, 3e38), "not finite or above 1e"),
        ("tower.", lambda part: part.to(torch.int8), "not float32"),
        ("tower.", lambda part: part.to(torch.float16), "not float32"),
        ("projection", lambda part: torch.full_like(part, 3e38), "not finite or above 1e"),
        ("mean", lambda part: torch.full_like(part, -3e38), "not finite or above 1e"),
        ("mean", lambda part: part.to(torch.bool), "not float32"),
        ("head", lambda part: torch.full_like(part, -torch.inf), "not finite or above 1e"),
        ("projection", lambda part: part[:, :0], "do not fit each other"),
        ("mean", lambda part: part[:, None], "do not fit each other"),
    ],
)
def test_numbers_that_nothing_can_be_computed_with_are_refused(
    name: str, change: Any, message: str
) -> None:
    tensors = load(FROZEN.to_bytes())
    key = next(each for each in sorted(tensors) if each.startswith(name))
    with pytest.raises(ModelError, match=message):
        FrozenFeatures.from_bytes(altered(**{key: change(tensors[key])}), "a file")


@pytest.mark.parametrize("layer", ["prepared", "last"])
def test_a_mean_and_a_projection_of_another_length_than_the_towers_features_are_refused(
    layer: str,
) -> None:
    features = (
        build_tower("image", HOG, 64).prepare(IMAGES[:1]).numel() if layer == "prepared" else 12
    )
    fitting = {"mean": torch.zeros(features), "projection": torch.ones(features, 5)}
    with_layer = altered(about=about(layer=layer), **fitting)
    assert FrozenFeatures.from_bytes(with_layer, "a file").of(IMAGES[:1]).shape == (1, 6)
    one_more = {"mean": torch.zeros(features + 1), "projection": torch.ones(features + 1, 5)}
    with pytest.raises(ModelError, match=f"gives {features}"):
        FrozenFeatures.from_bytes(altered(about=about(layer=layer), **one_more), "a file")


def test_a_base_tower_that_is_frozen_itself_is_refused() -> None:
    tower = {"name": "frozen_image", "options": {"dimensions": 5}}
    with pytest.raises(ModelError, match="frozen_image, which is frozen itself"):
        FrozenFeatures.from_bytes(altered(about=about(tower=tower)), "a file")


def test_control_characters_of_a_file_are_told_as_escapes() -> None:
    content = altered(**{"tower.\x1b[2Jx\ny": torch.ones(1), "\x1b[31m": torch.ones(1)})
    with pytest.raises(ModelError) as refused:
        FrozenFeatures.from_bytes(content, "a \x1b[31mfile")
    assert str(refused.value).isprintable()


def test_a_tower_whose_features_are_not_finite_makes_none() -> None:
    tower = build_tower("image", HOG, 64)
    with torch.no_grad():
        for each in tower.parameters():
            each.fill_(3e38)
    with pytest.raises(ModelError, match="features that are not finite"):
        freeze("image", HOG, tower, "last", public_studies(), ANCHORS, dimensions=2)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ModelError, match="it is no regular file"):
            FrozenFeatures.load(tmp_path / name)
    with (tmp_path / "large").open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(ModelError, match="it is larger than"):
        FrozenFeatures.load(tmp_path / "large")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        FrozenFeatures.load(tmp_path / "nowhere")


def test_the_head_of_the_file_is_the_model_before_its_first_round() -> None:
    model = model_of()
    assert FROZEN.head is not None
    assert torch.equal(next(model.parameters()), FROZEN.head)
    right = (
        model.relaxed_codes("image", model.tower("image").prepare(IMAGES))
        @ torch.from_numpy(ANCHORS.matrix.astype(np.float32)).T
    )
    assert (right.argmax(dim=1) == LABELS.argmax(dim=1)).float().mean() > 0.9
    without = build_model(model_settings(), 64, 0, anchors=ANCHORS)
    assert not next(without.parameters()).any()
    assert Layout.of(without) == Layout.of(model)


def test_a_tower_without_its_features_says_which_file_is_missing() -> None:
    tower = build_model(model_settings(), 64, 0, anchors=ANCHORS).tower("image")
    with pytest.raises(ModelError, match=FROZEN.sha256):
        tower.prepare(IMAGES)


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"dimensions": 4}, {"sha256": ""}])
def test_other_features_than_the_options_demand_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="use the same file on all sides"):
        model_of(**changes)


def test_too_few_public_studies_are_refused() -> None:
    with pytest.raises(ModelError, match="at most 59 dimensions"):
        frozen_of(dimensions=60)


@pytest.mark.parametrize(("kinds", "possible"), [(1, 0), (3, 2)])
def test_dimensions_that_hold_nothing_but_rounding_are_refused(kinds: int, possible: int) -> None:
    public = public_studies()
    alike = replace(public, inputs={"image": public.inputs["image"][torch.arange(60) % kinds]})
    tower = build_tower("image", HOG, 64)
    with pytest.raises(ModelError, match=f"vary in {possible} dimensions, {possible + 1} were"):
        freeze("image", HOG, tower, "last", alike, ANCHORS, dimensions=possible + 1)
    if possible:
        frozen = freeze("image", HOG, tower, "last", alike, ANCHORS, dimensions=possible)
        assert frozen.dimensions == possible


def test_a_head_of_logits_needs_anchors() -> None:
    with pytest.raises(ModelError, match="needs the anchors"):
        build_model(model_settings(), 64, 0)


def test_a_release_carries_what_its_frozen_towers_read(tmp_path: Path) -> None:
    model = model_of()
    saved = save_release(
        tmp_path / "release",
        agreement=AGREEMENT,
        model_settings=model_settings(),
        vector=Layout.of(model).flatten(model),
        margins=Margins.constant(3, 0.3),
        metrics={},
        run_id="run",
        frozen={"image": FROZEN},
    )
    again = load_release(tmp_path / "release").build_model()
    prepared = model.tower("image").prepare(IMAGES)
    assert torch.equal(again.tower("image").prepare(IMAGES), prepared)
    assert torch.equal(
        again.relaxed_codes("image", prepared), model.relaxed_codes("image", prepared)
    )
    assert saved.release_id == load_release(tmp_path / "release").release_id
    file = tmp_path / "release" / "frozen-image.safetensors"
    file.write_bytes(frozen_of(dimensions=4).to_bytes())
    with pytest.raises(ReleaseError, match="its SHA-256 is not the one that the model settings"):
        load_release(tmp_path / "release")
    file.unlink()
    with pytest.raises(ReleaseError, match="copy it again"):
        load_release(tmp_path / "release")


def test_a_sure_study_has_the_code_of_its_finding() -> None:
    tower = build_model(ModelSettings(towers={"image": HOG}, head="logits"), 64, 0, anchors=ANCHORS)
    last = [m for m in tower.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        for finding in range(3):
            last.bias.copy_(100 * torch.eye(3)[finding])
            prepared = tower.tower("image").prepare(IMAGES[:1])
            code = torch.sign(tower.relaxed_codes("image", prepared))[0]
            assert torch.equal(code, torch.from_numpy(ANCHORS.matrix[finding]).float())


def head_codes(weights: torch.Tensor) -> torch.Tensor:
    head = LogitsHead(ANCHORS, temperature=1.0)
    return (head.code_outputs(torch.log(weights)) > 0).float()


def test_distances_fall_with_the_probability_of_the_same_finding() -> None:
    weights = torch.from_numpy(RNG.dirichlet([0.5, 0.5, 0.5], size=400).astype(np.float32) + 1e-6)
    weights = weights / weights.sum(dim=1, keepdim=True)
    bits = head_codes(weights)
    others = ~torch.eye(400, dtype=torch.bool)
    distances = torch.cdist(bits, bits, p=1)[others]
    expected = 32 * (1 - weights @ weights.T)[others]
    assert (distances - expected).mean().abs() < 0.3
    assert (distances - expected).std() < 3.5  # bits of independent chance would have up to 4


def test_a_study_is_nearer_to_the_sure_ones_of_its_finding_than_to_the_unsure() -> None:
    """As a ranking wants it, and as thresholds that all studies share would not have it."""
    asking = torch.tensor([[0.5, 0.4, 0.1]]).repeat(300, 1) * (1 + 0.5 * torch.rand(300, 3))
    sure = torch.tensor([[0.98, 0.01, 0.01]]).repeat(300, 1) * (1 + 0.5 * torch.rand(300, 3))
    queries, confident = head_codes(asking[:150]), head_codes(sure)
    unsure = head_codes(asking[150:])
    assert torch.cdist(queries, confident, p=1).mean() < torch.cdist(queries, unsure, p=1).mean()


def test_equal_logits_give_equal_codes_whatever_else_is_in_the_batch() -> None:
    weights = torch.from_numpy(RNG.dirichlet([1, 1, 1], size=64).astype(np.float32))
    together = head_codes(weights)
    assert torch.equal(together[5], head_codes(weights[5:6])[0])
    assert torch.equal(head_codes(weights.flip(0)).flip(0), together)


def test_the_logistic_loss_reads_the_logits_back() -> None:
    loss = LogisticLoss(ANCHORS, LossSettings(name="logistic"))
    logits = torch.from_numpy(RNG.normal(size=(60, 3)).astype(np.float32))
    raw = {"image": logits @ torch.from_numpy(ANCHORS.matrix.astype(np.float32))}
    found = loss(raw, {"image": torch.ones(60, dtype=torch.bool)}, LABELS, Margins.constant(3, 0.3))
    expected = torch.nn.functional.cross_entropy(logits, LABELS.argmax(dim=1), reduction="none")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_logistic_loss_of_several_and_uncertain_findings() -> None:
    loss = LogisticLoss(ANCHORS, LossSettings(name="logistic"))
    labels = torch.tensor([[1, 1, 0], [1, -1, 0], [0, 0, 0]], dtype=torch.int8)
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 9.0, -1.0], [3.0, 2.0, 1.0]])
    raw = {"image": logits @ torch.from_numpy(ANCHORS.matrix.astype(np.float32))}
    margins = Margins(np.full(3, 0.3, np.float32), np.array([1, 2, 1], np.float32))
    found = loss(raw, {"image": torch.tensor([True, True, True])}, labels, margins)
    expected = [
        (np.log1p(np.exp(1.5)) + 2 * np.log1p(np.exp(3.0))) / 2,
        np.log1p(np.exp(-2.0)),
        0.0,
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
