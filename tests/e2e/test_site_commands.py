"""A site's whole way from manifest to search, and what the coordinator can check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhash_client.cli import app as site_app
from fedhash_server.cli import app as coordinator_app
from fedhash_sim.cli import app as sim_app

ROOT = Path(__file__).parents[2]


def call(app: object, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr.replace("\n", " ")


@pytest.fixture
def release(finished: Path) -> Path:
    return finished / "cells" / "federated-seed-0" / "release"


@pytest.fixture
def site(tmp_path: Path, finished: Path) -> Path:
    call(sim_app, "phantom", tmp_path / "phantom", "--sites", 1, "--patients-per-site", 20)
    path = tmp_path / "site.yaml"
    path.write_text(
        """
name: hospital-a
agreement: study/agreement.yaml
manifest: phantom/site-0/manifest.csv
archive: archive.sqlite
handle_key: handle.key
"""
    )
    return path


def test_a_site_checks_indexes_and_searches(site: Path, release: Path) -> None:
    facts = json.loads(call(site_app, "check", site, "--json"))
    assert facts["usable studies"] >= 20
    assert facts["problems"] == []
    entries = json.loads(call(site_app, "index", site, "--release", release, "--json"))["entries"]
    assert entries == {"report": facts["usable studies"]}
    assert (site.parent / "handle.key").stat().st_mode & 0o777 == 0o600
    search = ("search", site, "--release", release, "--report", "Effusion.", "--json", "-k", 5)
    hits = json.loads(call(site_app, *search))
    assert len(hits) == 5
    assert hits == sorted(hits, key=lambda h: (h["distance"], -h["score"], h["handle"]))
    call(site_app, "index", site, "--release", release)
    assert json.loads(call(site_app, *search)) == hits, "the key stays, so do the handles"


def test_two_more_studies_change_no_other_answer(site: Path, release: Path) -> None:
    manifest = site.parent / "phantom" / "site-0" / "manifest.csv"
    call(site_app, "index", site, "--release", release)
    search = ("search", site, "--release", release, "--report", "Edema.", "--json", "-k", 100)
    before = json.loads(call(site_app, *search))
    lines = manifest.read_text().splitlines()
    header = lines[0].split(",")
    for number in (1, 2):
        row = dict.fromkeys(header, "")
        row |= {"study_id": f"new-{number}", "patient_id": "new", "positive": "edema"}
        row |= {"report": "Edema.", "consent": "yes"}
        lines.append(",".join(row[name] for name in header))
    manifest.write_text("\n".join(lines) + "\n")
    call(site_app, "index", site, "--release", release)
    after = json.loads(call(site_app, *search))
    handles = {hit["handle"] for hit in before}
    assert [hit for hit in after if hit["handle"] in handles] == before
    assert len(after) == len(before) + 2


def test_unusable_rows_are_named_and_the_old_index_stays(site: Path, release: Path) -> None:
    call(site_app, "index", site, "--release", release)
    kept = (site.parent / "archive.sqlite").read_bytes()
    manifest = site.parent / "phantom" / "site-0" / "manifest.csv"
    whole = manifest.read_text()
    manifest.write_text(whole.replace("cardiomegaly", "cardiomegally"))
    message = call(site_app, "check", site, code=1)
    assert "manifest.csv:" in message
    assert "cardiomegaly" in message, "the nearest valid finding is named"
    manifest.write_text("study_id;patient\n1;2\n")
    assert "manifest.csv" in call(site_app, "index", site, "--release", release, code=1)
    assert (site.parent / "archive.sqlite").read_bytes() == kept


def test_a_damaged_release_or_another_agreement_is_refused(site: Path, release: Path) -> None:
    model = release / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "altered" in call(site_app, "index", site, "--release", release, code=1)
    assert "altered" in call(coordinator_app, "release", release, code=1)
    model.write_bytes(whole)
    agreement = site.parent / "study" / "agreement.yaml"
    agreement.write_text(agreement.read_text().replace("smallest_cohort: 3", "smallest_cohort: 4"))
    assert "this site signed" in call(site_app, "index", site, "--release", release, code=1)
    assert not (site.parent / "archive.sqlite").exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda key: key.write_bytes(b"short"), "has 5 bytes"),
        (lambda key: (key.write_bytes(bytes(32)), key.chmod(0o644)), "chmod 600"),
    ],
)
def test_a_bad_handle_key_is_refused(
    site: Path, release: Path, prepare: object, message: str
) -> None:
    key = site.parent / "handle.key"
    key.touch(mode=0o600)
    prepare(key)
    assert message in call(site_app, "index", site, "--release", release, code=1)


def test_searching_needs_one_example_and_an_index(site: Path, release: Path) -> None:
    wanted = ("search", site, "--release", release)
    assert "exactly one" in call(site_app, *wanted, code=1)
    assert "fedhash-site index" in call(site_app, *wanted, "--report", "x", code=1)
    call(site_app, "index", site, "--release", release)
    assert "missing.png" in call(site_app, *wanted, "--image", "missing.png", code=1)


def test_the_coordinator_checks_agreement_round_and_release(release: Path) -> None:
    agreement = ROOT / "configs" / "agreement" / "phantom.yaml"
    round_file = ROOT / "configs" / "round" / "phantom.yaml"
    facts = json.loads(call(coordinator_app, "check", agreement, "--round", round_file, "--json"))
    assert facts["anchors apart (bits)"] == "32 to 32"
    assert facts["model parameters"] > 0
    shown = json.loads(call(coordinator_app, "release", release, "--json"))
    assert shown["towers"] == {"report": "report_ngrams"}
    assert set(shown["metrics"]) == {"map report -> report"}


def test_a_round_that_the_agreement_forbids_is_told_at_once(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "round" / "phantom.yaml").read_text()
    wrong = tmp_path / "round.yaml"
    wrong.write_text(text.replace("local_steps: 16", "local_steps: 100000"))
    agreement = ROOT / "configs" / "agreement" / "ptbxl_subset.yaml"
    message = call(coordinator_app, "check", agreement, "--round", wrong, code=1)
    assert "largest_local_steps is 1000" in message
    assert "'image'" in message
