"""`fedhash-site budget`: spent, left, and what a round would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from privacy_events import distributed, full_batch, poisson, release
from typer.testing import CliRunner

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.privacy import Ledger, epsilon
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.reservation import reserve_model_update
from fedhash_client.cli import app
from fedhash_client.privacy_budget import limits_of
from fedhash_client.settings import SiteSettings

ROOT = Path(__file__).parents[2]
TERMS = "privacy: {epsilon_cap: 5.0, delta: 1.0e-6}\n"
ROUND = """
model: {towers: {report: {name: report_ngrams}}}
rounds: 3
learning: {local_steps: 16}
weighting: uniform
privacy: {mode: site, clip_norm: 1.0, noise_multiplier: 1.5, sampling_rate: 0.1}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "round.yaml").write_text(ROUND)
    agreement = (ROOT / "configs" / "agreement" / "phantom.yaml").read_text()
    (tmp_path / "agreement.yaml").write_text(agreement + TERMS)
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
    assert [(cap["of"], cap["left"]) for cap in found["caps"]] == [
        ("the site", 6.0),
        ("the agreement", 5.0),
    ]
    assert not (site.parent / "kept").exists()


def test_what_was_spent_in_groups_and_under_both_caps(site: Path) -> None:
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


def with_round(site: Path, old: str, new: str) -> tuple[str, Path]:
    """The options that name a changed round file."""
    path = site.parent / "round.yaml"
    assert old in ROUND
    path.write_text(ROUND.replace(old, new))
    return "--round", path


def test_what_the_next_round_costs_is_what_the_ledger_then_takes(site: Path) -> None:
    with opened(site) as ledger:
        ledger.reserve(poisson(1.5, 0.1, 16))
    options = ("--round", site.parent / "round.yaml")
    planned = facts(site, *options)["next_round"]
    assert (planned["noise_multiplier"], planned["sampling_rate"], planned["steps"]) == (
        (1.5, 0.1, 16)
    )
    together = [epsilon([poisson(1.5, 0.1, 32)], delta) for delta in (1e-5, 1e-6)]
    assert [after["together"] for after in planned["after"]] == together
    assert planned["fits"]
    assert planned["after"][0]["cost"] == together[0] - epsilon([poisson(1.5, 0.1, 16)], 1e-5)
    assert planned["rounds_left"] == planned["steps_left"] // 16 > 0
    assert "it fits" in call(site, *options)
    steps = PrivateSteps(noise_multiplier=1.5, sampling_rate=0.1, steps=16)
    settings = read_settings(site, SiteSettings)
    assert settings.privacy is not None
    terms = read_settings(settings.agreement, Agreement).privacy
    assert terms is not None
    for number in range(planned["rounds_left"]):
        reserve_model_update(
            *(settings.privacy.ledger, [settings.privacy, terms], "0f" * 32, "run-8", number + 1),
            steps,
        )
    assert facts(site)["caps"][1]["spent"]["together"] <= 5.0


def test_a_round_with_statistics_costs_them_too(site: Path) -> None:
    """And so many rounds as are said to be left surely fit, with every release of the run."""
    schedule = "margin_schedule: {every_rounds: 2, noise_multiplier: 6.0}\nweighting: uniform"
    options = with_round(site, "weighting: uniform", schedule)
    planned = facts(site, *options)["next_round"]
    both = [poisson(1.5, 0.1, 16), release(6.0)]
    assert [after["together"] for after in planned["after"]] == [
        epsilon(both, delta) for delta in (1e-5, 1e-6)
    ]
    assert (planned["statistics_noise_multiplier"], planned["statistics_releases"]) == (6.0, 1)
    assert (
        planned["steps_left"] < facts(site, *with_round(site, "", ""))["next_round"]["steps_left"]
    )
    shown = call(site, *with_round(site, "weighting: uniform", schedule))
    assert "q 0.1; margin statistics, sigma 6): " in shown
    assert "beside 1 releases of margin statistics" in shown
    with opened(site) as ledger:
        ledger.reserve_together([poisson(1.5, 0.1, planned["steps_left"]), release(6.0)])


def test_a_round_that_does_not_fit_is_told_by_the_status(site: Path) -> None:
    options = with_round(site, "noise_multiplier: 1.5", "noise_multiplier: 0.4")
    assert "it is refused" in call(site, *options, code=1)
    assert facts(site, *options, code=1)["next_round"]["fits"] is False


def test_steps_over_all_patients_are_no_sampled_steps(site: Path) -> None:
    options = with_round(site, "1.5, sampling_rate: 0.1", "9.0, sampling_rate: 1.0")
    found = facts(site, *options)["next_round"]
    assert found["sampling_rate"] == 1.0
    assert found["after"][0]["together"] == epsilon([full_batch(9.0, 16)], 1e-5)


SHARED = """
model: {towers: {report: {name: report_ngrams}}}
rounds: 3
learning: {local_steps: 1, optimiser: sgd, weight_decay: 0, control_variates: false}
weighting: uniform
privacy: {mode: distributed, clip_norm: 1.0, noise_multiplier: 4.0, expected_patients: 900}
"""


def test_a_round_of_shared_noise_is_planned_where_the_site_allows_it(site: Path) -> None:
    path = site.parent / "round.yaml"
    path.write_text(SHARED)
    refused = call(site, "--round", path, code=1)
    assert "privacy.mode is distributed, and the agreement's privacy.modes has site" in refused
    terms = site.parent / "agreement.yaml"
    terms.write_text(terms.read_text().replace("1.0e-6}", "1.0e-6, modes: [site, distributed]}"))
    refused = call(site, "--round", path, code=1)
    assert "round.yaml:6: privacy.mode is distributed, and this site's own file allows" in refused
    site.write_text(site.read_text() + "  modes: [site, distributed]\n")
    with opened(site) as ledger:
        ledger.reserve(full_batch(9.0, 2))
    found = facts(site, "--round", path)["next_round"]
    assert (found["mode"], found["steps"], found["sampling_rate"]) == ("distributed", 1, 1.0)
    assert found["after"][0]["together"] == epsilon([full_batch(9.0, 2), full_batch(4.0)], 1e-5)
    assert found["rounds_left"] == found["steps_left"] > 0
    assert "at most 0.1 of the other sites of a sum, and one where that is none," in found["trust"]
    text = call(site, "--round", path)
    assert "its noise is added together by the sites, so this holds if secure aggregation" in text
    path.write_text(ROUND)
    own = facts(site, "--round", path)["next_round"]
    assert own["trust"].startswith("none: the site's own noise protects")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{mode: site,", "{mode: sites,", 'round.yaml:6: "privacy.mode" must be'),
        ("weighting: uniform", "weighting: patients", "round.yaml:5: with privacy.mode site"),
        ("local_steps: 16", "local_steps: null, local_epochs: 1", "round.yaml:4: with privacy"),
        (ROUND[ROUND.index("privacy") :], "", "privacy.mode is none: without noise"),
    ],
)
def test_a_round_that_the_site_would_not_train_has_no_cost(
    site: Path, old: str, new: str, problem: str
) -> None:
    assert problem in call(site, *with_round(site, old, new), code=1)


def test_a_private_round_needs_the_agreement_s_terms(site: Path) -> None:
    agreement = site.parent / "agreement.yaml"
    agreement.write_text(agreement.read_text().removesuffix(TERMS))
    message = call(site, "--round", site.parent / "round.yaml", code=1)
    assert "round.yaml:6: privacy.mode is site, and the agreement has no section privacy" in message


def test_a_site_without_a_cap_is_told_where_to_write_it(site: Path) -> None:
    site.write_text(site.read_text().partition("privacy:")[0])
    message = call(site, code=1)
    assert "there is no section privacy; add epsilon_cap, delta and ledger" in message


def test_a_ledger_that_does_not_verify_ends_with_status_1(site: Path) -> None:
    with opened(site) as ledger:
        ledger.reserve(release(9.0))
    (site.parent / "kept" / "privacy.sqlite").unlink()
    assert "is gone, and" in call(site, code=1)
