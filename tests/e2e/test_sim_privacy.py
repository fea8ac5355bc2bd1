"""Private studies: what they repeat, what they spend, and who runs out of budget."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path

import pytest
from privacy_events import full_batch, poisson
from sim_command import run, run_all

from fedhash.privacy import epsilon
from fedhash.privacy.accountant import shared_trust
from fedhash.registry.release import load_release
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.results import read_privacy, read_rounds, read_sums

DELTA = 1e-5
ROUND_STEPS = poisson(0.5, 0.5, 2)  # of the round file in conftest.py under `privately`


def privately(cap: float = 1000.0) -> tuple[str, ...]:
    """Changes of the small study."""
    privacy = "{mode: site, clip_norm: 1.0, noise_multiplier: 0.5, sampling_rate: 0.5}"
    return (
        *("--set", f"round.privacy={privacy}", "--set", "seeds=[0]"),
        *("--set", f"agreement.privacy={{epsilon_cap: {cap}, delta: {DELTA}}}"),
    )


def page_of(run_folder: Path) -> str:
    return " ".join((run_folder / "report.html").read_text().split())


def privacy_rows(page: str) -> list[tuple[str, ...]]:
    """The rows of the report's section on privacy."""
    (section,) = re.findall(r"<h2>Privacy</h2>(.*?)</section>", page)
    return [
        tuple(unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row))
        for row in re.findall(r"<tr>(.*?)</tr>", section)
    ]


def test_a_private_study_repeats_and_says_what_it_spent(study_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_all(study_file, tmp_path / name, *privately(), "--set", "methods=[federated]")
    for table in ("results.csv", "privacy.csv"):
        one, two = ((tmp_path / name / table).read_bytes() for name in ("one", "two"))
        assert one == two
    rounds = read_rounds(tmp_path / "one")
    assert (rounds["status"] == "ok").all()
    assert rounds["mean_loss"].isna().all()
    (release,) = (path.parent for path in (tmp_path / "one").rglob("manifest.json"))
    assert load_release(release).metrics == {}  # figures over private databases have no noise
    spent = read_privacy(tmp_path / "one")
    assert spent["site"].tolist() == ["site-0", "site-1", "site-2"]
    assert spent["events"].tolist() == [4, 4, 4]
    after = epsilon([ROUND_STEPS] * 4, DELTA)
    assert spent["epsilon"].tolist() == [pytest.approx(after, abs=1e-6)] * 3
    page = page_of(tmp_path / "one")
    assert "Simulated privacy: its noise comes from the seed" in page
    assert "Settings chosen by looking at the figures of this page are not in it." in page
    assert "No differential privacy" not in page
    assert "Training loss" not in page
    assert "These are codes of single patients: no noise protects them" in page
    _, mechanism, _, *sites = privacy_rows(page)
    figures = 3 * (f"{after:.3f}",)
    assert mechanism == (
        "federated",
        "site",
        "0.5",
        "1",
        "0.5",
        "2",
        "-",
        "1e-05",
        "1000",
        *figures,
    )
    own = f"{after:.3f}"
    assert sites[0] == ("site-0", "federated", "0", own, "0.000", own, "4", "0")
    assert "The cap kept sites from rounds" not in page


def test_a_method_without_privacy_beside_a_private_one_is_named(
    study_file: Path, tmp_path: Path
) -> None:
    federated = "privacy.mode: site, privacy.clip_norm: 1.0, privacy.noise_multiplier: 0.5"
    method = f"method_settings={{federated: {{{federated}, privacy.sampling_rate: 1.0}}}}"
    terms = f"agreement.privacy={{epsilon_cap: 1000, delta: {DELTA}}}"
    changes = ("--set", method, "--set", terms, "--set", "methods=[federated, central]")
    out = tmp_path / "run"
    run_all(study_file, out, *changes, "--set", "seeds=[0]", "--set", "round.rounds=2")
    page = page_of(out)
    assert "No differential privacy in central: the released model may remember patients." in page
    assert "Simulated privacy in federated: its noise comes from the seed" in page
    assert set(read_privacy(out)["method"]) == {"federated"}
    releases = [load_release(path.parent) for path in out.rglob("manifest.json")]
    assert [each.metrics for each in releases] == [{}, {}]  # of the same private databases


SHARED = (
    "round.privacy={mode: distributed, clip_norm: 1, noise_multiplier: 2, expected_patients: 60}",
    "round.learning={local_steps: 1, optimiser: sgd, weight_decay: 0.0, control_variates: false}",
    f"agreement.privacy={{epsilon_cap: 1000, delta: {DELTA}, modes: [site, distributed]}}",
)


def test_a_study_whose_sites_share_their_noise_says_what_it_rests_on(
    study_file: Path, tmp_path: Path
) -> None:
    changes = [part for each in SHARED for part in ("--set", each)]
    changes += ["--set", "seeds=[0]", "--set", "methods=[federated]"]
    for name in ("one", "two"):
        run_all(study_file, tmp_path / name, *changes)
    for table in ("results.csv", "privacy.csv"):
        one, two = ((tmp_path / name / table).read_bytes() for name in ("one", "two"))
        assert one == two
    assert (read_rounds(tmp_path / "one")["status"] == "ok").all()
    spent = read_privacy(tmp_path / "one")
    assert spent["events"].tolist() == [4, 4, 4]
    after = epsilon([full_batch(2.0, 4)], DELTA)  # of the guaranteed noise
    assert spent["epsilon_shared_noise"].tolist() == [pytest.approx(after, abs=1e-5)] * 3
    assert spent["epsilon"].tolist() == spent["epsilon_shared_noise"].tolist()
    assert spent["epsilon_own_noise"].tolist() == [0.0] * 3
    assert set(spent["trust"]) == {shared_trust("1 other sites of a sum")}
    assert read_sums(tmp_path / "one")["clipped_values"].isna().all()
    page = page_of(tmp_path / "one")
    assert "In federated the sites add their noise together" in page
    assert f"epsilon holds only if {shared_trust('1 other sites of a sum')}." in page
    _, mechanism, _, *sites = privacy_rows(page)
    figures = 3 * (f"{after:.3f}",)
    assert mechanism == (
        "federated",
        "distributed",
        "2",
        "1",
        "1",
        "1",
        "-",
        "1e-05",
        "1000",
        *figures,
    )
    assert sites[0][3:6] == ("0.000", f"{after:.3f}", f"{after:.3f}")


def test_a_study_whose_agreement_does_not_share_noise_is_refused_with_its_line(
    study_file: Path, tmp_path: Path
) -> None:
    changes = [part for each in SHARED for part in ("--set", each)]
    changes += ["--set", "agreement.privacy.modes=[site]", "--set", "methods=[federated]"]
    error = run("run", study_file, "--out", tmp_path / "run", *changes, ok=False)
    assert "the agreement's privacy.modes has site alone" in error
    assert "agree on privacy.modes: [site, distributed]" in error


def test_one_party_alone_has_nobody_to_share_its_noise_with(
    study_file: Path, tmp_path: Path
) -> None:
    changes = [part for each in SHARED for part in ("--set", each)]
    methods = ("--set", "methods=[federated, central]", "--set", "seeds=[0]")
    error = run("run", study_file, "--out", tmp_path / "run", *changes, *methods, ok=False)
    assert "method_settings.central: privacy.mode is distributed, which takes several" in error
    both = "privacy.clip_norm: 1, privacy.noise_multiplier: 2"
    shared = f"{{privacy.mode: distributed, {both}, privacy.expected_patients: 60}}"
    own = f"{{privacy.mode: site, {both}, privacy.sampling_rate: 1}}"
    each = f"method_settings={{federated: {shared}, central: {own}}}"
    run_all(
        *(study_file, tmp_path / "run", *changes[2:], *methods),
        *("--set", each, "--set", "round.rounds=1"),
    )
    spent = read_privacy(tmp_path / "run").set_index("method")
    assert (spent.loc["federated", "epsilon_own_noise"] == 0).all()
    assert spent.loc["central", "epsilon_shared_noise"] == 0
    # the central party's noise is what the consortium guarantees
    assert spent.loc["central", "epsilon"] == pytest.approx(
        float(spent.loc["federated", "epsilon"].iloc[0]), abs=1e-5
    )
    assert spent.loc["central", "trust"].startswith("none: the site's own noise protects")


def test_a_ring_that_holds_no_noise_is_told_before_the_first_round(
    study_file: Path, tmp_path: Path
) -> None:
    coarse = ("agreement.secure_aggregation={ring_bits: 16}", "round.rounds=1")
    changes = [part for each in (*SHARED, *coarse) for part in ("--set", each)]
    changes += ["--set", "seeds=[0]", "--set", "methods=[federated]"]
    full = "agreement.secure_aggregation={ring_bits: 16, largest_weight: 20}"
    error = run("run", study_file, "--out", tmp_path / "run", *changes, "--set", full, ok=False)
    assert "a ring of 16 bits has room for" in error
    run_all(study_file, tmp_path / "roomy", *changes)


def test_a_run_without_privacy_has_no_section_of_it(finished: Path) -> None:
    page = page_of(finished)
    assert "No differential privacy: the released model may remember patients." in page
    assert "<h2>Privacy</h2>" not in page
    assert read_privacy(finished).empty


class _CrashedError(Exception):
    """The coordinator falls over."""


class CrashingEngine(InProcessEngine):
    """In the second round, site-0 has trained when everything stops."""

    masks = 0

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Iterator[Answer]:
        self.masks += stage == "mask"
        for answer in super().ask(stage, requests, timeout_s):
            yield answer
            if stage == "mask" and self.masks == 2:
                raise _CrashedError


def test_a_round_that_is_begun_twice_counts_twice_and_its_site_runs_out_of_budget(
    study_file: Path, tmp_path: Path
) -> None:
    out, cap = tmp_path / "run", epsilon([ROUND_STEPS] * 3, DELTA)
    changes = (*privately(cap), "--set", "methods=[federated]", "--set", "data.sites=5")
    changes += ("--set", "round.rounds=3")  # which the cap allows, once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedhash_sim.federation.InProcessEngine", CrashingEngine)
        with pytest.raises(_CrashedError):
            run_all(study_file, out, *changes)
    run_all(study_file, out, *changes)
    rounds = read_rounds(out)
    (lost,) = rounds[rounds["status"] != "ok"].to_dict("records")
    assert (lost["round"], lost["site"], lost["failure"]) == (3, "site-0", "")
    reason = "mask: refused: epsilon_cap: 'model update' of run federated-seed-0, round 3"
    assert lost["status"].startswith(reason)
    assert "ask for more noise or fewer steps, or stop here" in lost["status"]
    spent = read_privacy(out)
    assert spent["events"].tolist() == [3] * 5
    assert (spent["epsilon"] <= cap + 1e-6).all()
    page = page_of(out)
    assert "The cap kept sites from rounds" in page
    refused = {row[0]: row[-1] for row in privacy_rows(page) if row[0].startswith("site-")}
    assert refused == {"site-0": "1", **{f"site-{i}": "0" for i in range(1, 5)}}
    assert lost["status"] in unescape(page)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("round.loss.name=contrastive", "the loss contrastive takes a patient's gradient from"),
        ("agreement.privacy=null", "the agreement has no section privacy"),
        ("agreement.privacy.epsilon_cap=0.5", "4 rounds of 2 steps come to epsilon"),
    ],
)
def test_a_private_round_that_no_site_would_train_is_refused_with_its_line(
    study_file: Path, tmp_path: Path, change: str, problem: str
) -> None:
    changes = (*privately(), "--set", change)
    error = run("run", study_file, "--out", tmp_path / "run", *changes, ok=False)
    assert "--set" in error
    assert problem in error
