"""The app folder and the real Flower network release the model that the engine in process does.

The network is a SuperLink behind TLS and three daemons with their SuperNodes, on loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from daemon_process import daemon, free_port, wait_until
from site_folder import make_site
from small_federation import (
    SECURE_AGREEMENT,
    SITES,
    new_coordinator,
    round_settings,
    site_agent,
)

from fedhash.configuration import resolved
from fedhash.enrolment.authority import Authority
from fedhash.errors import ProtocolError
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import RoundCoordinator
from fedhash.rounds.messages import Message
from fedhash.rounds.run import run_round, run_rounds
from fedhash.rounds.site import SiteAgent
from fedhash_client.daemon.control import ask_daemon
from fedhash_server.flower import train_run, write_app_folder
from fedhash_sim.engines.inprocess import InProcessEngine

# a site that is lost in the middle of a round is waited for as long as the round file says
SETTINGS = round_settings(rounds=4, aggregation="secure", timeout_s=60.0)


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
    assert len(asked) == 10 * len(SITES)  # two exchanges a round, and two before the first


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("ray")
def test_network_of_daemons_of_which_one_is_killed(tmp_path: Path) -> None:
    app_folder(tmp_path)
    authority = Authority.generate("test")
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    superlink = f"127.0.0.1:{free_port()}"
    flower = Flower(tmp_path, superlink)
    host, port = superlink.split(":")
    key, certificate = authority.issue("superlink", "superlink", hosts=[host])
    write_key(tmp_path / "superlink.key", key)
    (tmp_path / "superlink.pem").write_bytes(certificate)
    with ExitStack() as network:
        network.enter_context(
            flower.runs(
                *("flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth"),
                *("--ssl-ca-certfile", str(tmp_path / "ca.pem")),
                *("--ssl-certfile", str(tmp_path / "superlink.pem")),
                *("--ssl-keyfile", str(tmp_path / "superlink.key")),
            )
        )
        wait_until(lambda: listens(port), flower.log.read_text)
        files = {
            site: networked_site(tmp_path / site, site, authority, superlink) for site in SITES
        }
        for site, site_file in files.items():
            public = site_file.parent / "supernode.pub"
            flower.run("flwr", "supernode", "register", str(public), "trial", "--name", site)
        daemons = {site: network.enter_context(daemon(file)) for site, file in files.items()}
        run_config = f'folder="{tmp_path / "runs"}"'
        network.enter_context(
            flower.runs("flwr", "run", str(tmp_path / "app"), "trial", "--run-config", run_config)
        )

        def told() -> str:
            logs = [process.log for process in daemons.values()]
            return "".join(log.read_text()[-3000:] for log in [*logs, flower.log])

        victim = daemons[SITES[1]]
        wait_until(lambda: "trained round 2" in victim.log.read_text(), told)
        victim.kill()  # between the mask and the sum of the round, as a rule
        again = network.enter_context(daemon(files[SITES[1]]))
        wait_until(lambda: trained(tmp_path).finished, told)
        for process in (again, daemons["site-0"]):
            assert ask_daemon(process.state / "control.sock", "status")["healthy"], told()
        assert again.end() == 0
    records = trained(tmp_path).state.records
    failed = [record.round_number for record in records if record.failure is not None]
    assert records[-1].failure is None  # with the killed site: a sum needs all three here
    assert len(failed) <= 2  # while it was missing
    np.testing.assert_array_equal(trained(tmp_path).state.model, model_without(failed))


def model_without(failed: list[int]) -> np.ndarray:
    """What the engine in process releases when these rounds lack a site."""
    sites = [site_agent(site, agreement=SECURE_AGREEMENT) for site in SITES]
    coordinator = new_coordinator(SETTINGS)
    for number in range(1, SETTINGS.rounds + 1):
        engine = InProcessEngine(sites[1:] if number in failed else sites)
        with suppress(ProtocolError):
            run_round(coordinator, engine)
    return coordinator.state.model


def networked_site(folder: Path, site: str, authority: Authority, superlink: str) -> Path:
    """A site's folder with all keys and certificates."""
    ports = {"health_port": free_port(), "supernode_port": free_port()}
    site_file = make_site(folder, site, daemon=ports)
    key, certificate = authority.issue("site", site)
    write_key(folder / "tls.key", key)
    (folder / "site.pem").write_bytes(certificate)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    node = ec.generate_private_key(ec.SECP384R1())
    write_key(
        folder / "supernode.key",
        node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    )
    (folder / "supernode.pub").write_bytes(
        node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    )
    content = yaml.safe_load(site_file.read_text())
    content["network"] |= {
        "superlink": superlink,
        "ca": "ca.pem",
        "certificate": "site.pem",
        "key": "tls.key",
        "supernode_key": "supernode.key",
    }
    site_file.write_text(yaml.safe_dump(content))
    return site_file


def write_key(path: Path, pem: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(pem)


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
            f'[superlink.trial]\naddress = "{superlink}"\n'
            f'root-certificates = "{folder / "ca.pem"}"\n'
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

    def run(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(Path(sys.executable).parent / command), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

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


def listens(port: str) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
