"""A run over the real network - gateway, SuperLink, SuperNodes with certificates - ends though its
processes are killed on the way, with the model that training in process gives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_federation import AGREEMENT, IDENTITIES, SITES, round_settings, site_agent
from test_flower_network import free_port

from benchmarks.network_daemon import agent_behind
from fedhash.configuration import resolved
from fedhash.rounds.checkpoint import Checkpoints
from fedhash_client.site_folder import make_site_folder
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.enrolment import enrol
from fedhash_server.flower import train_run
from fedhash_sim.engines.inprocess import InProcessEngine

ROUNDS = 2
SETTINGS = round_settings(rounds=ROUNDS)  # plain: a secure round that was lost may fail once
COORDINATOR = "from fedhash_server.cli import app; app()"
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None,
    reason="nginx is not installed: apt-get install nginx-light",
)


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    """A coordinator's folder with three enrolled sites beside it, on free ports."""
    place = CoordinatorFolder(tmp_path / "thorax")
    agreement = tmp_path / "agreement.yaml"
    agreement.write_text(resolved(AGREEMENT.model_copy(update={"name": "thorax"})))
    make_coordinator_folder(place, "thorax", ["localhost"], agreement)
    gateway, router, health, superlink = (free_port() for _ in range(4))
    place.settings_file.write_text(
        f"consortium: thorax\nhost: localhost\n"
        f"gateway: {{listen: 127.0.0.1, port: {gateway}}}\n"
        f"router: {{listen: 127.0.0.1, port: {router}, health_port: {health}}}\n"
        f"superlink: {{port: {superlink}}}\n"
    )
    for site in SITES:
        secrets = tmp_path / site / "secrets"
        secrets.mkdir(parents=True)
        IDENTITIES[site].save(secrets / "identity.pem")
        done = enrol(place, make_site_folder(tmp_path / site, site).request)
        shutil.copytree(done.welcome, tmp_path / site / "consortium", dirs_exist_ok=True)
    (tmp_path / "round.yaml").write_text(resolved(SETTINGS))
    return place


@pytest.mark.xdist_group("ray")
@needs_nginx
def test_a_run_over_the_gateway_survives_the_death_of_its_processes(
    folder: CoordinatorFolder, tmp_path: Path
) -> None:
    agreement, settings = folder.agreement(), folder.settings()
    programs = Programs(tmp_path / "log", tmp_path)
    with ExitStack() as network:
        network.enter_context(programs.runs("-c", COORDINATOR, "run", str(folder.path)))
        for site in SITES:
            network.enter_context(
                agent_behind(site_agent(site, agreement=agreement), tmp_path / f"{site}.sock")
            )
            network.enter_context(supernode(programs, tmp_path, site, settings.gateway.port))
        train = ("-c", COORDINATOR, "train", str(folder.path), str(tmp_path / "round.yaml"))
        watched = network.enter_context(programs.runs(*train, "--json"))
        programs.wait_until(lambda: rounds_done(folder) >= 1)
        watched.send_signal(signal.SIGKILL)
        for program in ("flwr-serverapp", "flower-superlink"):
            os.kill(process_of(program, tmp_path), signal.SIGKILL)
        again = network.enter_context(programs.runs(*train, "--json"))
        programs.wait_until(lambda: again.poll() is not None)
        assert again.returncode == 0, programs.log()
        status = subprocess.run(
            [sys.executable, "-c", COORDINATOR, "status", str(folder.path), "--json"],
            env=programs.environment,
            capture_output=True,
            check=False,
        )
        found = json.loads(status.stdout)
    assert found["servers"]["superlink"]["starts"] == 2
    assert found["servers"]["gateway"] | {"pid": 0} == {"pid": 0, "well": True, "starts": 1}
    assert {each["node"] for each in found["sites"].values()} == {"online"}
    assert found["runs"]["round"]["rounds"] == ROUNDS
    released = Checkpoints(folder.runs / "round" / "checkpoints").newest()
    engine = InProcessEngine([site_agent(site, agreement=agreement) for site in SITES])
    app = folder.runs / "round" / "app"
    expected = Checkpoints(train_run(engine, app, tmp_path / "in-process")).newest()
    assert released is not None
    assert expected is not None
    for record in released[1].records:
        assert set(record.sites.values()) == {"ok"}, programs.log()
    np.testing.assert_array_equal(released[1].model, expected[1].model)


def rounds_done(folder: CoordinatorFolder) -> int:
    paths = sorted((folder.runs / "round" / "checkpoints").glob("round-*.checkpoint"))
    return int(paths[-1].stem.removeprefix("round-")) if paths else 0


def process_of(program: str, folder: Path) -> int:
    """The process among those of this test that runs `program`: other tests run it as well."""
    marker = f"FEDHASH_TEST={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        if marker in environment and any(Path(os.fsdecode(e)).name == program for e in command[:2]):
            return int(process.name)
    pytest.fail(f"no {program} runs")


@contextmanager
def supernode(programs: Programs, folder: Path, site: str, gateway: int) -> Iterator[None]:
    home = folder / site
    with programs.runs(
        *("-m", "fedhash_client.supernode"),
        *("--site-certificate", str(home / "consortium" / "site.pem")),
        *("--site-key", str(home / "secrets" / "tls.key")),
        *("--root-certificates", str(home / "consortium" / "ca.pem")),
        *("--superlink", f"localhost:{gateway}"),
        *("--auth-supernode-private-key", str(home / "secrets" / "supernode.key")),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", f'site="{site}" site-socket="{folder / site}.sock"'),
    ):
        yield


class Programs:
    """Python programs with one log, all of whose processes end with the test."""

    def __init__(self, log: Path, folder: Path) -> None:
        self._log = log
        programs = Path(sys.executable).parent
        self.environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "FEDHASH_TEST": str(folder),  # marks this test's processes
        }

    @contextmanager
    def runs(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        with self._log.open("a") as log:
            program = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        with program:
            try:
                yield program
            finally:
                for end in (signal.SIGTERM, signal.SIGKILL):
                    try:
                        os.killpg(program.pid, end)
                        program.wait(timeout=15)
                    except (ProcessLookupError, subprocess.TimeoutExpired):
                        continue

    def log(self) -> str:
        return self._log.read_text()[-6000:]

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not happened():
            if time.monotonic() > deadline:
                pytest.fail(self.log())
            time.sleep(0.2)
