"""Kills between any two statements, and races: nothing spent is lost, no cap is passed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from killed_ledger import COARSE_GRID
from privacy_events import distributed, full_batch, poisson, release

from fedhash.errors import BudgetError
from fedhash.privacy import (
    Ledger,
    PrivacyEvent,
    PrivacyTerms,
    anchor_of,
    canonical_json,
    epsilon,
    read_ledger,
)

DELTA = 1e-3
TESTS = Path(__file__).parents[1]


class Killer:
    """`killed_ledger.py`, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def use(
        self,
        path: Path,
        events: list[PrivacyEvent],
        *,
        cap: float,
        line: int,
        together: bool = False,
    ) -> tuple[int, str]:
        """The exit status of a process that is killed at a statement, and what it was told."""
        request: dict[str, Any] = {
            "ledger": str(path),
            "cap": cap,
            "delta": DELTA,
            "events": [canonical_json(event) for event in events],
            "line": line,
            "together": together,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["outcomes"]


@contextmanager
def running_killer() -> Iterator[Killer]:
    with subprocess.Popen(
        [sys.executable, str(TESTS / "killed_ledger.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Killer(process)  # the end of its input ends it


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with running_killer() as program:
        yield program


@pytest.mark.parametrize(
    ("spent", "events", "told"),
    [
        ([], [release(4.0)], "r"),
        ([release(6.0)], [full_batch(5.0, 2), release(0.1)], "rx"),  # the last one never fits
    ],
)
def test_killed_at_every_statement_in_turn(
    tmp_path: Path,
    killer: Killer,
    spent: list[PrivacyEvent],
    events: list[PrivacyEvent],
    told: str,
) -> None:
    terms = [PrivacyTerms(epsilon_cap=3.0, delta=DELTA)]
    kills = set()
    for line in range(1, 2000):
        path = tmp_path / f"{line}" / "ledger.sqlite"
        for event in spent:
            with Ledger(path, terms) as ledger:
                ledger.reserve(event)
        status, outcomes = killer.use(path, events, cap=3.0, line=line)
        assert status in (0, -signal.SIGKILL)
        ran = outcomes.count("r")

        with Ledger(path, terms) as ledger:
            ledger.reserve(release(20.0))
        found = [entry.event for entry in read_ledger(path)]
        assert found[-1] == release(20.0), "the next step goes on from whatever was left"
        written = len(found) - 1 - len(spent)
        assert found[:-1] == [*spent, *events[:written]]
        # A step whose event was just committed may never have run; none ran without its event.
        assert written in (ran, ran + 1)
        kills.add((ran, written))
        shutil.rmtree(path.parent)
        if status == 0:
            assert outcomes == told
            break
    else:
        pytest.fail("the process was always killed")
    assert kills == {(0, 0), (0, 1), (1, 1)}


def test_killed_at_every_statement_of_a_reservation_of_two(tmp_path: Path, killer: Killer) -> None:
    """Steps and statistics of a round stand in the ledger both, or neither."""
    events, kills = [full_batch(5.0, 2), release(4.0, purpose="margin statistics")], set()
    for line in range(1, 2000):
        path = tmp_path / f"{line}" / "ledger.sqlite"
        status, told = killer.use(path, events, cap=3.0, line=line, together=True)
        assert status in (0, -signal.SIGKILL)
        with Ledger(path, [PrivacyTerms(epsilon_cap=3.0, delta=DELTA)]):
            pass  # it opens, whatever was left
        found = [entry.event for entry in read_ledger(path)]
        assert found in ([], events)
        kills.add((told, len(found)))
        shutil.rmtree(path.parent)
        if status == 0:
            break
    else:
        pytest.fail("the process was always killed")
    assert kills == {("", 0), ("", 2), ("r", 2)}


EVENTS = st.one_of(
    st.builds(release, st.sampled_from([1.5, 4.0, 12.0])),
    st.builds(full_batch, st.just(9.0), st.sampled_from([1, 4])),
    st.builds(distributed, st.just(6.0)),
    st.just(poisson(2.0, 0.05, 10)),
)


class Site(RuleBasedStateMachine):
    """Runs, refusals, restarts, kills and clock changes in any order, against a plain list."""

    killer: Killer

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.path = self.folder / "ledger.sqlite"
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.cap = 3.0
        self.spent: list[PrivacyEvent] = []
        self.anchors = [anchor_of(())]
        self.ledger = self.opened()

    def opened(self) -> Ledger:
        limits = [PrivacyTerms(epsilon_cap=self.cap, delta=DELTA)]
        return Ledger(self.path, limits, clock=lambda: self.now)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    def fits(self, event: PrivacyEvent) -> bool:
        return epsilon([*self.spent, event], DELTA) <= self.cap

    @rule(event=EVENTS, other_process=st.booleans())
    def reserve(self, event: PrivacyEvent, other_process: bool) -> None:
        fits = self.fits(event)
        ledger = self.opened() if other_process else self.ledger
        try:
            entry = ledger.reserve(event)
        except BudgetError:
            assert not fits
        else:
            assert fits
            self.spent.append(event)
            assert (entry.position, entry.event) == (len(self.spent), event)
        finally:
            if other_process:
                ledger.close()

    @rule(event=EVENTS, line=st.integers(1, 250))
    def reserve_in_a_process_that_is_killed(self, event: PrivacyEvent, line: int) -> None:
        fits = self.fits(event)
        status, outcome = self.killer.use(self.path, [event], cap=self.cap, line=line)
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            assert outcome == ("r" if fits else "x")
        found = [entry.event for entry in read_ledger(self.path)]
        if found != self.spent:
            self.spent.append(event)
            assert fits
        else:
            assert outcome != "r"

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.opened()

    @rule(cap=st.sampled_from([1.0, 2.0]))
    @precondition(lambda self: self.cap == 3.0)
    def lower_the_cap(self, cap: float) -> None:
        self.cap = cap
        self.restart()

    @rule(days=st.integers(-1000, 1000))
    def set_the_clock(self, days: int) -> None:
        self.now += timedelta(days=days)

    @invariant()
    def nothing_is_lost_and_no_cap_is_passed(self) -> None:
        entries = read_ledger(self.path)
        assert [entry.event for entry in entries] == self.spent
        assert epsilon(self.spent, DELTA) <= 3.0
        assert [entry.position for entry in entries] == list(range(1, len(entries) + 1))
        for anchor in self.anchors:
            read_ledger(self.path, anchor)
        if self.anchors[-1] != anchor_of(entries):
            self.anchors.append(anchor_of(entries))


def test_any_sequence(killer: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhash.privacy.accountant._FINE", COARSE_GRID)
    machine = type("SiteWithKills", (Site,), {"killer": killer})
    machine.TestCase.settings = settings(
        max_examples=25, stateful_step_count=15, deadline=None, print_blob=True
    )
    machine.TestCase().runTest()


RACE = """
import sys
from pathlib import Path
from killed_ledger import COARSE_GRID
from privacy_events import release
from fedhash.errors import BudgetError
from fedhash.privacy import Ledger, PrivacyTerms

path, run_id = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
reserved = 0
with Ledger(path, [PrivacyTerms(epsilon_cap=1.0, delta=1e-3)]) as ledger:
    try:
        while True:
            ledger.reserve(release(8.0, run_id=run_id, round_number=reserved))
            reserved += 1
    except BudgetError:
        print(reserved, flush=True)
"""


def test_racing_processes_share_one_cap(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), f"run-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    told = [int(racer.communicate()[0]) for racer in racers]

    events = [entry.event for entry in read_ledger(path)]
    assert epsilon(events, DELTA) <= 1.0 < epsilon([*events, release(8.0)], DELTA)
    of_each = [
        [event.round_number for event in events if event.run_id == f"run-{number}"]
        for number in range(3)
    ]
    assert of_each == [list(range(reserved)) for reserved in told]
