"""Modalities: what a cell names, how it is loaded, and what is refused with which words."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhash.data import MODALITIES, Content, InMemory, Modality, register_modality
from fedhash.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def load(modality: str, cell: str, folder: Path) -> np.ndarray | str:
    return MODALITIES[modality].read(cell, folder).load()


def refusal(modality: str, cell: str, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        MODALITIES[modality].read(cell, folder)
    return str(caught.value)


# --- the registry ---------------------------------------------------------------------------------


def test_a_new_modality_is_one_registered_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhash.data.modalities.modality.MODALITIES", dict(MODALITIES))

    class Genome(Modality):
        name = "genome"

        def content(self, cell: str, folder: Path) -> Content:
            return InMemory(f"{folder}/{cell}")

    register_modality(Genome)
    with pytest.raises(DataError, match="a modality named 'genome' is registered already"):
        register_modality(Genome)


def test_three_modalities_are_registered() -> None:
    assert sorted(MODALITIES) == ["image", "report", "signal"]


def test_contents_can_be_sent_to_worker_processes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 9)), y=np.zeros((2, 4, 4)))
    PIL.Image.fromarray(GREY).save(tmp_path / "s1.png")
    (tmp_path / "r.txt").write_text("clear")
    cells = {"image": ["s1.png", "a.npz#y/1"], "signal": ["a.npz#x/1"], "report": ["@r.txt", "ok"]}
    for modality, named in cells.items():
        for cell in named:
            content = MODALITIES[modality].read(cell, tmp_path)
            assert pickle.loads(pickle.dumps(content)) == content  # noqa: S301


# --- images ---------------------------------------------------------------------------------------


def test_an_eight_bit_grey_image_is_divided_by_255(tmp_path: Path) -> None:
    PIL.Image.fromarray(GREY).save(tmp_path / "s1.png")
    image = load("image", "s1.png", tmp_path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, GREY.astype(np.float32) / np.float32(255))


def test_a_sixteen_bit_grey_image_keeps_its_depth(tmp_path: Path) -> None:
    deep = np.array([[0, 1], [40_000, 65_535]], dtype=np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "s1.png")
    expected = deep.astype(np.float32) / np.float32(65_535)
    np.testing.assert_array_equal(load("image", "s1.png", tmp_path), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colour_becomes_grey(tmp_path: Path, mode: str) -> None:
    PIL.Image.fromarray(GREY).convert(mode).save(tmp_path / "s1.png")
    expected = GREY.astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(load("image", "s1.png", tmp_path), expected, atol=1 / 255)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "s1.png", transparency=bytes(range(200)))
    assert load("image", "s1.png", tmp_path).shape == (6, 8)


def test_luma_weighs_the_colours(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "s1.png")
    assert load("image", "s1.png", tmp_path)[0, 0] == pytest.approx(0.299, abs=1 / 255)


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((16, 16), 128, dtype=np.uint8)).save(tmp_path / "s1.jpg")
    assert load("image", "s1.jpg", tmp_path).mean() == pytest.approx(128 / 255, abs=0.01)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY.astype(np.float32) / np.float32(255)),
        (np.full((2, 3), 65_535, dtype=np.uint16), np.ones((2, 3))),
        (np.full((2, 3), 0.25), np.full((2, 3), 0.25)),
    ],
    ids=["uint8", "uint16", "float64"],
)
def test_an_image_in_an_array(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "images.npz", images=np.stack([np.zeros_like(array), array]))
    image = load("image", "images.npz#images/1", tmp_path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), r"float64 that are not all in 0\.\.1; store uint8"),
        (np.array([[0.5, 1.5]]), r"float64 that are not all in 0\.\.1"),
        (np.array([[0, 1]]), r"int64 that are not all in 0\.\.1"),
        (np.zeros((4, 4, 3), dtype=np.uint8), r"shape \(4, 4, 3\); store one grey image"),
        (np.zeros((0, 4), dtype=np.uint8), r"shape \(0, 4\); store one grey image"),
    ],
)
def test_an_array_that_is_no_image_is_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "images.npz", images=array[None])
    with pytest.raises(DataError, match=message):
        MODALITIES["image"].read("images.npz#images/0", tmp_path)


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "s1.png").write_bytes(buffer.getvalue()[:2000])
    assert "cannot be read as PNG or JPEG" in refusal("image", "s1.png", tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(GREY).save(tmp_path / "s1.png", "GIF")
    assert "export the image again" in refusal("image", "s1.png", tmp_path)


def test_an_unknown_colour_mode_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (4, 4)).save(tmp_path / "s1.jpg")
    assert "colour mode CMYK; save it as a grey" in refusal("image", "s1.jpg", tmp_path)


@pytest.mark.parametrize("side", [8_100, 9_600, 14_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path: Path, side: int) -> None:
    PIL.Image.new("1", (side, side)).save(tmp_path / "s1.png")
    assert "is too large" in refusal("image", "s1.png", tmp_path)


# --- reports --------------------------------------------------------------------------------------


def test_a_report_stands_in_the_cell(tmp_path: Path) -> None:
    assert load("report", "No pleural effusion.", tmp_path) == "No pleural effusion."


def test_a_report_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_bytes(b"\xef\xbb\xbf Kein Pleuraergu\xc3\x9f.\n")
    assert load("report", "@r.txt", tmp_path) == "Kein Pleuraerguß."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Ergu\xdf", "save it as UTF-8 text"),
        (b" \n", "is empty or longer"),
        (b"x" * 131_073, "is empty or longer than 131072 bytes"),
    ],
)
def test_an_unusable_report_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.txt").write_bytes(data)
    assert message in refusal("report", "@r.txt", tmp_path)


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_signal_is_channels_over_time_in_either_order(tmp_path: Path, dtype: type) -> None:
    channels = np.arange(30, dtype=dtype).reshape(3, 10)
    np.savez(tmp_path / "a.npz", wide=channels[None], tall=channels.T[None], flat=channels[:1])
    for key, expected in {"wide": channels, "tall": channels, "flat": channels[:1]}.items():
        signal = load("signal", f"a.npz#{key}/0", tmp_path)
        assert signal.dtype == np.float32
        assert signal.flags.c_contiguous
        np.testing.assert_array_equal(signal, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.array([1.0, np.nan, 2.0]), "NaN or infinite values; fill the gaps"),
        (np.array([1.0, 1e300, 2.0]), "NaN or infinite values"),
        (np.array(["a", "b"]), "holds <U1; store integers or"),
        (np.ones((4, 4)), r"shape \(4, 4\); store \[T\]"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.ones(0), r"shape \(0,\)"),
    ],
)
def test_a_row_that_is_no_signal_is_refused(tmp_path: Path, row: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=row[None])
    with pytest.raises(DataError, match=message):
        MODALITIES["signal"].read("a.npz#x/0", tmp_path)


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["a.npz", "a.npz#x", "a.npz#x/-1", "a.npz#x/1.0", "a.csv#x/0"])
def test_a_reference_of_another_form_is_refused(tmp_path: Path, cell: str) -> None:
    assert "write it as file.npz#key/row" in refusal("signal", cell, tmp_path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a.npz#x/2", r"shape \(2, 9\) and no row 2; rows count from 0"),
        ("a.npz#point/0", r"shape \(\) and no row 0"),
        ("a.npz#y/0", "holds no array 'y'; correct the key"),
        ("b.npz#x/0", "there is no file '.*b.npz'; correct the path"),
        ("pickled.npz#x/0", "cannot be read .*pickle.*plain numbers"),
        ("broken.npz#x/0", "cannot be read .*zip file"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(tmp_path: Path, cell: str, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 9)), point=1.0)
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "broken.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=message):
        MODALITIES["signal"].read(cell, tmp_path)


def test_an_array_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash.data.modalities._references._LARGEST_ARRAY_BYTES", 100)
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((2, 9)))
    assert "at most 100 are read; split it" in refusal("signal", "a.npz#x/0", tmp_path)


def test_a_relative_path_stays_in_the_folder_and_an_absolute_one_may_leave_it(
    tmp_path: Path,
) -> None:
    inside = tmp_path / "site"
    inside.mkdir()
    PIL.Image.fromarray(GREY).save(tmp_path / "s1.png")
    assert "write an absolute path instead" in refusal("image", "../s1.png", inside)
    assert load("image", str(tmp_path / "s1.png"), inside).shape == (6, 8)


@pytest.mark.parametrize("cell", ["missing.png", ".", "s1\0.png"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, cell: str) -> None:
    assert "correct the path" in refusal("image", cell, tmp_path)


def test_a_path_that_no_file_system_takes_is_refused_and_cut_short(tmp_path: Path) -> None:
    message = refusal("image", "x" * 5000 + ".png", tmp_path)
    assert "there is no file" in message
    assert len(message) < 500


def test_an_array_is_opened_once_for_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((5, 9)))
    opened: list[object] = []
    real = zipfile.ZipFile

    def counting(path: Path) -> zipfile.ZipFile:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(zipfile, "ZipFile", counting)
    for row in range(5):
        load("signal", f"a.npz#x/{row}", tmp_path)
    assert len(opened) == 1


def test_a_changed_array_file_is_read_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 9)))
    content = MODALITIES["signal"].read("a.npz#x/0", tmp_path)
    np.savez(tmp_path / "a.npz", x=np.full((1, 9), 7.0))
    os.utime(tmp_path / "a.npz", ns=(1, 1))
    assert content.load().max() == 7


def test_a_file_that_vanishes_later_is_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 9)))
    content = MODALITIES["signal"].read("a.npz#x/0", tmp_path)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DataError, match="restore the file"):
        content.load()


def test_loading_never_hands_out_the_shared_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 9), dtype=np.float32))
    content = MODALITIES["signal"].read("a.npz#x/0", tmp_path)
    content.load()[:] = 5
    assert content.load().max() == 1


DAMAGE = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=DAMAGE, cut=st.integers(0, 10_000), kind=st.sampled_from(["png", "jpg", "npz"]))
def test_a_damaged_file_loads_or_is_refused_and_nothing_else(
    tmp_path: Path, damage: list[tuple[int, int]], cut: int, kind: str
) -> None:
    path = tmp_path / f"s1.{kind}"
    if kind == "npz":
        np.savez_compressed(path, x=np.stack([GREY, GREY]))
    else:
        PIL.Image.fromarray(GREY).save(path)
    data = bytearray(path.read_bytes())
    for place, value in damage:
        data[place % len(data)] = value
    path.write_bytes(data[: cut if cut > 20 else None])
    cell = "s1.npz#x/0" if kind == "npz" else path.name
    try:
        image = load("image", cell, tmp_path)
    except DataError:
        return
    assert image.ndim == 2
    assert image.min() >= 0
    assert image.max() <= 1
