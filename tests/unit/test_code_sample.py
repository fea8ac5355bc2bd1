"""The codes that a cell keeps for its report, and the plane they are drawn on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_federation import AGREEMENT, MODEL, SITES, site_studies

from fedhash.codes import pack_signs
from fedhash.errors import DataError
from fedhash.models.hash_model import HashModel, build_model, encode_studies
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash_sim.code_plots import principal_plane
from fedhash_sim.code_sample import CodeSample


def model_of(seed: int) -> HashModel:
    return build_model(MODEL, AGREEMENT.code_bits, seed=seed)


def some_studies(times: int) -> PreparedStudies:
    """The 12 small studies over and over; every third has no report."""
    studies = [study for site in SITES for study in site_studies(site)]
    prepared = prepare_studies(model_of(0), studies, AGREEMENT.findings)
    prepared = prepared.select(list(range(len(prepared))) * times)
    return replace(prepared, present={"report": torch.arange(len(prepared)) % 3 > 0})


def test_a_sample_is_of_the_model_and_of_the_seed(tmp_path: Path) -> None:
    queries, database = some_studies(50), some_studies(100)
    sample = CodeSample.draw(model_of(1), queries, database, seed=3)
    assert (len(sample.queries), sample.queries.of) == (500, 600)
    assert (len(sample.database), sample.database.of) == (1000, 1200)
    again = CodeSample.draw(model_of(2), queries, database, seed=3)
    np.testing.assert_array_equal(again.database.labels, sample.database.labels)
    np.testing.assert_array_equal(
        again.database.present["report"], sample.database.present["report"]
    )
    other = CodeSample.draw(model_of(1), queries, database, seed=4)
    assert not np.array_equal(other.database.labels, sample.database.labels)

    sample.save(tmp_path / "codes.safetensors")
    read = CodeSample.load(tmp_path / "codes.safetensors")
    for kept, written in ((read.queries, sample.queries), (read.database, sample.database)):
        assert kept.of == written.of
        np.testing.assert_array_equal(kept.labels, written.labels)
        np.testing.assert_array_equal(kept.codes["report"], written.codes["report"])
        codes, labels = kept.having("report")
        assert len(codes) == len(labels) == written.present["report"].sum()


def test_a_small_study_is_sampled_as_a_whole() -> None:
    studies = some_studies(1)
    database = CodeSample.draw(model_of(1), studies, studies, seed=0).database
    np.testing.assert_array_equal(database.labels, studies.labels.numpy())
    codes = pack_signs(encode_studies(model_of(1), studies, "report"))
    np.testing.assert_array_equal(database.codes["report"], codes)


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_sample_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "codes.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"codes\.safetensors holds no sample of codes"):
        CodeSample.load(tmp_path / "codes.safetensors")


def test_the_plane_is_that_of_the_two_clusters() -> None:
    """Bits 0 to 5 tell two clusters apart, bit 6 splits one of them; bit 7 is equal for all."""
    codes = np.ones((8, 8), np.int8)
    codes[4:, :6] = -1
    codes[6:, 6] = -1
    mean, plane, shares = principal_plane(codes)
    points = (codes - mean) @ plane.T
    assert len({tuple(np.round(point, 9)) for point in points}) == 3
    assert shares.sum() == pytest.approx(1)
    assert plane[:, 7] == pytest.approx([0, 0])


@given(
    arrays.arrays(
        np.int8, st.tuples(st.integers(2, 12), st.just(16)), elements=st.sampled_from([-1, 1])
    )
)
def test_the_plane_is_that_of_the_singular_vectors(codes: np.ndarray) -> None:
    mean, plane, shares = principal_plane(codes)
    values = np.linalg.svd(codes - codes.mean(axis=0), compute_uv=False)
    lengths = np.linalg.norm((codes - mean) @ plane.T, axis=0)
    np.testing.assert_allclose(lengths, values[:2], atol=1e-6)
    if values.any():
        np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum(), atol=1e-9)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-9)
    assert (plane.max(axis=1) >= np.abs(plane).max(axis=1)).all()  # the sign convention
