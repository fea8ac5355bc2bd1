"""Studies with a margin schedule: tables, report, and what is refused before the first round."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim_command import run, run_all
from typer.testing import CliRunner

from fedhash.audit_log import read_audit_log
from fedhash.rounds.margin_audit import verify_margin_audit
from fedhash_server.cli import app as coordinator_app
from fedhash_sim.federation import simulated_identity
from fedhash_sim.results import read_margins, read_privacy

FEDERATED = ("--set", "methods=[federated]", "--set", "seeds=[0]")
SCHEDULE = ("--set", "round.margin_schedule={every_rounds: 2}")
LOG = Path("cells/federated-seed-0/models/0/checkpoints/margin_audit.jsonl")
PRIVATE = (
    *(
        "--set",
        "round.privacy={mode: site, clip_norm: 1.0, noise_multiplier: 2.0, sampling_rate: 0.5}",
    ),
    *("--set", "round.margin_schedule={every_rounds: 2, noise_multiplier: 3.0}"),
    *("--set", "agreement.privacy={epsilon_cap: 50, delta: 1.0e-5}"),
)


def test_a_study_tells_each_step_and_its_log_verifies(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_all(study_file, out, *FEDERATED, *SCHEDULE)
    margins = read_margins(out)
    assert list(dict.fromkeys(margins["round"])) == [2, 4]
    assert margins.groupby("round")["finding"].nunique().tolist() == [14, 14]
    entries = verify_margin_audit(read_audit_log(out / LOG)).entries
    last = margins[margins["round"] == 4]
    assert last["mu"].tolist() == pytest.approx(entries[-1].margins, abs=1e-6)
    assert last["n"].tolist() == pytest.approx(entries[-1].patients, abs=1e-3)
    assert last["drift"].tolist() == pytest.approx([entries[-1].drift] * 14, abs=1e-6)
    told = last.dropna(subset="r")
    assert (told["n"] >= 1).all()
    assert told["r"].between(-1, 1).all()
    assert (last["mu"] - 0.3).abs().max() <= 0.1 + 1e-6  # two steps
    assert (told["mu"] != 0.3).any()
    page = (out / "report.html").read_text()
    assert "<h2>Margin schedule</h2>" in page
    assert (out / "plots" / "margins.png").is_file()
    agreement = ("--agreement", study_file.parent / "agreement.yaml")
    result = CliRunner().invoke(coordinator_app, ["audit", "verify", str(out / LOG)])
    assert result.exit_code == 0, result.stderr
    # a study's roster is that of simulated identities, which its agreement file does not have
    given = [str(each) for each in ("audit", "verify", out / LOG, *agreement)]
    assert "names the agreement" in CliRunner().invoke(coordinator_app, given).stderr


def test_a_finished_study_misses_a_log_that_is_gone(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_all(study_file, out, *FEDERATED, *SCHEDULE)
    (out / LOG).unlink()
    (out / "cells" / "federated-seed-0" / "results.csv").unlink()  # made from the checkpoint again
    found = run("run", study_file, "--out", out, *FEDERATED, *SCHEDULE, ok=False)
    assert "margin_audit.jsonl is gone" in found


def test_one_party_alone_is_no_stranger_to_an_agreement_with_sites(
    study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    signed = f"agreement.sites={{hospital: {simulated_identity(0, 'hospital').public_hex}}}"
    central = ("--set", "methods=[central]", "--set", "seeds=[0]", "--set", signed)
    run_all(study_file, out, *central, *SCHEDULE)
    log = out / str(LOG).replace("federated", "central")
    assert verify_margin_audit(read_audit_log(log)).entries[0].sites == ("central",)


def test_without_a_schedule_there_is_none_of_it(finished: Path) -> None:
    assert read_margins(finished).empty
    assert "Margin schedule" not in (finished / "report.html").read_text()
    assert not (finished / LOG).exists()


def test_a_private_schedule_is_in_the_ledgers(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_all(study_file, out, *FEDERATED, *PRIVATE)
    assert read_privacy(out)["events"].tolist() == [6, 6, 6]  # four rounds, two of them with both
    entries = verify_margin_audit(read_audit_log(out / LOG)).entries
    assert [entry.noise_sd for entry in entries] == pytest.approx([9.0, 9.0], abs=1e-3)
    assert "sigma of statistics" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("setting", "line", "message"),
    [
        ("{every_rounds: 2, largest_step: 0.2}", "largest_step", "largest_margin_step is 0.05"),
        ("{target_margin: 0.9}", "target_margin", "margin_range is 0.05 to 0.6"),
        ("{noise_multiplier: 2.0}", "noise_multiplier", "protects nobody"),
        ("{every_round: 2}", "every_round", "every_rounds"),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_line(
    study_file: Path, tmp_path: Path, setting: str, line: str, message: str
) -> None:
    rounds = study_file.parent / "round.yaml"
    rounds.write_text(rounds.read_text() + f"margin_schedule: {setting}\n")
    found = run("run", study_file, "--out", tmp_path / "run", ok=False)
    assert "round.yaml:8: " in found
    assert line in found
    assert message in found
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_flowers_simulation_takes_the_same_steps(study_file: Path, tmp_path: Path) -> None:
    logs = []
    for engine in ("inprocess", "flower"):
        out = tmp_path / engine
        run_all(study_file, out, *FEDERATED, *SCHEDULE, "--set", f"engine={engine}")
        logs.append((out / LOG).read_bytes())
        assert len(read_margins(out)) == 28
    assert logs[0] == logs[1]
