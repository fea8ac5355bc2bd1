"""A site's whole way from manifest to search, and what the coordinator can check."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhash.errors import StorageError
from fedhash_client.archive_index import read_handle_key
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
    hits = json.loads(call(site_app, *search))["hits"]
    assert len(hits) == 5
    assert hits == sorted(hits, key=lambda h: (h["distance"], -h["score"], h["handle"]))
    call(site_app, "index", site, "--release", release)
    assert json.loads(call(site_app, *search))["hits"] == hits, "the key stays, so do the handles"


def test_the_folder_of_archive_and_key_is_made_for_its_owner_alone(
    site: Path, release: Path
) -> None:
    whole = site.read_text()
    site.write_text(whole.replace(": archive.", ": a/archive.").replace(": handle.", ": a/handle."))
    call(site_app, "index", site, "--release", release)
    assert (site.parent / "a").stat().st_mode & 0o777 == 0o700
    assert {each.name for each in (site.parent / "a").iterdir()} >= {"archive.sqlite", "handle.key"}


def test_a_modality_that_the_release_lacks_is_told(site: Path, release: Path) -> None:
    call(site_app, "index", site, "--release", release)
    wanted = ("search", site, "--release", release, "--report", "Effusion.", "--target", "signal")
    message = call(site_app, *wanted, code=1)
    assert "there is no modality 'signal' to search in; the release has report" in message


def test_two_more_studies_change_no_other_answer(site: Path, release: Path) -> None:
    manifest = site.parent / "phantom" / "site-0" / "manifest.csv"
    call(site_app, "index", site, "--release", release)
    search = ("search", site, "--release", release, "--report", "Edema.", "--json", "-k", 100)
    before = json.loads(call(site_app, *search))["hits"]
    lines = manifest.read_text().splitlines()
    header = lines[0].split(",")
    for number in (1, 2):
        row = dict.fromkeys(header, "")
        row |= {"study_id": f"new-{number}", "patient_id": "new", "positive": "edema"}
        row |= {"report": "Edema.", "consent": "yes"}
        lines.append(",".join(row[name] for name in header))
    manifest.write_text("\n".join(lines) + "\n")
    call(site_app, "index", site, "--release", release)
    after = json.loads(call(site_app, *search))["hits"]
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
    assert "altered" in call(coordinator_app, "release", "verify", release, code=1)
    model.write_bytes(whole)
    agreement = site.parent / "study" / "agreement.yaml"
    agreement.write_text(agreement.read_text() + "\nancestor_weight: 0.25\n")
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", 101], "the agreement allows 100; lower k"),
        (["--target", "video"], "'video'; the agreement knows image, report"),
        (["--kappa", "nan"], "kappa is nan; expected -1 to 1"),
        (["--where", "sex"], "'sex' is not NAME=VALUE"),
        (["--image", "missing.png"], "exactly one"),
    ],
)
def test_arguments_are_checked_before_release_and_archive(
    site: Path, arguments: list[object], message: str
) -> None:
    (site.parent / "archive.sqlite").write_bytes(b"no archive")
    wanted = ("search", site, "--release", site.parent / "nowhere", "--report", "Effusion.")
    assert message in call(site_app, *wanted, *arguments, code=1)


def test_filtering_by_an_attribute_that_no_study_has_is_told(site: Path, release: Path) -> None:
    call(site_app, "index", site, "--release", release)
    wanted = ("search", site, "--release", release, "--report", "Effusion.")
    found = json.loads(call(site_app, *wanted, "--where", "sex=nobody", "--json"))
    assert found["source"] == "release"
    assert (found["cut_to_bits"], found["hits"]) == (None, [])
    message = call(site_app, *wanted, "--where", "gender=female", code=1)
    assert re.search("no study .* attribute 'gender'; it knows: .*scanner.*, sex, ", message)


def test_a_site_bounds_the_radius_of_its_answers_in_its_own_file(site: Path, release: Path) -> None:
    call(site_app, "index", site, "--release", release)
    wanted = ("search", site, "--release", release, "--report", "Large effusion.", "-k", 100)
    broad = json.loads(call(site_app, *wanted, "--json"))
    assert broad["cut_to_bits"] is None
    assert max(hit["distance"] for hit in broad["hits"]) > 8
    whole = site.read_text()
    site.write_text(f"{whole}smallest_kappa: 0.5\n")
    near = [hit for hit in broad["hits"] if hit["distance"] <= 8]
    for kappa in ([], ["--kappa", -1]):
        found = json.loads(call(site_app, *wanted, *kappa, "--json"))
        assert (found["cut_to_bits"], found["hits"]) == (8, near)
    shown = call(site_app, *wanted)
    assert "cut by the site's smallest_kappa (0.5): hits up to distance 8 only" in shown
    assert "cut by" not in call(site_app, *wanted, "--kappa", 0.5)
    for wrong in ("1.5", ".nan", "broad"):
        site.write_text(f"{whole}smallest_kappa: {wrong}\n")
        assert "smallest_kappa" in call(site_app, *wanted, code=1)


@pytest.mark.parametrize("consent", [None, "no"])
def test_a_manifest_without_a_usable_study_fails_the_check(site: Path, consent: str | None) -> None:
    manifest = site.parent / "phantom" / "site-0" / "manifest.csv"
    header, row = manifest.read_text().splitlines()[:2]
    rows = [] if consent is None else [row.replace(",yes,", f",{consent},")]
    manifest.write_text("\n".join([header, *rows]) + "\n")
    message = call(site_app, "check", site, code=1)
    assert f"{manifest}: no row is a usable study with consent" in message
    shown = CliRunner().invoke(site_app, ["check", str(site), "--json"])
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["problems"][0]["line"] is None


def test_indexing_removes_what_a_killed_one_left_and_nothing_else(
    site: Path, release: Path
) -> None:
    leftovers = [site.parent / f"archive.sqlite.new{end}" for end in ("", "-wal", "-journal")]
    others = [site.parent / f"archive.sqlite.new{end}" for end in ("est", ".bak", "-walk")]
    for path in leftovers + others:
        path.write_bytes(b"something")
    call(site_app, "index", site, "--release", release)
    assert not any(path.exists() for path in leftovers)
    assert all(path.read_bytes() == b"something" for path in others)


def test_what_the_operating_system_refuses_is_told_with_its_path(site: Path, release: Path) -> None:
    whole = site.read_text()
    site.write_text(whole.replace("archive.sqlite", "site.yaml/archive.sqlite"))
    message = call(site_app, "index", site, "--release", release, code=1)
    assert f"{site} cannot be used (File exists); check rights and disk space" in message
    site.write_text(whole.replace("handle.key", "site.yaml/handle.key"))
    message = call(site_app, "index", site, "--release", release, code=1)
    assert f"{site} cannot be used (File exists); check rights and disk space" in message
    site.write_text(whole.replace("archive.sqlite", "a" * 300))
    wanted = ("search", site, "--release", release, "--report", "Effusion.")
    assert "cannot be used (File name too long)" in call(site_app, *wanted, code=1)


def test_a_full_disk_leaves_no_part_of_a_handle_key(tmp_path: Path) -> None:
    key = tmp_path / "handle.key"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"{key} cannot be used .*File too large"):
            read_handle_key(key)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not key.exists()
    assert read_handle_key(key) == read_handle_key(key)


def test_the_coordinator_checks_agreement_round_and_release(release: Path) -> None:
    agreement = ROOT / "configs" / "agreement" / "phantom.yaml"
    round_file = ROOT / "configs" / "round" / "phantom.yaml"
    facts = json.loads(call(coordinator_app, "check", agreement, "--round", round_file, "--json"))
    assert facts["anchors apart (bits)"] == "32 to 32"
    assert facts["model parameters"] > 0
    shown = json.loads(call(coordinator_app, "release", "verify", release, "--json"))
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


def test_mistakes_in_agreement_and_round_are_told_together(tmp_path: Path) -> None:
    agreement, round_file = tmp_path / "agreement.yaml", tmp_path / "round.yaml"
    whole = (ROOT / "configs" / "agreement" / "phantom.yaml").read_text()
    rounds = (ROOT / "configs" / "round" / "phantom_hog.yaml").read_text()
    agreement.write_text(whole + "smalest_cohort: 2\n")
    round_file.write_text(rounds + "roundz: 2\n")
    message = call(coordinator_app, "check", agreement, "--round", round_file, code=1)
    assert f"{agreement}:{len(whole.splitlines()) + 1}: unknown key" in message
    assert f"{round_file}:{len(rounds.splitlines()) + 1}: unknown key" in message
    agreement.write_text(whole)
    round_file.write_text(rounds.replace("image_hog", "image_hogg"))
    line = 1 + next(i for i, each in enumerate(rounds.splitlines()) if "image_hog" in each)
    message = call(coordinator_app, "check", agreement, "--round", round_file, code=1)
    assert f"{round_file}:{line}: the tower 'image_hogg' was asked for" in message
    assert 'did you mean "image_hog"?' in message


def public_key(path: Path) -> str:
    return call(site_app, "identity", path).strip()


def test_an_identity_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    key = tmp_path / "identity.pem"
    first = json.loads(call(site_app, "identity", key, "--json"))
    assert (first["made"], len(first["public_key"])) == (True, 64)
    assert key.stat().st_mode & 0o777 == 0o600
    assert public_key(key) == first["public_key"]
    key.chmod(0o644)
    assert "chmod 600" in call(site_app, "identity", key, code=1)


def test_the_coordinator_is_told_what_shared_noise_costs_on_the_network() -> None:
    agreement = ROOT / "configs" / "agreement" / "phantom_private.yaml"
    rounds = ROOT / "configs" / "round"
    check = ("check", agreement, "--round", rounds / "phantom_distributed.yaml")
    facts = json.loads(call(coordinator_app, *check, "--json"))
    assert facts["privacy modes"] == "site, distributed"
    assert facts["steps a round"].startswith("1, over all patients")
    sent = 4 * facts["model parameters"]  # the ring's words have 32 bits as well
    assert sent > 3_000_000
    assert facts["bytes of the model to a site, a round"] == sent
    assert facts["bytes of the sum from a site, a round"] == sent
    own = ("check", agreement, "--round", rounds / "phantom_private.yaml")
    assert "steps a round" not in json.loads(call(coordinator_app, *own, "--json"))


def test_the_coordinator_refuses_a_mode_that_was_not_agreed_upon(tmp_path: Path) -> None:
    agreement = tmp_path / "agreement.yaml"
    agreed = (ROOT / "configs" / "agreement" / "phantom_private.yaml").read_text()
    agreement.write_text(agreed.replace("modes: [site, distributed]", "modes: [site]"))
    round_file = ROOT / "configs" / "round" / "phantom_distributed.yaml"
    message = call(coordinator_app, "check", agreement, "--round", round_file, code=1)
    assert (
        "phantom_distributed.yaml:18: privacy.mode is distributed, and the agreement's" in message
    )
    assert (
        json.loads(call(coordinator_app, "check", agreement, "--json"))["privacy modes"] == "site"
    )


def test_the_coordinator_is_told_what_a_roster_makes_of_secure_rounds(tmp_path: Path) -> None:
    round_file = ROOT / "configs" / "round" / "phantom.yaml"
    agreement = tmp_path / "agreement.yaml"
    check = ("check", agreement, "--round", round_file)

    def agree(sites: int, terms: str) -> None:
        roster = "".join(f"  site-{i}: '{public_key(tmp_path / str(i))}'\n" for i in range(sites))
        whole = (ROOT / "configs" / "agreement" / "phantom.yaml").read_text()
        agreement.write_text(f"{whole}sites:\n{roster}secure_aggregation: {{{terms}}}\n")

    agree(3, "")
    facts = json.loads(call(coordinator_app, *check, "--json"))
    assert (facts["sites"], facts["warnings"]) == (3, [])
    blocks = facts["rounding sd, sites of weight 1"]
    assert blocks == {"update": 4.03e-06, "control": 4.03e-05, "loss": 0.00403}
    assert facts["rounding sd, sites of weight 10000"]["update"] == 4.03e-10
    agree(5, "ring_bits: 16, largest_dropout_share: 0.3, largest_weight: 1000")
    facts = json.loads(call(coordinator_app, *check, "--json"))
    assert [each[:16] for each in facts["warnings"]] == ["ring_bits is 16:", "no graph joins 4"]
    result = CliRunner().invoke(coordinator_app, [str(each) for each in check])
    assert "rounding sd, sites of weight 1:" in result.stdout
    assert [f"warning: {each}" for each in facts["warnings"]] == result.stderr.splitlines()
    agree(4, "largest_dropout_share: 0.3")
    line = agreement.read_text().splitlines().index("sites:") + 1
    message = call(coordinator_app, *check, code=1)
    assert f"{agreement}:{line}: sites: no graph of 4 sites bears" in message
    agree(2, "")
    message = call(coordinator_app, *check, code=1)
    assert "sites: 2 sites are fewer than the agreement's smallest_cohort, 3" in message


@pytest.mark.parametrize("on_path", [True, False])
def test_a_bundle_is_written_with_the_command_that_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
) -> None:
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(beside) if on_path else str(tmp_path))
    configs = ROOT / "configs"
    agreement = tmp_path / "agreement.yaml"
    roster = "".join(f"  hospital-{each}: {public_key(tmp_path / each)}\n" for each in "abc")
    agreement.write_text((configs / "agreement" / "phantom.yaml").read_text() + f"sites:\n{roster}")
    out = tmp_path / "an app"
    arguments = (
        *("bundle", "--agreement", agreement),
        *("--round", configs / "round" / "phantom.yaml"),
        *("--run", configs / "run" / "example.yaml", "--out", out, "--json"),
    )
    facts = json.loads(call(coordinator_app, *arguments))
    switches, start = shlex.split(facts["start"])[:3], shlex.split(facts["start"])[3:]
    assert switches == [
        "FLWR_TELEMETRY_ENABLED=0",
        "FLWR_DISABLE_UPDATE_CHECK=1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    ]
    assert start[1:4] == ["run", str(out), "CONNECTION"]
    assert start[0] == ("flwr" if on_path else str(beside / "flwr"))
    assert shutil.which(start[0])
    assert facts["warnings"] == []
    assert json.loads(call(coordinator_app, *arguments)) == facts, "its own folder may be replaced"
    assert (out / "configs" / "run.yaml").read_bytes() == (
        configs / "run" / "example.yaml"
    ).read_bytes()
    (out / "notes.txt").write_text("mine")
    assert "neither empty nor an app" in call(coordinator_app, *arguments, code=1)
    assert (out / "notes.txt").read_text() == "mine"
    agreement.write_text(agreement.read_text() + "secure_aggregation: {ring_bits: 16}\n")
    elsewhere = [tmp_path / "other app" if each == out else each for each in arguments]
    (warning,) = json.loads(call(coordinator_app, *elsewhere))["warnings"]
    assert warning.startswith("ring_bits is 16: with 3 sites")
    in_a_file = [tmp_path / "file" / "app" if each == out else each for each in arguments]
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'}" in call(coordinator_app, *in_a_file, code=1)
