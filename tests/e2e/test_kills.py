"""kill -9 of every kind of process while a whole consortium trains, releases, indexes and answers.

A long profile, `make test-kills`: FEDHASH_KILLS is how many processes are killed, and
FEDHASH_KILLS_SEED repeats a run's choices (moments are drawn, and what stands at a moment depends
on the machine). In the default suite single kills are played by test_flower_network.py,
test_coordinator_network.py, test_query_router.py, test_served_releases.py and the crash tests of
ledger and index.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from killed_consortium import SITES, KilledConsortium, check_answers, complete, smaller

from fedhash.errors import ProtocolError
from fedhash.search import Hit

KILLS = int(os.environ.get("FEDHASH_KILLS", "0"))
SEED = int(os.environ.get("FEDHASH_KILLS_SEED") or secrets.randbits(32))
FIGURES = os.environ.get("FEDHASH_KILLS_FIGURES")  # a file to write them to, as JSON
PATIENTS = 120
_KILLS_A_CYCLE = 10
_PHASES = ("releasing", "indexing", "querying", "training", "training")  # dealt in turn
_OF_SITES = tuple(f"{kind} {site}" for kind in ("daemon", "supernode") for site in SITES)
VICTIMS = {
    "training": (*_OF_SITES, *("superlink", "serverapp") * 2, "router", "gateway", "coordinator"),
    "releasing": (*(f"daemon {site}" for site in SITES), "router", "coordinator", "command"),
    "indexing": tuple(f"daemon {site}" for site in SITES),
    "querying": (*_OF_SITES, "router", "router", "superlink", "gateway", "coordinator"),
}

_log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),  # every wait has a bound of its own
    pytest.mark.skipif(not KILLS, reason="a long profile: make test-kills"),
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None,
        reason="nginx is not installed: apt-get install nginx-light",
    ),
]


@dataclass
class Killed:
    """One kill: what, when after the phase's last event, and how long until all was as before.

    That time is None where nobody saw it: the last round of a run was the one that failed.
    """

    phase: str
    victim: str
    after_s: float
    recovered_s: float | None = None


def test_kills_spread_over_all_that_a_consortium_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _log.info("FEDHASH_KILLS=%d FEDHASH_KILLS_SEED=%d", KILLS, SEED)
    smaller(monkeypatch, PATIENTS)
    consortium = KilledConsortium(tmp_path / "consortium")
    with ExitStack() as parties:
        parties.callback(consortium.end)
        play = Play(consortium, tmp_path / "scratch")
        phases = [_PHASES[number % len(_PHASES)] for number in range(KILLS)]
        for cycle, first in enumerate(range(0, KILLS, _KILLS_A_CYCLE)):
            here = phases[first : first + _KILLS_A_CYCLE]
            play.cycle(cycle, {phase: here.count(phase) for phase in _PHASES})
        if FIGURES:
            told = {"seed": SEED, "kills": [asdict(each) for each in play.killed], **play.counts}
            Path(FIGURES).write_text(json.dumps(told, indent=1))
    assert len(play.killed) == KILLS


class Play:
    """What the consortium does, and who dies in it."""

    def __init__(self, consortium: KilledConsortium, scratch: Path) -> None:
        self.killed: list[Killed] = []
        self.counts: dict[str, int] = {}
        self._consortium = consortium
        self._scratch = scratch
        self._random = random.Random(SEED)
        self._decks = {phase: self._dealt(victims) for phase, victims in VICTIMS.items()}
        self._runs = 0
        self._round_s = 10.0
        consortium.enrol()
        consortium.start()

    def cycle(self, cycle: int, kills: dict[str, int]) -> None:
        run = self._train(kills["training"])
        release = self._release(run, kills["releasing"])
        own = self._own_hits(release)
        for _ in range(kills["indexing"]):
            self._index(release, own)
        self._answer(release, own, kills["querying"])
        self._check_everything(release)
        _log.info("cycle %d: %s", cycle, self.counts)

    def _dealt(self, victims: tuple[str, ...]) -> Iterator[str]:
        """All of them in a random order, and again."""
        while True:
            yield from self._random.sample(victims, len(victims))

    def _kill(self, phase: str, victim: str, within_s: float) -> tuple[Killed, float]:
        after_s = self._random.uniform(0, within_s)
        self._consortium.pause(after_s)
        self._consortium._wait(f"{victim} to kill it", lambda: self._consortium.kill(victim))
        return self._killed(phase, victim, after_s)

    def _killed(self, phase: str, victim: str, after_s: float) -> tuple[Killed, float]:
        killed = Killed(phase, victim, round(after_s, 2))
        self.killed.append(killed)
        _log.info("%s: kill -9 %s after %.1f s", phase, victim, after_s)
        return killed, time.monotonic()

    def _recovered(self, killed: Killed, at: float) -> None:
        killed.recovered_s = round(time.monotonic() - at, 1)
        _log.info("%s recovered after %g s", killed.victim, killed.recovered_s)

    # --- training

    def _train(self, kills: int) -> str:
        """Runs until all kills are done; the last one's name."""
        while True:
            self._runs += 1
            run, rounds = f"run-{self._runs}", 2 * kills + 3
            command = self._consortium.train_command(run, rounds)
            training = _Training(self._consortium, run, rounds, command)
            training.complete_another(0)
            while kills and not training.ended():
                after_s = self._random.uniform(0, 1.5 * training.round_s())
                self._consortium.pause(after_s)
                if training.ended():
                    break
                victim = next(self._decks["training"])
                if not training.kill(victim):
                    break
                killed, at = self._killed("training", victim, after_s)
                kills -= 1
                if training.complete_another(training.completed()):
                    self._recovered(killed, at)
            training.finish()
            if not kills:
                return run

    # --- releases and indexes

    def _release(self, run: str, kills: int) -> str:
        consortium = self._consortium
        command = consortium.release_command(run)
        making = consortium.started("release", "coordinator", *command)
        lost: list[tuple[Killed, float]] = []
        for _ in range(kills):
            victim = next(self._decks["releasing"])
            if victim == "command":
                consortium.pause(after_s := self._random.uniform(0, 5))
                making.kill()
                lost.append(self._killed("releasing", victim, after_s))
            else:
                lost.append(self._kill("releasing", victim, 8.0))
        consortium._wait("the release", lambda: making.poll() is not None)
        if making.returncode != 0:  # it was killed, or would not go on: the same command again
            consortium._fedhash("coordinator", *command)
        release = consortium.current_release()
        for site in SITES:
            consortium._wait(
                f"{site} to serve the release", lambda s=site: consortium.serves(s, release)
            )
        for killed, at in lost:
            self._recovered(killed, at)
        self._well()
        consortium.check_archives(release, self._scratch)
        return release

    def _own_hits(self, release: str) -> dict[str, list[Hit]]:
        with self._consortium.asking(self._consortium.query(release)) as answers:
            self._consortium._wait(
                "all sites to answer",
                lambda: bool(answers.merged) and complete(answers.merged[-1][1]),
            )
        own = {site: self._consortium.own_hits(site) for site in SITES}
        assert all(own.values())
        return own

    def _index(self, release: str, own: dict[str, list[Hit]]) -> None:
        """A daemon dies while it encodes its archive anew, and queries are answered meanwhile."""
        consortium, victim = self._consortium, next(self._decks["indexing"])
        site = victim.split()[1]
        began = time.monotonic()
        consortium.rebuild(site)
        took_s = time.monotonic() - began
        with consortium.asking(consortium.query(release)) as answers:

            def rebuild() -> None:
                with suppress(ProtocolError):  # it dies in it
                    consortium.rebuild(site)

            thread = threading.Thread(target=rebuild)
            thread.start()
            killed, at = self._kill("indexing", victim, took_s)
            thread.join()
            consortium._wait(f"{site} to serve", lambda: consortium.serves(site, release))
            self._wait_for_all(answers, time.monotonic())
            self._recovered(killed, at)
        check_answers(answers, own, {site})
        assert consortium.own_hits(site) == own[site]
        self._well()
        consortium.check_archives(release, self._scratch)

    # --- queries

    def _answer(self, release: str, own: dict[str, list[Hit]], kills: int) -> None:
        consortium = self._consortium
        with consortium.asking(consortium.query(release)) as answers:
            for _ in range(kills):
                victim = next(self._decks["querying"])
                began = time.monotonic()
                killed, at = self._kill("querying", victim, 3.0)
                kind, _, site = victim.partition(" ")
                dead = {"daemon": {site}, "router": {"router"}, "coordinator": {"router"}}
                # what was under way when it died is seen as well
                self._wait_for_all(answers, at + 0.5)
                self._recovered(killed, at)
                self._well()
                seen = answers.since(began)
                check_answers(seen, own, dead.get(kind, set()))
                partial = sum(bool(merged.missing) for _, merged in seen.merged)
                if kind == "daemon":
                    assert partial, "no answer while the daemon was dead"
                _log.info(
                    "%d answers, %d partial, %d errors", len(seen.merged), partial, len(seen.errors)
                )
                self._count("queries answered", len(seen.merged))
                self._count("of them partial", partial)
                self._count("queries refused by a dead router", len(seen.errors))

    def _wait_for_all(self, answers: object, since: float) -> None:
        self._consortium._wait(
            "answers of all sites",
            lambda: any(complete(m) for _, m in answers.since(since).merged[-1:]),  # type: ignore[attr-defined]
        )

    # --- everything

    def _well(self) -> None:
        self._consortium._wait("all servers and daemons to be well", self._consortium.all_well)

    def _check_everything(self, release: str) -> None:
        self._well()
        self.counts |= self._consortium.check_ledgers()
        self.counts["audit entries"] = self._consortium.check_audit_logs()
        self.counts["rows"] = self._consortium.check_archives(release, self._scratch)

    def _count(self, what: str, count: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + count


class _Training:
    """A run and the command that its coordinator's people type again where it ended early."""

    def __init__(
        self, consortium: KilledConsortium, run: str, rounds: int, command: tuple[object, ...]
    ) -> None:
        self._consortium = consortium
        self._run = run
        self._rounds = rounds
        self._command = command
        self._starts = 0
        self._start()

    def completed(self) -> int:
        self._go_on()
        return self._consortium.completed(self._run)

    def kill(self, victim: str) -> bool:
        """Kill it once it runs; False where the last round ended before."""
        killed = False

        def dead_or_late() -> bool:
            nonlocal killed
            self._go_on()
            killed = self._consortium.kill(victim)
            return killed or self.ended()

        self._consortium._wait(f"{victim} to kill it", dead_or_late)
        return killed

    def complete_another(self, completed: int) -> bool:
        """Wait for a round that completes; False where the run ended without one."""

        def went_on() -> bool:
            return self.completed() > completed or self.ended()

        self._consortium._wait(f"more than {completed} rounds of {self._run}", went_on)
        return self.completed() > completed

    def ended(self) -> bool:
        return len(self._consortium.records(self._run)) >= self._rounds

    def round_s(self) -> float:
        """Of the quickest round that completed."""
        return min(
            record.seconds
            for record in self._consortium.records(self._run)
            if record.failure is None
        )

    def finish(self) -> None:
        """All rounds, the last of them completed or failed."""
        while not self.ended():
            done = len(self._consortium.records(self._run))
            self._consortium._wait("the next round", lambda done=done: self._went_on(done))
        self._consortium._wait("the command's end", lambda: self._process.poll() is not None)
        assert self._process.returncode == 0, self._consortium.told()
        records = self._consortium.records(self._run)
        assert [record.round_number for record in records] == list(range(1, self._rounds + 1))
        failed = [record.round_number for record in records if record.failure]
        _log.info("%s: failed rounds %s, %d commands", self._run, failed, self._starts)

    def _went_on(self, done: int) -> bool:
        self._go_on()
        return len(self._consortium.records(self._run)) > done

    def _go_on(self) -> None:
        if self._process.poll() is not None and not self.ended():
            assert self._process.returncode == 1, "it ends with a message"
            assert self._starts < 10, self._consortium.told()
            self._start()

    def _start(self) -> None:
        self._starts += 1
        self._process: subprocess.Popen[bytes] = self._consortium.started(
            f"train-{self._run}", "coordinator", *self._command
        )
