"""The app folder and the real Flower network release the model that the engine in process does.

The network is a SuperLink, three SuperNodes and three daemons behind Unix sockets, on loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_federation import (
    SECURE_AGREEMENT,
    SITES,
    new_coordinator,
    round_settings,
    site_agent,
)

from fedhash.configuration import resolved
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import RoundCoordinator
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash_client.site_socket import read_frame, write_frame
from fedhash_server.flower import train_run, write_app_folder
from fedhash_sim.engines.inprocess import InProcessEngine

SETTINGS = round_settings(rounds=3, aggregation="secure")


@pytest.fixture(scope="module")
def released() -> np.ndarray:
    """The model that the run releases in process."""
    return run_rounds(
        new_coordinator(SETTINGS),
        InProcessEngine([site_agent(s, agreement=SECURE_AGREEMENT) for s in SITES]),
    )


def test_app_folder_in_process(
    released: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_folder(tmp_path)
    asked: list[str] = []
    handle = SiteAgent.handle

    def noting(agent: SiteAgent, request: Message) -> Message:
        asked.append(agent.site)
        return handle(agent, request)

    monkeypatch.setattr(SiteAgent, "handle", noting)
    engine = InProcessEngine([site_agent(site, agreement=SECURE_AGREEMENT) for site in SITES])
    train_run(engine, tmp_path / "app", tmp_path / "runs")
    np.testing.assert_array_equal(trained(tmp_path).state.model, released)
    train_run(engine, tmp_path / "app", tmp_path / "runs")  # finished: nothing is asked again
    assert len(asked) == 8 * len(SITES)  # two exchanges a round, and two before the first


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_network_of_supernodes(released: np.ndarray, tmp_path: Path) -> None:
    app_folder(tmp_path)
    with ExitStack() as network:
        superlink = f"127.0.0.1:{free_port()}"
        flower = Flower(tmp_path, superlink)
        host, port = superlink.split(":")
        network.enter_context(
            flower.runs("flower-superlink", "--insecure", "--host", host, "--port", port)
        )
        wait_until(lambda: listens(port), flower)
        for site in SITES:
            network.enter_context(
                daemon(site_agent(site, agreement=SECURE_AGREEMENT), tmp_path / f"{site}.sock")
            )
            node_config = f'site="{site}" site-socket="{tmp_path / site}.sock"'
            network.enter_context(
                flower.runs(
                    *("flower-supernode", "--insecure", "--superlink", superlink),
                    *("--host", host, "--port", str(free_port()), "--node-config", node_config),
                )
            )
        run_config = f'folder="{tmp_path / "runs"}"'
        network.enter_context(
            flower.runs("flwr", "run", str(tmp_path / "app"), "trial", "--run-config", run_config)
        )
        wait_until(lambda: trained(tmp_path).finished, flower)
    assert_clean(trained(tmp_path))
    np.testing.assert_array_equal(trained(tmp_path).state.model, released)


def assert_clean(coordinator: RoundCoordinator) -> None:
    records = coordinator.state.records
    assert [record.failure for record in records] == [None] * SETTINGS.rounds
    assert all(set(record.sites.values()) == {"ok"} for record in records)


def app_folder(folder: Path) -> None:
    paths = (folder / "agreement.yaml", folder / "round.yaml", folder / "run.yaml")
    run = f"{{run_id: run-1, sites: [{', '.join(SITES)}], seed: 7}}"
    for path, text in zip(
        paths, (resolved(SECURE_AGREEMENT), resolved(SETTINGS), run), strict=True
    ):
        path.write_text(text)
    write_app_folder(folder / "app", *paths)


def trained(folder: Path) -> RoundCoordinator:
    """The coordinator as the app's last checkpoint left it."""
    coordinator = new_coordinator(SETTINGS)
    checkpoints = Checkpoints(folder / "runs" / "run-1" / "checkpoints")
    coordinator.state = checkpoints.load(coordinator.plan) or coordinator.state
    return coordinator


class Flower:
    """Flower's own commands, with a home and logs inside `folder`."""

    def __init__(self, folder: Path, superlink: str) -> None:
        self.log = folder / "flower.log"
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink.trial]\naddress = "{superlink}"\ninsecure = true\n'
        )
        programs = str(
            Path(sys.executable).parent
        )  # flower-superexec, also outside an activated venv
        self._environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    @contextmanager
    def runs(self, command: str, *arguments: str) -> Iterator[None]:
        with self.log.open("a") as log:
            program = subprocess.Popen(
                [str(Path(sys.executable).parent / command), *arguments],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        with program:
            try:
                yield
            finally:
                for end in (signal.SIGTERM, signal.SIGKILL):  # its children as well
                    try:
                        os.killpg(program.pid, end)
                        program.wait(timeout=10)
                    except (ProcessLookupError, subprocess.TimeoutExpired):
                        continue


@contextmanager
def daemon(agent: SiteAgent, path: Path) -> Iterator[None]:
    """A site's long-lived half: answers one frame for each connection."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # shut down
                    return
                with connection:
                    request = Message.decode(
                        read_frame(connection), max_bytes=agent.max_message_bytes
                    )
                    write_frame(connection, agent.handle(request).encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: str) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def wait_until(happened: Callable[[], bool], flower: Flower) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(flower.log.read_text()[-5000:])
        time.sleep(0.2)
