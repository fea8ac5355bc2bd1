"""`fedhash-site budget`: spent, left, and what a round would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from privacy_events import distributed, poisson, release
from typer.testing import CliRunner

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.privacy import Ledger, epsilon
from fedhash_client.cli import app
from fedhash_client.privacy_budget import limits_of
from fedhash_client.settings import SiteSettings

ROOT = Path(__file__).parents[2]
PATIENTS = 320
ROUND = "model: {towers: {report: {name: report_ngrams}}}\nrounds: 3\nlearning: {%s}\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    rows = [f"s{i},p{i},Normal.,no_finding,yes" for i in range(PATIENTS)]
    rows += [f"t{i},p{i},Normal.,no_finding,yes" for i in range(50)]  # second studies
    rows += ["u,q,Normal.,no_finding,no"]
    header = "study_id,patient_id,report,positive,consent"
    (tmp_path / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "round.yaml").write_text(ROUND % "batch_patients: 32, local_steps: 16")
    agreement = (ROOT / "configs" / "agreement" / "phantom.yaml").read_text()
    (tmp_path / "agreement.yaml").write_text(agreement)
    path = tmp_path / "site.yaml"
    path.write_text(
        """
name: hospital-a
agreement: agreement.yaml
manifest: manifest.csv
archive: archive.sqlite
handle_key: handle.key
privacy:
  epsilon_cap: 6.0
  delta: 1.0e-5
  ledger: kept/privacy.sqlite
"""
    )
    return path


def call(site: Path, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["budget", str(site), *map(str, arguments)])
    assert result.exit_code == code, result.output + result.stderr
    return " ".join((result.stdout + result.stderr).split())


def facts(site: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(call(site, *arguments, "--json", code=code))


def opened(site: Path) -> Ledger:
    settings = read_settings(site, SiteSettings)
    assert settings.privacy is not None
    limits = limits_of(settings.privacy, read_settings(settings.agreement, Agreement))
    return Ledger(settings.privacy.ledger, list(limits.values()))


def test_before_the_first_private_step(site: Path) -> None:
    assert "no ledger yet, nothing was spent; the first private step makes it" in call(site)
    found = facts(site)
    assert (found["exists"], found["entries"], found["anchor"]) == (False, 0, None)
    assert [(cap["of"], cap["left"]) for cap in found["caps"]] == [("the site", 6.0)]
    assert not (site.parent / "kept").exists()


def test_what_was_spent_in_groups_and_under_both_caps(site: Path) -> None:
    with (site.parent / "agreement.yaml").open("a") as agreement:
        agreement.write("privacy: {epsilon_cap: 5.0, delta: 1.0e-6}\n")
    events = [
        *(poisson(1.5, 0.08, 20, round_number=number) for number in (1, 2)),
        *(release(20.0, purpose="margin statistics", round_number=number) for number in (1, 2)),
        distributed(9.0, run_id="run-8"),
    ]
    with opened(site) as ledger:
        for event in events:
            entry = ledger.reserve(event)
    found = facts(site)
    assert (found["entries"], found["anchor"]) == (5, f"5:{entry.hash}")
    assert [(cap["of"], cap["spent"]["together"]) for cap in found["caps"]] == [
        ("the site", epsilon(events, 1e-5)),
        ("the agreement", epsilon(events, 1e-6)),
    ]
    assert found["caps"][1]["left"] == 5.0 - epsilon(events, 1e-6)
    assert found["caps"][0]["spent"]["own_noise"] == epsilon(events[:4], 1e-5)
    assert found["caps"][0]["spent"]["shared_noise"] == epsilon(events[4:], 1e-5)
    groups = [(g["purpose"], g["kind"], g["steps"], g["entries"]) for g in found["events"]]
    assert groups == [
        ("model update", "poisson_gaussian_steps", 40, 2),
        ("margin statistics", "gaussian_release", 2, 2),
        ("model update", "distributed_gaussian_step", 1, 1),
    ]
    text = call(site)
    assert "5 entries, verified; anchor 5:" in text
    assert "at most 2 other sites of a sum work together" in text


def test_what_the_next_round_costs_is_what_the_ledger_then_takes(site: Path) -> None:
    with opened(site) as ledger:
        ledger.reserve(poisson(1.5, 0.1, 16))
    options = ("--round", site.parent / "round.yaml", "--noise-multiplier", 1.5)
    planned = facts(site, *options)["next_round"]
    assert (planned["sampling_rate"], planned["steps"]) == (0.1, 16), "32 of the 320 who consent"
    together = epsilon([poisson(1.5, 0.1, 32)], 1e-5)
    (after,) = planned["after"]
    assert (after["together"], after["fits"], planned["fits"]) == (together, True, True)
    assert after["cost"] == together - epsilon([poisson(1.5, 0.1, 16)], 1e-5)
    assert planned["rounds_left"] == planned["steps_left"] // 16 > 0
    assert "it fits" in call(site, *options)
    with opened(site) as ledger:
        for _ in range(planned["rounds_left"]):
            ledger.reserve(poisson(1.5, 0.1, 16))
    assert facts(site)["caps"][0]["spent"]["together"] <= 6.0


def test_a_round_that_does_not_fit_is_told_by_the_status(site: Path) -> None:
    options = ("--round", site.parent / "round.yaml", "--noise-multiplier", 0.4)
    assert "it is refused" in call(site, *options, code=1)
    assert facts(site, *options, code=1)["next_round"]["fits"] is False


def test_a_batch_of_all_patients_takes_all(site: Path) -> None:
    (site.parent / "round.yaml").write_text(
        ROUND % "batch_patients: 1000, local_steps: null, local_epochs: 2"
    )
    found = facts(site, "--round", site.parent / "round.yaml", "--noise-multiplier", 9)
    assert (found["next_round"]["sampling_rate"], found["next_round"]["steps"]) == (1.0, 2)


@pytest.mark.parametrize("only", [("--round", "round.yaml"), ("--noise-multiplier", "1")])
def test_round_and_noise_belong_together(site: Path, only: tuple[str, str]) -> None:
    assert "give both or neither" in call(site, *only, code=1)


def test_noise_out_of_range(site: Path) -> None:
    options = ("--round", site.parent / "round.yaml", "--noise-multiplier", "nan")
    assert "the noise multiplier is nan, expected" in call(site, *options, code=1)


def test_a_site_without_a_cap_is_told_where_to_write_it(site: Path) -> None:
    site.write_text(site.read_text().partition("privacy:")[0])
    message = call(site, code=1)
    assert "there is no section privacy; add epsilon_cap, delta and ledger" in message


def test_a_ledger_that_does_not_verify_ends_with_status_1(site: Path) -> None:
    with opened(site) as ledger:
        ledger.reserve(release(9.0))
    (site.parent / "kept" / "privacy.sqlite").unlink()
    assert "is gone, and" in call(site, code=1)
