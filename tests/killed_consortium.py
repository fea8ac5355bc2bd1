"""A consortium of real programs whose processes are killed, and started again as a service manager
would: the network demo's, with the noise of each site's own, which its ledger counts.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedhash.agreement import Agreement
from fedhash.audit_log import read_audit_log
from fedhash.configuration import read_settings
from fedhash.errors import CheckpointError, FedhashError, ProtocolError, RefusedError
from fedhash.index import Archive, archive_release, site_handle
from fedhash.privacy import read_ledger
from fedhash.registry.release import load_release
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import RoundRecord
from fedhash.search import Hit, Query, merge
from fedhash.search.answers import Merged
from fedhash_client.archive_index import read_handle_key
from fedhash_client.daemon.control import ask_daemon
from fedhash_client.federated_search import RouterClient
from fedhash_client.own_search import OwnQuery, encoded
from fedhash_client.settings import SiteSettings
from fedhash_sim import network_demo
from fedhash_sim.network_demo import SITES, NetworkDemo

LONGEST_RECOVERY_S = 240.0
SERVERS = ("router", "superlink", "gateway")
REPORT = "The cardiac silhouette is enlarged. Small left pleural effusion. No pneumothorax."
ASKED = {"modality": "report", "example": REPORT, "target": "image", "k": 30, "kappa": -1.0}
_log = logging.getLogger(__name__)
_RESTART_S = 5.0  # RestartSec of the units
_REFUSING = 4  # every so many studies no consent


@dataclass
class Answers:
    """What was answered to one query that is asked again and again.

    Attributes:
        merged: When, in seconds of the monotonic clock, and what.
        errors: When, and what the asker was told instead.
    """

    merged: list[tuple[float, Merged]] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)

    def since(self, start: float) -> Answers:
        return Answers(
            [each for each in self.merged if each[0] >= start],
            [each for each in self.errors if each[0] >= start],
        )


class KilledConsortium(NetworkDemo):
    """Three sites and a coordinator below one folder, which stands in all their commands."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _log.info)
        self._services: dict[str, tuple[tuple[object, ...], subprocess.Popen[bytes]]] = {}
        self._died: dict[str, float] = {}

    def _agreement(self) -> dict[str, Any]:
        terms = super()._agreement()
        terms["privacy"]["modes"] = ["site"]
        terms["search"]["queries_per_hour"] = 1_000_000
        return terms

    def round_file(self, rounds: int) -> Path:
        """Short private rounds in a secure sum, whose budget lasts for hundreds."""
        settings = self._round(self._towers)
        settings |= {
            "rounds": rounds,
            "timeout_s": 150.0,  # a message that Flower lost costs no more
            "privacy": {
                "mode": "site",
                "clip_norm": 0.7,
                "noise_multiplier": 100.0,
                "sampling_rate": 0.5,
            },
        }
        return self._written(f"round-{rounds}.yaml", settings)

    def enrol(self) -> None:
        super().enrol()
        for place, site in enumerate(SITES):
            self._change(
                self._site_file(site),
                {"smallest_kappa": -1.0},  # what hardly learnt finds studies far away
                privacy={"modes": ["site"]},
                queries={"queries_per_hour": 1_000_000},
            )
            _refuse_consent(self._data(place) / "manifest.csv")

    # --- processes

    def _open(self, name: str, program: str, *arguments: object) -> None:
        super()._open(name, program, *arguments)
        self._services[name] = ((program, *arguments), self._running[name])

    def manage(self) -> None:
        """Start what died, a little later, as systemd does by the units' Restart=on-failure."""
        now = time.monotonic()
        for name, (command, process) in list(self._services.items()):
            if process.poll() is None:
                self._died.pop(name, None)
            elif now - self._died.setdefault(name, now) >= _RESTART_S:
                del self._died[name]
                self._open(name, *command)  # type: ignore[arg-type]

    def _wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_RECOVERY_S
        while not happened():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {LONGEST_RECOVERY_S:g} s for {what}; {self.told()}")
            self.manage()
            time.sleep(0.2)

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.manage()
            time.sleep(min(0.1, left))

    def process_of(self, victim: str) -> int | None:
        """The process of `daemon SITE`, `supernode SITE`, `coordinator`, a server, or `serverapp`.

        All are found by this test's folder, which stands in their command or environment.
        """
        kind, _, site = victim.partition(" ")
        if kind == "daemon":
            return _living(self._services[site][1])
        if kind == "coordinator":
            return _living(self._services["coordinator"][1])
        if kind in SERVERS:
            found: int | None = self._servers().get(kind, {}).get("pid")
            ours = found is not None and _parent(found) == _living(self._services["coordinator"][1])
            return found if ours else None
        if kind == "supernode":
            return self._process(b"fedhash_client.supernode", str(self._folder / site).encode())
        return self._process(b"flwr-serverapp", str(self._folder).encode())

    def _process(self, program: bytes, marker: bytes) -> int | None:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is not ours
                command = (process / "cmdline").read_bytes()
                if program in command and (
                    marker in command or marker in (process / "environ").read_bytes()
                ):
                    return int(process.name)
        return None

    def kill(self, victim: str) -> bool:
        """kill -9; False where there is no such process now."""
        process = self.process_of(victim)
        if process is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            return True
        return False

    def started(self, name: str, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        """A command that runs beside; its output in the logs' folder, its end awaited elsewhere."""
        super()._open(name, program, *arguments)
        return self._running[name]

    def _servers(self) -> dict[str, dict[str, Any]]:
        """How the living coordinator says that its servers are; empty where none lives."""
        try:
            told = json.loads((self._coordinator / "state" / "children.json").read_text())
        except FileNotFoundError:
            return {}
        servers: dict[str, dict[str, Any]] = told["children"]
        return servers if told["pid"] == _living(self._services["coordinator"][1]) else {}

    # without a process for each look, as the demo has
    def _servers_serve(self) -> bool:
        servers = self._servers()
        return bool(servers) and all(each["well"] for each in servers.values())

    def _healthy(self, site: str) -> bool:
        return bool(self.site_status(site).get("healthy"))

    def all_well(self) -> bool:
        return self._servers_serve() and all(self._healthy(site) for site in SITES)

    def told(self) -> str:
        """The ends of all logs."""
        logs = sorted(self._logs.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2500:]}" for log in logs)

    # --- training

    def train_command(self, run: str, rounds: int) -> tuple[object, ...]:
        files = self._frozen_files().items()
        frozen = (part for modality, file in files for part in ("--frozen", f"{modality}={file}"))
        return ("train", self._coordinator, self.round_file(rounds), "--run", run, *frozen)

    def records(self, run: str) -> tuple[RoundRecord, ...]:
        for _ in range(20):
            try:
                newest = Checkpoints(self._coordinator / "runs" / run / "checkpoints").newest()
            except CheckpointError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                continue  # replaced under our hands
            return newest[1].records if newest else ()
        return pytest.fail("the checkpoints are replaced all the time")

    def completed(self, run: str) -> int:
        return sum(record.failure is None for record in self.records(run))

    def check_ledgers(self) -> dict[str, int]:
        """No site has fewer events than rounds that count; how many there are of both."""
        counted: Counter[tuple[str, str, int]] = Counter()
        for folder in sorted((self._coordinator / "runs").iterdir()):
            for record in self.records(folder.name):
                for site, outcome in record.sites.items():
                    if outcome == "ok" and record.failure is None:
                        counted[site, folder.name, record.round_number] += 1
        events: Counter[tuple[str, str, int]] = Counter()
        for site in SITES:
            for entry in read_ledger(self._folder / site / "state" / "privacy.sqlite"):
                events[site, entry.event.run_id, entry.event.round_number] += 1
        assert not counted - events, f"not in a ledger: {counted - events}"
        return {"counted": counted.total(), "events": events.total()}

    def check_audit_logs(self) -> int:
        return sum(len(read_audit_log(self._folder / s / "state" / "audit.jsonl")) for s in SITES)

    # --- releases

    def release_command(self, run: str) -> tuple[object, ...]:
        return ("release", "make", self._coordinator, run, "--json")

    def current_release(self) -> str:
        found = self._fedhash("coordinator", "release", "list", self._coordinator, "--json")
        release: str = found["current"]["release_id"]
        return release

    def site_status(self, site: str) -> dict[str, Any]:
        try:
            status: dict[str, Any] = ask_daemon(
                self._folder / site / "state" / "control.sock", "status", timeout_s=10
            )
        except ProtocolError:
            return {}
        return status

    def serves(self, site: str, release: str) -> bool:
        services = self.site_status(site).get("services", {})
        return bool(
            services.get("releases", {}).get("release") == release
            and services["releases"]["phase"] == "idle"
        )

    def rebuild(self, site: str) -> None:
        ask_daemon(self._folder / site / "state" / "control.sock", "rebuild-index", timeout_s=120)

    def check_archives(self, release: str, scratch: Path) -> int:
        """One row for each consenting study and modality, all of the current release.

        The daemon's own file is locked, so a copy of it and of its log is read, with its checksum.

        Returns:
            Rows of all sites.
        """
        rows = 0
        for place, site in enumerate(SITES):
            home = self._folder / site
            path = (home / "state" / "archive.sqlite").resolve(strict=True)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            for file in path.parent.glob(f"{path.name}*"):
                if file.name in {path.name, f"{path.name}-wal"}:
                    shutil.copy(file, scratch)
            copy = scratch / path.name
            found, code_bits = archive_release(copy)
            assert found == release, site
            key = read_handle_key(home / "state" / "handle.key")
            expected: dict[str, set[str]] = {"image": set(), "report": set()}
            with (self._data(place) / "manifest.csv").open(newline="") as manifest:
                for row in csv.DictReader(manifest):
                    for modality, handles in expected.items():
                        if row["consent"] == "yes" and row[modality]:
                            handles.add(site_handle(key, row["study_id"]))
            with Archive(copy, release, code_bits) as archive:
                for modality, handles in expected.items():
                    assert handles
                    assert archive.handles(modality) == handles, (site, modality)
                    assert archive.count(modality) == len(handles), (site, modality)
                rows += archive.count()
            assert rows
        return rows

    # --- queries

    def query(self, release: str) -> Query:
        used = load_release(self._coordinator / "releases" / release)
        return encoded(OwnQuery.of(ASKED), used, used.build_model(), self.agreement())

    def agreement(self) -> Agreement:
        return read_settings(self._folder / SITES[0] / "consortium" / "agreement.yaml", Agreement)

    def own_hits(self, site: str) -> list[Hit]:
        """What the site finds in its own archive, by its own user's command."""
        socket = self._folder / site / "state" / "control.sock"
        found: Mapping[str, Any] = ask_daemon(socket, "search", timeout_s=60, **ASKED)
        assert found["source"] == "release"
        return [
            Hit(site, each["handle"], each["distance"], each["score"]) for each in found["hits"]
        ]

    @contextmanager
    def asking(self, query: Query, every_s: float = 0.25) -> Iterator[Answers]:
        """Ask all sites again and again meanwhile, as a user of the first site."""
        settings = read_settings(self._site_file(SITES[0]), SiteSettings)
        assert settings.network is not None
        answers, ended = Answers(), threading.Event()
        refusals: list[RefusedError] = []
        with RouterClient(SITES[0], self.agreement(), settings.network) as client:

            def ask() -> None:
                while not ended.wait(every_s):
                    began = time.monotonic()
                    try:
                        merged = client.search(query, purpose="care", timeout_s=5.0)
                        answers.merged.append((began, merged))
                    except RefusedError as error:
                        refusals.append(error)
                        return
                    except FedhashError as error:
                        answers.errors.append((began, str(error)))

            thread = threading.Thread(target=ask)
            thread.start()
            try:
                yield answers
            finally:
                ended.set()
                thread.join()
        assert not refusals, refusals[0]


def check_answers(answers: Answers, own: Mapping[str, list[Hit]], dead: set[str]) -> None:
    """Each answer is the merge of the sites that it says answered, and only the dead are missing.

    Args:
        answers: Given while only `dead` was.
        own: Each site's own hits.
        dead: Sites, or "router".
    """
    for _, merged in answers.merged:
        here = [each.site for each in merged.sites if each.outcome == "answered"]
        assert list(merged.hits) == merge([own[site] for site in here], ASKED["k"])
        assert sorted(each.site for each in merged.sites) == sorted(SITES)
        if "router" not in dead:
            assert {each.site for each in merged.missing} <= dead, merged.missing
    if "router" not in dead:
        assert not answers.errors, answers.errors[0]


def complete(merged: Merged) -> bool:
    return not merged.missing


def _living(process: subprocess.Popen[bytes]) -> int | None:
    return process.pid if process.poll() is None else None


def _parent(process: int) -> int | None:
    with suppress(OSError):  # it has ended
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.partition("PPid:")[2].split(maxsplit=1)[0])
    return None


def _refuse_consent(manifest: Path) -> None:
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::_REFUSING]:
        row["consent"] = "no"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def smaller(monkeypatch: pytest.MonkeyPatch, patients: int) -> None:
    """Fewer patients and frozen features than the demo has."""
    monkeypatch.setattr(network_demo, "_PATIENTS_PER_SITE", patients)
    monkeypatch.setattr(network_demo, "_DIMENSIONS", 20)
