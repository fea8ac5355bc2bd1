"""Releases: all that is needed to encode, and nothing that could be altered unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from fedhash.agreement import Agreement
from fedhash.errors import ModelError, ReleaseError
from fedhash.learning.loss import Margins
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.registry import Release, load_release, save_release

AGREEMENT = Agreement(
    name="test",
    findings=("no_finding", "edema", "effusion"),
    code_bits=16,
    modalities=("report",),
)
SETTINGS = ModelSettings(
    towers={
        "report": TowerSettings(
            name="report_ngrams",
            options={"word_features": 128, "character_features": 128, "hidden": 4},
        ),
    }
)
VECTOR = Layout.of(build_model(SETTINGS, 16, seed=3)).flatten(build_model(SETTINGS, 16, seed=3))


def saved(folder: Path, **changes: Any) -> Release:
    parts = {
        "agreement": AGREEMENT,
        "model_settings": SETTINGS,
        "vector": VECTOR,
        "margins": Margins(
            np.array([0.05, 0.3, 0.6], dtype=np.float32), np.array([0.5, 1, 2], dtype=np.float32)
        ),
        "metrics": {"map": 0.7, "chance": 0.1},
        "run_id": "run-1",
    }
    return save_release(folder, **(parts | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "release")
    return tmp_path / "release"


def test_a_release_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    release = saved(tmp_path / "release", parent="ab" * 32)
    assert release.agreement == AGREEMENT
    assert release.model_settings == SETTINGS
    assert np.array_equal(release.vector, VECTOR)
    assert release.margins.mu.tolist() == np.float32([0.05, 0.3, 0.6]).tolist()
    assert release.margins.w.tolist() == [0.5, 1, 2]
    assert release.metrics == {"map": 0.7, "chance": 0.1}
    assert (release.parent, release.run_id) == ("ab" * 32, "run-1")
    assert [file.name for file in tmp_path.iterdir()] == ["release"]


def test_the_model_encodes_as_the_trained_one(folder: Path) -> None:
    trained = build_model(SETTINGS, 16, seed=3).eval()
    released = load_release(folder).build_model()
    prepared = trained.tower("report").prepare(["Large effusion.", "Clear lungs."])
    with torch.no_grad():
        assert torch.equal(released.encode("report", prepared), trained.encode("report", prepared))
    assert not released.training


def test_the_description_can_be_printed_as_json(folder: Path) -> None:
    described = json.loads(json.dumps(load_release(folder).describe()))
    assert described["release_id"] == load_release(folder).release_id
    assert described["parameters"] == len(VECTOR)
    assert described["towers"] == {"report": "report_ngrams"}


def test_the_id_stands_for_the_content_alone(tmp_path: Path) -> None:
    one, same = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert one.release_id == same.release_id
    others = [
        saved(tmp_path / "c", vector=np.nextafter(VECTOR, np.float32(9))),
        saved(tmp_path / "d", run_id="run-2"),
        saved(tmp_path / "e", metrics={"map": 0.71}),
        saved(tmp_path / "f", parent=one.release_id),
        saved(tmp_path / "g", agreement=AGREEMENT.model_copy(update={"largest_k": 7})),
    ]
    assert len({one.release_id, *(other.release_id for other in others)}) == 6


def test_saving_again_changes_nothing(folder: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert saved(folder).release_id == load_release(folder).release_id
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(ReleaseError, match="holds another release; releases never change"):
        saved(folder, run_id="run-2")
    assert load_release(folder).run_id == "run-1"


def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "release.unfinished").mkdir()
    (tmp_path / "release.unfinished" / "manifest.json").write_text("{")
    saved(tmp_path / "release")
    assert [file.name for file in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vector": VECTOR[:-1]}, ModelError, "a vector of shape"),
        ({"vector": np.full_like(VECTOR, np.nan)}, ReleaseError, "not finite"),
        ({"margins": Margins.constant(2, 0.3)}, ReleaseError, "2 margins and 2 weights for 3"),
        ({"margins": Margins.constant(3, 0.7)}, ReleaseError, "the agreement allows 0.05"),
        ({"metrics": {"map": float("nan")}}, ReleaseError, "metrics.map"),
        ({"parent": "v1"}, ReleaseError, "parent"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        saved(tmp_path / "release", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_any_changed_byte_is_refused(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(30), *rng.integers(30, len(good), 120).tolist(), len(good) - 1]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        (folder / name).write_bytes(bad)
        with pytest.raises(ReleaseError, match=r"is damaged or was altered .* fetch the release"):
            load_release(folder)
    for bad in (good[:-1], good + b" ", b"", good + good):
        (folder / name).write_bytes(bad)
        with pytest.raises(ReleaseError, match="is damaged or was altered"):
            load_release(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ReleaseError, match=f"no complete release .*{name}"):
        load_release(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "frozen-image.safetensors"])
def test_a_pipe_or_an_endless_file_is_not_read(folder: Path, name: str) -> None:
    forge(
        folder,
        lambda c: c["model"].update(towers={"image": {"name": "frozen_image", "options": {}}}),
    )
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ReleaseError, match=f"it is no regular file.*{name}"):
        load_release(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ReleaseError, match=f"it is no regular file.*{name}"):
        load_release(folder)


@pytest.mark.parametrize("modality", ["a\0b", "/../../etc/passwd", "x" * 5000, "\x1b[2Jx\ny"])
def test_no_file_is_opened_by_a_name_that_the_manifest_made_up(folder: Path, modality: str) -> None:
    forge(
        folder,
        lambda c: c["model"].update(towers={modality: {"name": "frozen_image", "options": {}}}),
    )
    with pytest.raises(ReleaseError, match="was asked for the modality") as refused:
        load_release(folder)
    assert str(refused.value).isprintable()


def test_frozen_features_with_another_hash_are_not_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"dimensions": 5, "sha256": "0" * 64}
    towers = {"image": {"name": "frozen_image", "options": options}}
    forge(folder, lambda c: c["model"].update(towers=towers))
    (folder / "frozen-image.safetensors").write_bytes(b"x")
    monkeypatch.setattr(FrozenFeatures, "from_bytes", None)
    with pytest.raises(ReleaseError, match="its SHA-256 is not the one that the model settings"):
        load_release(folder)


def test_what_a_release_says_of_itself_cannot_move_a_terminals_cursor(tmp_path: Path) -> None:
    agreement = AGREEMENT.model_copy(update={"name": "a\x1b[2Jb\r"})
    release = saved(tmp_path / "release", run_id="run\x1b[2J", agreement=agreement)
    described = release.describe()
    assert (described["run_id"], described["agreement"]) == (
        r"run\x1b[2J",
        r"a\x1b[2Jb\r, version 1",
    )


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"release_id": 1}', b"[" * 100_000])
def test_json_that_is_no_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ReleaseError, match="damaged or was altered"):
        load_release(folder)


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter the manifest as someone who also corrects its id."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["release_id"]
    change(content)

    def canonical(value: dict[str, Any]) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    content["release_id"] = hashlib.sha256(canonical(content)).hexdigest()
    (folder / "manifest.json").write_bytes(canonical(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=3), "format: Input should be 2"),
        (lambda c: c.update(format=1), "earlier fedhash; release its run anew"),
        (lambda c: c.update(extra=1), "extra: Extra inputs"),
        (lambda c: c.update(anchors_digest="0" * 64), "other towers or anchors"),
        (lambda c: c.update(layout_digest="0" * 64), "other towers or anchors"),
        (lambda c: c["model"]["towers"]["report"].update(name="gone"), "cannot be used .* 'gone'"),
        (lambda c: c["agreement"].update(anchors_version=9), "anchors_version 9 is unknown"),
        (lambda c: c["agreement"].update(margin_range=[0.3, 0.4]), "agreement allows 0.3"),
    ],
)
def test_a_consistent_forgery_must_still_fit(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    forge(folder, change)
    with pytest.raises(ReleaseError, match=message):
        load_release(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name + "x": value for name, value in tensors.items()},
        lambda tensors: {name: value[None] for name, value in tensors.items()},
        lambda tensors: {name: value.astype(np.float64) for name, value in tensors.items()},
        lambda tensors: tensors | {"more": np.zeros(1, dtype=np.float32)},
        lambda tensors: {},
    ],
)
def test_other_parameters_with_a_right_hash_are_refused(
    folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    model = save(change(load((folder / "model.safetensors").read_bytes())))
    (folder / "model.safetensors").write_bytes(model)
    forge(folder, lambda c: c.update(model_digest=hashlib.sha256(model).hexdigest()))
    with pytest.raises(ReleaseError, match="holds other parameters"):
        load_release(folder)


def test_a_model_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"junk")
    forge(folder, lambda c: c.update(model_digest=hashlib.sha256(b"junk").hexdigest()))
    with pytest.raises(ReleaseError, match="cannot be used"):
        load_release(folder)


def test_a_release_can_be_moved_but_not_written_into_a_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_release(tmp_path / "elsewhere").release_id == load_release(folder).release_id
    (tmp_path / "file").write_text("")
    with pytest.raises(ReleaseError, match="cannot be written"):
        saved(tmp_path / "file" / "release")
