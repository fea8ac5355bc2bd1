"""The audit of margin schedules: what a run writes, and what verifying it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_cut import PowerCut, cut_power_at
from small_federation import (
    AGREEMENT,
    SECURE_AGREEMENT,
    SITES,
    PullTrainer,
    model_and_layout,
    round_settings,
    run_plan,
)
from typer.testing import CliRunner

from fedhash.audit_log import START, AuditLog, read_audit_log
from fedhash.errors import AuditError
from fedhash.learning.local_training import LocalResult
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.margin_audit import MarginEntry, verify_margin_audit
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.run import coordinator_of, run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash_server.cli import app
from fedhash_sim.engines.inprocess import InProcessEngine

SCHEDULE = MarginScheduleSettings(every_rounds=2, reference_drift=0.005, drift_control=True)
PLAN = run_plan(round_settings(rounds=6, margin_schedule=SCHEDULE))
SHORT_PLAN = run_plan(round_settings(rounds=4, margin_schedule=SCHEDULE), SITES[:2])


class TellingTrainer(PullTrainer):
    """Slacks that depend on the site, on the round and on the margins that were asked for."""

    def train(self, request: TrainRequest, carried: Any) -> LocalResult:
        result = super().train(request, carried)
        if not request.plan.settings.carries_statistics(request.round_number):
            return result
        n = np.array([30.0, 12.0, 5.0])
        r = self.target / 10 + 0.05 * request.round_number + request.margins.mu / 10
        statistics = np.concatenate([n, n * r, n * (r**2 + 0.01), n * r**2])
        return replace(result, statistics=statistics.astype(np.float32))


def resume_and_run(folder: Path, plan: RunPlan = PLAN) -> RoundCoordinator:
    """Everything anew from what the files say, as a process does when it starts."""
    agents = [
        SiteAgent(
            site,
            AGREEMENT,
            TellingTrainer(float(i), i + 1),
            FileSiteState(folder / site),
            PlainSiteAggregation(),
        )
        for i, site in enumerate(plan.sites)
    ]
    checkpoints = Checkpoints(folder / "checkpoints")
    start = CoordinatorState.start(plan, AGREEMENT, model_and_layout()[0])
    coordinator = coordinator_of(plan, AGREEMENT, checkpoints.load(plan) or start)
    run_rounds(coordinator, InProcessEngine(agents), checkpoints)
    return coordinator


def log_of(folder: Path) -> Path:
    return folder / "checkpoints" / "margin_audit.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CoordinatorState]:
    folder = tmp_path_factory.mktemp("run")
    return folder, resume_and_run(folder).state


@pytest.fixture(scope="module")
def contents(finished: tuple[Path, CoordinatorState]) -> list[dict[str, Any]]:
    return [dict(entry.content) for entry in read_audit_log(log_of(finished[0]))]


def forged(path: Path, contents: list[dict[str, Any]]) -> Path:
    """A log whose chain holds, as only someone who can write it makes it."""
    path.unlink(missing_ok=True)
    with AuditLog(path) as log:
        for content in contents:
            log.append(content)
    return path


def test_every_step_of_a_run_is_in_the_log(finished: tuple[Path, CoordinatorState]) -> None:
    folder, state = finished
    entries = read_audit_log(log_of(folder), noted=state.audit_head)
    verified = verify_margin_audit(entries, AGREEMENT)
    assert (verified.run_id, verified.rounds, verified.asked_again) == ("run-1", (2, 4, 6), ())
    assert list(verified.entries[-1].margins) == state.margins.mu.tolist()
    assert verified.entries[-1].drift == state.drift > 0
    assert verified.entries[0].sites == SITES
    assert entries[-1].hash == state.audit_head
    loaded = Checkpoints(folder / "checkpoints").load(PLAN)
    assert loaded is not None
    assert (loaded.drift, loaded.audit_head) == (state.drift, state.audit_head)
    assert loaded.margins.mu.tolist() == state.margins.mu.tolist()


CHANGES = {
    "run_id": "another",
    "agreement_digest": "0" * 64,
    "round_number": 5,
    "sites": ["site-0"],
    "patients": [31.0, 12.0, 5.0],
    "slack": [-3.0, 4.0, 1.0],
    "squared_slack": [80.0, 30.0, 20.0],
    "site_means": [20.0, 8.0, 3.0],
    "start": 0.2,
    "margin_range": [0.05, 0.7],
    "margins_before": [0.3, 0.3, 0.31],
    "margins": [0.3, 0.31, 0.3],
    "drift_before": 1.0,
    "drift": 3.3,
    "kind": "query",
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_entry_is_found_though_the_chain_was_written_anew(
    contents: list[dict[str, Any]], tmp_path: Path, field: str, number: int
) -> None:
    changed = [dict(each) for each in contents]
    changed[number][field] = CHANGES[field]
    log = read_audit_log(forged(tmp_path / "log.jsonl", changed))
    with pytest.raises(AuditError):
        verify_margin_audit(log, AGREEMENT)


def test_the_constants_and_the_noise_are_part_of_what_is_checked(
    contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    noisy = [each | {"schedule": each["schedule"] | {"noise_multiplier": 2.0}} for each in contents]
    with pytest.raises(AuditError, match="its 3 sites add more noise than 0"):
        verify_margin_audit(read_audit_log(forged(tmp_path / "a", noisy)))
    other = [each | {"schedule": each["schedule"] | {"rate": 0.1}} for each in contents]
    with pytest.raises(AuditError, match="its sums give other margins or another drift"):
        verify_margin_audit(read_audit_log(forged(tmp_path / "b", other)))


SUMS = ("patients", "slack", "squared_slack", "site_means")
HOSTILE: dict[str, Any] = {
    "an overflow": {"noise_sd": 1e200},
    "a square that is infinite": {"slack": [1e300, 0.0, 0.0]},
    "an endless round": {"round_number": 10**400},
    "no finding": {name: [] for name in (*SUMS, "margins_before", "margins")},
    "no site": {"sites": []},
    "one site three times": {"sites": ["site-0"] * 3},
    "sites in another order": {"sites": ["site-1", "site-0", "site-2"]},
    "an end before its start": {"margin_range": [0.6, 0.05]},
    "a margin that no code keeps": {"start": 1e30},
    "a terminal's commands": {"run_id": "x\x1b[2J\nhead: 0000"},
    "no digest": {"agreement_digest": "\x1b[2J"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_entry_that_no_coordinator_writes_is_none(
    contents: list[dict[str, Any]], tmp_path: Path, what: str
) -> None:
    """Without an agreement, too: its numbers are never computed with, its text never shown."""
    log = read_audit_log(forged(tmp_path / "log.jsonl", [contents[0] | HOSTILE[what]]))
    with pytest.raises(AuditError, match="it is no step of a schedule") as caught:
        verify_margin_audit(log)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("noise_sd", [0.0, 1e-300, 1e42])
@pytest.mark.parametrize("patients", [-1e42, 5e-324, 1.0, 1e42])
@pytest.mark.parametrize("other", [-1e42, 1e42])
@pytest.mark.filterwarnings("error")
def test_the_largest_sums_are_computed_with(
    contents: list[dict[str, Any]], patients: float, other: float, noise_sd: float
) -> None:
    sums = dict.fromkeys(SUMS, (other, 0.0, other)) | {"patients": (patients,) * 3}
    text = json.dumps(contents[0] | sums | {"noise_sd": noise_sd})
    step = MarginEntry.model_validate_json(text).step()
    assert np.isfinite(step.mu).all()
    assert np.isfinite(step.drift)


def test_sites_that_never_signed_are_told(contents: list[dict[str, Any]], tmp_path: Path) -> None:
    names = [f"nobody-{i}" for i in range(3)]
    agreement = SECURE_AGREEMENT
    mine = {"agreement_digest": agreement.digest()}
    log = read_audit_log(forged(tmp_path / "a", [each | mine for each in contents]))
    assert verify_margin_audit(log, agreement).rounds == (2, 4, 6)
    log = read_audit_log(forged(tmp_path / "b", [contents[0] | mine | {"sites": names}]))
    with pytest.raises(AuditError, match="the agreement's sites have no 'nobody-0'"):
        verify_margin_audit(log, agreement)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_steps_in_another_order_do_not_go_on_from_each_other(
    contents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "reordered.jsonl"
    log = read_audit_log(forged(path, [contents[i] for i in order]))
    kept: list[int] = []  # of a round that is asked again, all from there on is given up
    holds = True
    for i in order:
        kept = [each for each in kept if each < i]
        holds = holds and kept == list(range(i))
        kept.append(i)
    if holds:
        verified = verify_margin_audit(log, AGREEMENT)
        assert verified.rounds == tuple(2 * i + 2 for i in kept)
    else:
        with pytest.raises(AuditError, match="does not go on from the margins"):
            verify_margin_audit(log, AGREEMENT)


def test_another_agreement_is_told(finished: tuple[Path, CoordinatorState]) -> None:
    other = AGREEMENT.model_copy(update={"version": 2})
    with pytest.raises(AuditError, match="it names the agreement"):
        verify_margin_audit(read_audit_log(log_of(finished[0])), other)


def test_a_power_cut_anywhere_leaves_a_log_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = resume_and_run(tmp_path / "never-cut", SHORT_PLAN).state
    cuts, again, done = 0, 0, False
    while not done:
        folder = tmp_path / str(cuts)
        for _ in cut_power_at(monkeypatch, operation=cuts + 1):
            try:
                resume_and_run(folder, SHORT_PLAN)
                done = True
            except PowerCut:
                cuts += 1
        state = resume_and_run(folder, SHORT_PLAN).state
        assert state.model.tobytes() == expected.model.tobytes()
        assert state.margins.mu.tobytes() == expected.margins.mu.tobytes()
        log = read_audit_log(log_of(folder), noted=state.audit_head)
        verified = verify_margin_audit(log, AGREEMENT)
        assert verified.rounds == (2, 4)
        again += len(verified.asked_again)
    assert again >= 2  # each of the steps was once written and lost with its round


def test_a_run_does_not_go_on_from_a_shortened_log(tmp_path: Path) -> None:
    resume_and_run(tmp_path)
    log, newest = log_of(tmp_path), tmp_path / "checkpoints" / "round-000006.checkpoint"
    newest.unlink()
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0])  # the checkpoint of round 5 knows the second
    with pytest.raises(AuditError, match="cut short, written anew or exchanged"):
        resume_and_run(tmp_path)
    log.write_bytes(b"".join(lines[:2]))
    assert resume_and_run(tmp_path).finished


# the command


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["audit", "verify", *map(str, arguments)])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr.replace("\n", " ")


def test_the_command_tells_what_it_verified(
    finished: tuple[Path, CoordinatorState], tmp_path: Path
) -> None:
    folder, state = finished
    agreement = tmp_path / "agreement.yaml"
    agreement.write_text(json.dumps(AGREEMENT.model_dump(mode="json")))
    options = ("--agreement", agreement, "--head", state.audit_head)
    assert json.loads(call(log_of(folder), *options, "--json")) == {
        "run": "run-1",
        "entries": 3,
        "steps after rounds": [2, 4, 6],
        "rounds asked again": [],
        "head": state.audit_head,
        "warnings": [],
    }
    assert len(json.loads(call(log_of(folder), "--json"))["warnings"]) == 2
    assert len(json.loads(call(log_of(folder), "--head", START, "--json"))["warnings"]) == 2
    assert f"head: {state.audit_head}" in call(log_of(folder))


def test_the_command_names_the_line_that_is_wrong(
    finished: tuple[Path, CoordinatorState], contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = log_of(finished[0]).read_bytes()
    log = tmp_path / "log.jsonl"
    log.write_bytes(data.replace(b'"round_number":4', b'"round_number":6'))
    assert "log.jsonl:2: the line was altered" in call(log, code=1)
    log.write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    assert "cut short" in call(log, "--head", finished[1].audit_head, code=1)
    forged(log, [contents[0], contents[2]])
    assert "line 2 is no step that this schedule takes" in call(log, code=1)
    assert "No such file" in call(tmp_path / "absent", code=1)
