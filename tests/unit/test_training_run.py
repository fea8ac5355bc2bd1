"""`train` makes a run's folder once, and goes on with it whatever process has died."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from consortium_certificates import Consortium
from small_federation import AGREEMENT, round_settings
from typer.testing import CliRunner

from fedhash.configuration import read_settings, resolved
from fedhash.errors import CheckpointError, ConfigurationError, ProtocolError, ReleaseError
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundRecord
from fedhash.rounds.training_messages import RunPlan
from fedhash_server import followed_run
from fedhash_server.cli import app as coordinator_app
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.run_lock import is_training, training
from fedhash_server.run_progress import read_progress
from fedhash_server.settings import RunSettings
from fedhash_server.superlink import FlowerRun, SuperLinkSilentError
from fedhash_server.training_run import PreparedRun, prepare_run

SITES = ("a", "b", "c")
ROUNDS = 3


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    place = CoordinatorFolder(tmp_path / "thorax")
    agreement = tmp_path / "agreement.yaml"
    agreement.write_text(resolved(AGREEMENT.model_copy(update={"name": "thorax"})))
    make_coordinator_folder(place, "thorax", ["localhost"], agreement)
    consortium = Consortium(tmp_path / "peers")
    consortium.authority = place.authority()
    for site in SITES:
        consortium.enrol(site, place.path)
        (place.sites / site / "supernode.pub").write_text("key\n")
    return place


@pytest.fixture
def round_file(tmp_path: Path) -> Path:
    path = tmp_path / "My Round.yaml"
    path.write_text(resolved(round_settings(rounds=ROUNDS)))
    return path


def test_a_run_is_made_of_the_enrolled_sites(folder: CoordinatorFolder, round_file: Path) -> None:
    trial = prepare_run(folder, round_file, dry_run=True)
    assert list(folder.runs.iterdir()) == []
    assert not any(each.name.startswith(".preparing") for each in folder.path.iterdir())
    prepared = prepare_run(folder, round_file)
    assert prepared == trial
    assert prepared.run == RunSettings(run_id="my-round", sites=SITES, seed=0)
    assert (prepared.folder / "app" / "pyproject.toml").exists()
    assert read_settings(prepared.folder / "run.yaml", RunSettings) == prepared.run
    again = prepare_run(folder, round_file)
    assert again.goes_on
    assert again.run == prepared.run


def test_sites_seed_and_name_can_be_chosen(folder: CoordinatorFolder, round_file: Path) -> None:
    chosen = {"run_id": "run-7", "sites": ["c", "a"], "seed": 5}
    prepared = prepare_run(folder, round_file, **chosen)
    assert prepared.run == RunSettings(run_id="run-7", sites=("c", "a"), seed=5)
    assert prepare_run(folder, round_file, **chosen).goes_on
    assert prepare_run(folder, round_file, run_id="run-7").goes_on
    with pytest.raises(ConfigurationError, match=r"not enrolled: d; the sites are a, b, c"):
        prepare_run(folder, round_file, run_id="run-8", sites=["a", "d"])
    assert [each.name for each in folder.runs.iterdir()] == ["run-7"]


@pytest.mark.parametrize("run_id", ["../x", "..", "/x", "a/b", "A", "-a", "a" * 65, "a\n"])
def test_a_run_id_is_no_path(folder: CoordinatorFolder, round_file: Path, run_id: str) -> None:
    place = folder.path.parent / "x"  # of a run that somebody could go on with
    place.mkdir()
    (place / "run.yaml").touch()
    before = sorted(folder.path.parent.rglob("*"))
    with pytest.raises(ConfigurationError, match="is no name of a run"):
        prepare_run(folder, round_file, run_id=run_id)
    assert sorted(folder.path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "parent", ["..", "../x", "/etc", "", "ab" * 31, "AB" * 32, "ab" * 32 + "\n"]
)
def test_a_parent_is_no_path(folder: CoordinatorFolder, round_file: Path, parent: str) -> None:
    before = sorted(folder.path.parent.rglob("*"))
    with pytest.raises(ReleaseError, match="the id of a release has 64 hex digits"):
        prepare_run(folder, round_file, parent=parent)
    assert sorted(folder.path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, r: r.write_text(r.read_text().replace("rounds: 3", "rounds: 9")), "round file"),
        (
            lambda f, r: f.agreement_file.write_text(
                f.agreement_file.read_text().replace("largest_k: 100", "largest_k: 7")
            ),
            "agreement",
        ),
    ],
)
def test_a_name_that_is_taken_goes_on_with_the_same_settings_only(
    folder: CoordinatorFolder, round_file: Path, change: Callable[..., object], message: str
) -> None:
    prepare_run(folder, round_file)
    with pytest.raises(ConfigurationError, match="another sites and another seed"):
        prepare_run(folder, round_file, sites=["a", "b"], seed=1)
    change(folder, round_file)
    with pytest.raises(ConfigurationError, match=f"begun with another {message}; name a new run"):
        prepare_run(folder, round_file)


def test_the_command_checks_without_starting(
    folder: CoordinatorFolder, round_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_run, "_LONGEST_SILENCE_S", 0)
    monkeypatch.setattr(followed_run, "_ASK_EVERY_S", 0)
    command = ["train", str(folder.path), str(round_file), "--sites", "a, b", "--dry-run", "--json"]
    result = CliRunner().invoke(coordinator_app, command)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["run"], facts["sites"], facts["of"]) == ("my-round", ["a", "b"], ROUNDS)
    result = CliRunner().invoke(coordinator_app, [*command[:3], "--run", "run-1"])
    assert result.exit_code == 1
    assert "does not answer" in result.stderr
    assert "fedhash-coordinator run" in result.stderr.replace("\n", " ")
    assert read_progress(folder) == {
        "run-1": {"rounds": 0, "of": ROUNDS, "training": False, "last_failure": None}
    }


@dataclass
class FakeSuperLink:
    """Flower as the follower sees it; `script` says what happens at each question."""

    prepared: PreparedRun
    script: list[str]
    started: list[int] = field(default_factory=list)
    ended: dict[int, tuple[str, str]] = field(default_factory=dict)
    lock: subprocess.Popen[bytes] | None = None

    def runs(self, bundle: str) -> tuple[FlowerRun, ...]:
        happening = self.script.pop(0) if self.script else "idle"
        newest = self.started[-1] if self.started else 0
        if happening == "silent":
            raise SuperLinkSilentError("the SuperLink does not answer")
        if happening == "round":
            end_round(self.prepared)
        elif happening == "crash":
            self.ended[newest] = ("failed", "No heartbeat received from the task")
        elif happening == "error":
            self.ended[newest] = ("failed", "ServerApp failed with exception: too few sites")
        elif happening == "stopped":
            self.ended[newest] = ("stopped", "")
        elif happening == "lock":
            self.hold()
        elif happening == "kill" and self.lock is not None:
            self.lock.kill()
            self.lock.wait()
        return tuple(
            FlowerRun(number, bundle, number in self.ended, *self.ended.get(number, ("", "")))
            for number in self.started
        )

    def start_run(self, app: Path, folder: Path) -> int:
        assert folder == self.prepared.folder.parent
        self.started.append(len(self.started) + 1)
        return self.started[-1]

    def stop_run(self, number: int) -> None:
        self.ended[number] = ("stopped", "")

    def hold(self) -> None:
        """A process that trains: it holds the lock until it is killed."""
        lock = self.prepared.folder / "training.lock"
        program = (
            f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print(1, flush=True); time.sleep(600)"
        )
        self.lock = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
        assert self.lock.stdout is not None
        self.lock.stdout.readline()

    def __enter__(self) -> FakeSuperLink:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.kill()
            self.lock.wait()
            assert self.lock.stdout is not None
            self.lock.stdout.close()


Follow = Callable[..., tuple[FakeSuperLink, list[int], list[str]]]


def end_round(prepared: PreparedRun) -> None:
    """What the ServerApp does at the end of a round."""
    plan = RunPlan(
        run_id=prepared.run.run_id,
        agreement_digest=64 * "0",
        layout_digest=64 * "0",
        sites=prepared.run.sites,
        settings=round_settings(rounds=ROUNDS),
    )
    checkpoints = Checkpoints(prepared.folder / "checkpoints")
    vector = np.zeros(3, np.float32)
    state = checkpoints.load(plan) or CoordinatorState.start(plan, AGREEMENT, vector)
    number = state.round_number + 1
    record = RoundRecord(number, None, dict.fromkeys(SITES, "ok"), 3.0, 0.5, 1.0)
    checkpoints.save(plan, replace(state, round_number=number, records=(*state.records, record)))


@pytest.fixture
def follow(folder: CoordinatorFolder, round_file: Path, monkeypatch: pytest.MonkeyPatch) -> Follow:
    """Follow a run whose SuperLink plays a script, with a clock of our own."""
    prepared = prepare_run(folder, round_file, run_id="run-1")
    now = [0.0]
    monkeypatch.setattr(followed_run, "bundle_hash", lambda _: "bundle")

    def play(
        *script: str, started: Sequence[int] = ()
    ) -> tuple[FakeSuperLink, list[int], list[str]]:
        rounds: list[int] = []
        events: list[str] = []
        with FakeSuperLink(prepared, list(script), list(started)) as superlink:
            follower = followed_run._Follower(
                prepare_run(folder, round_file, run_id="run-1"),
                superlink,  # type: ignore[arg-type]
                lambda record: rounds.append(record.round_number),
                events.append,
                lambda: now[0],
            )
            for _ in range(200):
                if follower.step() is not None:
                    return superlink, rounds, events
                now[0] += 3
        pytest.fail("the run does not end")

    return play


def test_each_round_is_told_once(follow: Follow) -> None:
    superlink, rounds, events = follow("idle", "round", "idle", "round", "round")
    assert rounds == [1, 2, 3]
    assert superlink.started == [1]
    assert events == ["Flower started the run as 1"]
    superlink, rounds, events = follow()
    assert (superlink.started, rounds, events) == ([], [], []), "a finished run is not begun anew"


def test_a_crashed_run_is_started_again(follow: Follow) -> None:
    superlink, rounds, events = follow(
        *("idle", "crash", "round", "crash", "silent", "silent", "crash", "round", "round")
    )
    assert rounds == [1, 2, 3]
    assert superlink.started == [1, 2, 3, 4]
    assert [each for each in events if "does not answer" in each] != []


def test_a_process_that_died_is_found_by_its_lock(follow: Follow) -> None:
    superlink, rounds, events = follow(
        *("idle", "lock", "round", "kill", "idle", "idle", "idle", "idle", "round", "round")
    )
    assert rounds == [1, 2, 3]
    assert superlink.started == [1, 2]
    assert superlink.ended == {1: ("stopped", "")}
    assert "the run crashed (its process died); it goes on from its last checkpoint" in events


def test_a_run_that_another_command_started_is_watched(follow: Follow) -> None:
    superlink, rounds, events = follow("lock", "round", "round", "round", started=[1])
    assert (superlink.started, rounds, events) == ([1], [1, 2, 3], [])


def test_a_dead_run_that_another_command_started_is_started_again(follow: Follow) -> None:
    script = ["idle"] * 9 + ["round"] * 3
    superlink, rounds, _ = follow(*script, started=[1])
    assert (superlink.started, rounds) == ([1, 2], [1, 2, 3])
    assert superlink.ended == {1: ("stopped", "")}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (["idle", "error"], "ended with an error: too few sites"),
        (["idle", "stopped"], "was stopped by another command"),
        (["idle", "crash", "crash", "crash"], "crashed 3 times without a round"),
        (["idle", *(["silent"] * 60)], "does not answer"),
    ],
)
def test_what_is_no_accident_ends_the_command(
    follow: Callable[..., object], script: list[str], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        follow(*script)


def test_one_process_trains_a_run(tmp_path: Path) -> None:
    assert not is_training(tmp_path / "run")
    with training(tmp_path / "run"):
        assert is_training(tmp_path / "run")
        with (
            pytest.raises(CheckpointError, match="trained by another process"),
            training(tmp_path / "run", longest_wait_s=0.2),
        ):
            pytest.fail("both train")
    assert not is_training(tmp_path / "run")
    with training(tmp_path / "run"):
        pass


def test_progress_names_damaged_checkpoints(folder: CoordinatorFolder, round_file: Path) -> None:
    prepared = prepare_run(folder, round_file, run_id="run-1")
    end_round(prepared)
    assert read_progress(folder)["run-1"]["rounds"] == 1
    (path,) = (prepared.folder / "checkpoints").glob("round-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in read_progress(folder)["run-1"]["fault"]
    shutil.rmtree(prepared.folder)
    assert read_progress(folder) == {}
