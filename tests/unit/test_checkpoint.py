from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from power_cut import PowerCut, cut_power_at
from small_federation import (
    AGREEMENT,
    SITES,
    PullTrainer,
    model_and_layout,
    new_coordinator,
    round_settings,
    run_plan,
    run_small_federation,
    site_agent,
)

from fedhash.audit_log import START
from fedhash.errors import CheckpointError, CohortError
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.rounds._files import read_stored, write_stored
from fedhash.rounds.aggregation import PlainSiteAggregation
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.messages import Message
from fedhash.rounds.run import coordinator_of, run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import Refusal
from fedhash.secagg.opened_rounds import FileOpenedRounds
from fedhash_sim.engines.inprocess import InProcessEngine

SETTINGS = round_settings(
    rounds=3, coordinator_optimiser=CoordinatorOptimiserSettings(name="fedadam")
)
PAIR = SITES[:2]
PLAN = run_plan(SETTINGS, PAIR)


def resume_and_run(folder: Path) -> RoundCoordinator:
    """Everything anew from what the files say, as a process does when it starts."""
    agents = [
        SiteAgent(
            site,
            AGREEMENT,
            PullTrainer(float(i), i + 1),
            FileSiteState(folder / site),
            PlainSiteAggregation(),
        )
        for i, site in enumerate(PAIR)
    ]
    checkpoints = Checkpoints(folder / "checkpoints")
    start = CoordinatorState.start(PLAN, AGREEMENT, model_and_layout()[0])
    coordinator = coordinator_of(PLAN, AGREEMENT, checkpoints.load(PLAN) or start)
    run_rounds(coordinator, InProcessEngine(agents), checkpoints)
    return coordinator


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    coordinator = resume_and_run(tmp_path)
    state, loaded = coordinator.state, Checkpoints(tmp_path / "checkpoints").load(PLAN)
    assert loaded is not None
    assert (loaded.round_number, loaded.counted) == (3, dict.fromkeys(PAIR, 3))
    assert loaded.records == state.records
    assert loaded.optimiser.keys() == state.optimiser.keys() == {"first", "second"}
    pairs = [(loaded.optimiser[name], state.optimiser[name]) for name in state.optimiser]
    pairs += [(loaded.model, state.model), (loaded.control, state.control)]
    pairs += [(loaded.margins.mu, state.margins.mu), (loaded.margins.w, state.margins.w)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_run_that_keeps_nothing_at_the_sites_resumes_too(tmp_path: Path) -> None:
    learning = {"control_variates": False, "optimiser": "sgd"}
    coordinator = new_coordinator(round_settings(learning=learning))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    engine = InProcessEngine([site_agent(site, tmp_path / "sites") for site in SITES])
    whole = run_rounds(coordinator, engine, checkpoints)
    (tmp_path / "checkpoints" / "round-000004.checkpoint").unlink()
    resumed = new_coordinator(round_settings(learning=learning))
    state = checkpoints.load(resumed.plan)
    assert state is not None
    assert (state.round_number, state.control) == (3, None)
    resumed.state = state
    assert run_rounds(resumed, engine).tobytes() == whole.tobytes()


def test_a_failed_round_is_saved_too(tmp_path: Path) -> None:
    coordinator = new_coordinator(SETTINGS, PAIR)
    with pytest.raises(CohortError, match="0 of 2 sites count"):
        run_rounds(coordinator, InProcessEngine([]), Checkpoints(tmp_path))
    loaded = Checkpoints(tmp_path).load(PLAN)
    assert loaded is not None
    assert [record.failure is None for record in loaded.records] == [False, False, False]


def test_no_checkpoint_means_a_fresh_start(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").load(PLAN) is None


def test_a_checkpoint_from_before_the_margin_schedule_is_read(tmp_path: Path) -> None:
    coordinator = resume_and_run(tmp_path)
    path = tmp_path / "checkpoints" / "round-000003.checkpoint"
    stored = read_stored(path, "checkpoint")
    facts = json.loads(stored.arrays["facts"].tobytes())
    assert facts.pop("drift") == 0
    assert facts.pop("audit_head") == START
    assert facts["plan"]["settings"].pop("margin_schedule") is None
    older = stored.arrays | {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    write_stored(path, Message("checkpoint", {}, older))
    loaded = Checkpoints(path.parent).load(PLAN)
    assert loaded is not None
    assert (loaded.drift, loaded.audit_head) == (0.0, START)
    assert loaded.model.tobytes() == coordinator.state.model.tobytes()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    resume_and_run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["round-000002.checkpoint", "round-000003.checkpoint"]
    states = sorted(path.name for path in (tmp_path / "site-0" / "run-1").iterdir())
    assert states == ["round-000002.state", "round-000003.state"]


def test_another_run_or_other_settings_are_refused(tmp_path: Path) -> None:
    resume_and_run(tmp_path)
    others = [
        run_plan(SETTINGS),
        run_plan(round_settings(rounds=4), PAIR),
        PLAN.model_copy(update={"run_id": "run-2"}),
        PLAN.model_copy(update={"agreement_digest": "0" * 64}),
    ]
    for plan in others:
        with pytest.raises(CheckpointError, match="belongs to another run or to other settings"):
            Checkpoints(tmp_path / "checkpoints").load(plan)


def test_damage_is_found_and_the_round_before_serves(tmp_path: Path) -> None:
    whole = resume_and_run(tmp_path).state.model
    newest = tmp_path / "checkpoints" / "round-000003.checkpoint"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"does not match its own hash.*delete it to go on"):
        resume_and_run(tmp_path)
    newest.unlink()
    assert resume_and_run(tmp_path).state.model.tobytes() == whole.tobytes()


def test_what_a_site_remembers_is_never_to_be_deleted(tmp_path: Path) -> None:
    opened, state = FileOpenedRounds(tmp_path / "opened"), FileSiteState(tmp_path / "rounds")
    write_stored(tmp_path / "opened" / "run-1", Message("opened_round", {}, {}))
    state.keep("run-1", 1, {}, counted_round=0)
    for path in (tmp_path / "opened" / "run-1", next(tmp_path.glob("rounds/run-1/*.state"))):
        path.write_bytes(path.read_bytes()[:-1])
    for read in (lambda: opened.newest("run-1"), lambda: state.carried("run-1", 1)):
        with pytest.raises(CheckpointError, match=r"start a new run; do not delete it"):
            read()


def test_a_stored_file_of_another_kind_or_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "round-000001.checkpoint"
    write_stored(path, Message("site_state", {}, {}))
    with pytest.raises(CheckpointError, match="holds a 'site_state', expected a 'checkpoint'"):
        Checkpoints(path.parent).load(PLAN)
    path.write_bytes(hashlib.sha256(b"{}").digest() + b"{}")
    with pytest.raises(CheckpointError, match="was written by another version: 2 bytes are not"):
        Checkpoints(path.parent).load(PLAN)
    facts = np.frombuffer(b'{"from": "the future"}', np.uint8)
    write_stored(path, Message("checkpoint", {}, {"facts": facts}))
    with pytest.raises(CheckpointError, match="was written by another version"):
        Checkpoints(path.parent).load(PLAN)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_stored(tmp_path / "absent", "checkpoint")


def test_a_full_disk_is_told_with_its_path_and_the_stored_state_stays(tmp_path: Path) -> None:
    state = FileSiteState(tmp_path)
    state.keep("run-1", 1, {"control": np.ones(3, np.float32)}, counted_round=0)
    path = tmp_path / "run-1" / "round-000001.state"
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=f"{path} cannot be written .No space left on device"):
        state.keep("run-1", 1, {"control": np.zeros(3, np.float32)}, counted_round=0)
    assert state.carried("run-1", 1)["control"].tolist() == [1, 1, 1]


def test_a_site_that_cannot_store_its_state_refuses_and_logs_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    stage = next(new_coordinator(round_settings()).round(SITES))
    answer = site_agent("site-0", tmp_path / "state").handle(stage.requests["site-0"])
    assert Refusal.from_message(answer).reason == "training_failed"
    assert f"{tmp_path / 'state'}" in caplog.text
    assert "cannot be read ([Errno 20] Not a directory" in caplog.text


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"round-000001\.checkpoint cannot be written"):
        resume_and_run(tmp_path)


def test_a_power_cut_at_any_file_operation_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = resume_and_run(tmp_path / "never-cut").state
    cuts, finished = 0, False
    while not finished:
        folder = tmp_path / str(cuts)
        for _ in cut_power_at(monkeypatch, operation=cuts + 1):
            try:
                resume_and_run(folder)
                finished = True
            except PowerCut:
                cuts += 1
        state = resume_and_run(folder).state
        assert state.model.tobytes() == expected.model.tobytes()
        assert state.control.tobytes() == expected.control.tobytes()
        assert [(r.round_number, r.sites, r.mean_loss) for r in state.records] == [
            (r.round_number, r.sites, r.mean_loss) for r in expected.records
        ]
    assert cuts > 3 * 3 * 3  # rounds x (sites + coordinator) x (two syncs and a rename)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_model_of_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL at random moments, several times, with real training in a process of its own."""
    expected = run_small_federation(tmp_path / "never-killed")
    folder = tmp_path / "killed"
    for _ in range(4):
        process = start_federation(folder)
        seen = newest_checkpoint(folder)
        while newest_checkpoint(folder) == seen:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert start_federation(folder).wait() == 0
    assert np.load(folder / "final.npy").tobytes() == expected.tobytes()


def start_federation(folder: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).parents[1] / "small_federation.py"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen([sys.executable, script, folder], env=os.environ | {"PYTHONPATH": path})


def newest_checkpoint(folder: Path) -> str:
    return max((path.name for path in (folder / "checkpoints").glob("*.checkpoint")), default="")
