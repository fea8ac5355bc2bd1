"""The launcher, really run by a SuperNode's own API against app bundles of every kind.

Each hostile bundle leaves a mark when any of its code runs. Flower's own `flwr-clientapp` is run as
well, to show that the marks can be left.
"""

from __future__ import annotations

import hashlib
import io
import os
import py_compile
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from daemon_process import PROGRAMS, free_port, wait_until
from flwr.app import Array, ArrayRecord, Context, Message, Metadata, RecordDict
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from fedhash.bundle import BUNDLE_NAMES, check_bundle
from fedhash.errors import BundleError
from fedhash_client.daemon.programs import REFUSED_PROGRAMS, Programs, write_programs
from fedhash_client.site_socket import read_frame, write_frame

RUN_ID, NODE_ID = 12, 7
METADATA = """\
[project]
name = "fedhash-app"
version = "0.1.0"
[tool.flwr.app]
publisher = "fedhash"
[tool.flwr.app.components]
serverapp = "fedhash_server.flower:app"
clientapp = "fedhash_client.flower:app"
"""
HARMLESS = {
    "pyproject.toml": METADATA,
    "configs/agreement.yaml": "name: a",
    "configs/round.yaml": "rounds: 1",
    "configs/run.yaml": "run_id: r",
}


def bundle(files: dict[str, str | bytes], unlisted: dict[str, str | bytes] | None = None) -> bytes:
    """As Flower makes it; `unlisted` files are not in its list of contents."""
    contents = {name: c.encode() if isinstance(c, str) else c for name, c in files.items()}
    listed = "\n".join(
        f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}"
        for name, content in sorted(contents.items())
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*contents.items(), *(unlisted or {}).items()):
            archive.writestr(name, content)
        archive.writestr(".info/CONTENT", listed)
    return buffer.getvalue()


def hostile_bundles(folder: Path) -> dict[str, bytes]:
    """Bundles that leave the file `mark` when code of them runs in Flower's own program."""
    leave = f"open({str(folder / 'mark')!r}, 'w').close()\n"
    source = folder / "code.py"
    source.write_text(leave)
    compiled = Path(py_compile.compile(str(source), str(folder / "code.pyc"))).read_bytes()
    foreign = METADATA.replace("fedhash_client.flower:app", "configs.evil:app")
    return {
        "shadowing package": bundle(HARMLESS | {"fedhash_client/__init__.py": leave}),
        "lone pyc": bundle(HARMLESS | {"fedhash_client.pyc": compiled}),
        "unlisted file": bundle(dict(HARMLESS), {"fedhash_client/__init__.py": leave}),
        "hijacked helper": bundle(HARMLESS | {"fedhash.py": leave}),
        "foreign component": bundle(
            HARMLESS | {"pyproject.toml": foreign, "configs/evil.py": leave}
        ),
    }


class SuperNode:
    """The API of a SuperNode with one message to work on, and no SuperLink."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._factory = NodeStateFactory(ObjectStoreFactory())
        self.state: NodeState = self._factory.state()
        self.state.set_node_id(NODE_ID)
        config = uvicorn.Config(
            create_app(state_factory=self._factory),
            host="127.0.0.1",
            port=port,
            log_level="error",
            ws="none",
        )
        self.server = uvicorn.Server(config)

    def give(self, fab: bytes, socket_path: Path) -> str:
        """Store a message for a run of the bundle, as a SuperNode does: the task's token."""
        content = RecordDict(
            {"message": ArrayRecord({"bytes": Array("uint8", (3,), "fedhash", b"ask")})}
        )
        metadata = Metadata(
            run_id=RUN_ID,
            message_id="",
            src_node_id=1,
            dst_node_id=NODE_ID,
            reply_to_message_id="",
            group_id="1",
            created_at=time.time(),
            ttl=60.0,
            message_type="query.relay",
        )
        _insert_message(
            Message(content=content, metadata=metadata),
            self.state,
            self._factory.state().object_store,
        )
        run = Run.create_empty(RUN_ID)
        run.fab_id, run.fab_version = "fedhash/fedhash-app", "0.1.0"
        run.fab_hash = hashlib.sha256(fab).hexdigest()
        node_config = {"site": "site-0", "site-socket": str(socket_path)}
        context = Context(RUN_ID, NODE_ID, node_config, RecordDict(), {})
        self.state.set_run_series_context(run.series_id, context)
        self.state.store_run(run)
        self.state.store_fab(Fab(run.fab_hash, fab, {}))
        task = self.state.create_task(TaskType.CLIENT_APP, RUN_ID, run.fab_hash)
        assert task is not None
        token = self.state.claim_task(task)
        assert token is not None
        return token

    def reply(self) -> Message | None:
        replies = self.state.get_messages_legacy(is_reply=True)
        return replies[0] if replies else None


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    made = SuperNode(free_port())
    thread = threading.Thread(target=made.server.run, daemon=True)
    thread.start()
    wait_until(lambda: made.server.started)
    yield made
    made.server.should_exit = True
    thread.join()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return write_programs(tmp_path)


@contextmanager
def site_that_answers(path: Path) -> Iterator[list[bytes]]:
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(60)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(read_frame(connection))
                write_frame(connection, b"answer")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def run_program(
    program: Path, supernode: SuperNode, token: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(program),
            *("--runtime-api-address", supernode.address, "--token", token),
            "--insecure",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_relay_answers_a_bundle_of_configuration(
    supernode: SuperNode, programs: Programs, tmp_path: Path
) -> None:
    with site_that_answers(tmp_path / "s") as asked:
        token = supernode.give(bundle(dict(HARMLESS)), tmp_path / "s")
        done = run_program(
            programs.folder / "flwr-clientapp", supernode, token, dict(programs.environment)
        )
    assert done.returncode == 0, done.stderr
    assert asked == [b"ask"]
    reply = supernode.reply()
    assert reply is not None
    assert not reply.has_error()
    assert (tmp_path / "flower" / "apps").is_file()  # nothing was unpacked


@pytest.mark.parametrize(
    "kind",
    ["shadowing package", "lone pyc", "unlisted file", "hijacked helper", "foreign component"],
)
def test_no_code_of_a_hostile_bundle_runs(
    supernode: SuperNode, programs: Programs, tmp_path: Path, kind: str
) -> None:
    fab = hostile_bundles(tmp_path)[kind]
    token = supernode.give(fab, tmp_path / "s")
    environment = dict(programs.environment) | {"PYTHONPATH": str(tmp_path)}
    done = run_program(programs.folder / "flwr-clientapp", supernode, token, environment)
    assert not (tmp_path / "mark").exists(), done.stderr
    reply = supernode.reply()
    assert reply is not None
    assert "the app bundle" in str(reply.error.reason)


@pytest.mark.parametrize("kind", ["lone pyc", "foreign component"])
def test_in_flowers_own_program_it_would(
    supernode: SuperNode, programs: Programs, tmp_path: Path, kind: str
) -> None:
    token = supernode.give(hostile_bundles(tmp_path)[kind], tmp_path / "s")
    open_home = dict(programs.environment) | {"FLWR_HOME": str(tmp_path / "home")}
    run_program(PROGRAMS / "flwr-clientapp", supernode, token, open_home)
    assert (tmp_path / "mark").exists()


def test_the_closed_home_stops_even_flowers_own_program(
    supernode: SuperNode, programs: Programs, tmp_path: Path
) -> None:
    fab = hostile_bundles(tmp_path)["shadowing package"]
    token = supernode.give(fab, tmp_path / "s")
    run_program(PROGRAMS / "flwr-clientapp", supernode, token, dict(programs.environment))
    assert not (tmp_path / "mark").exists()
    reply = supernode.reply()
    assert reply is not None
    assert reply.has_error()


def test_another_flower_is_refused_before_any_of_it_runs(
    programs: Programs, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "flwr").mkdir(parents=True)
    (other / "flwr" / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    (other / "flwr-1.42.0.dist-info").mkdir()
    (other / "flwr-1.42.0.dist-info" / "METADATA").write_text("Name: flwr\nVersion: 1.42.0\n")
    start = programs.folder / "start.py"
    code = start.read_text().replace(
        "import runpy", f"import sys; sys.path[:0] = [{str(other)!r}]\nimport runpy"
    )
    (tmp_path / "start.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            str(tmp_path / "start.py"),
            "fedhash_client.launcher",
            "--token",
            "t",
        ],
        env=dict(programs.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Flower 1.42.0 is installed" in done.stderr
    assert not (tmp_path / "mark").exists()


def test_dependencies_are_installed_for_nobody(programs: Programs) -> None:
    done = subprocess.run(
        [str(programs.folder / "flwr-clientapp"), "--allow-runtime-dependency-installation"],
        env=dict(programs.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "installs nothing" in done.stderr


def test_every_other_program_that_a_supernode_could_start_refuses(programs: Programs) -> None:
    could = set(TASK_TYPE_TO_COMMAND.values())
    assert set(REFUSED_PROGRAMS) == could - {"flwr-clientapp"}
    assert {path.name for path in programs.folder.iterdir()} == could | {
        "flower-superexec",
        "start.py",
    }
    assert programs.environment["PATH"] == str(programs.folder)
    for name in REFUSED_PROGRAMS:
        done = subprocess.run(
            [name, "--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"],
            env=dict(programs.environment),
            executable=str(programs.folder / name),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "no other app" in done.stderr) == (1, True)


def test_programs_are_written_anew_and_nothing_else_stays(tmp_path: Path) -> None:
    written = write_programs(tmp_path)
    (written.folder / "flwr-agentapp").unlink()
    (written.folder / "planted").write_text("#!/bin/sh\n")
    again = write_programs(tmp_path)
    assert not (again.folder / "planted").exists()
    assert os.access(again.folder / "flwr-agentapp", os.X_OK)


@pytest.mark.parametrize("planted", ["folder", "link to a folder", "dangling link"])
def test_a_home_that_was_open_is_closed(tmp_path: Path, planted: str) -> None:
    apps, elsewhere = tmp_path / "flower" / "apps", tmp_path / "elsewhere"
    apps.parent.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if planted == "folder":
        apps.mkdir()
        (apps / "bundle.py").touch()
    else:
        apps.symlink_to(elsewhere if planted == "link to a folder" else tmp_path / "nothing")
    write_programs(tmp_path)
    assert apps.is_file()
    assert not apps.is_symlink()
    assert (elsewhere / "kept").exists()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 no archive", "cannot be read"),
        (bytes((10 << 20) + 1), "bytes"),
        (bundle({}), "cannot be read"),
        (bundle(HARMLESS | {"configs/": b""}), "holds 'configs/'"),
        (bundle(HARMLESS | {"configs/../evil.py": "x"}), "holds 'configs/../evil.py'"),
        (bundle(HARMLESS | {"/etc/passwd": "x"}), "holds"),
        (bundle(HARMLESS | {"pyproject.toml": "x = " + "[" * 20_000}), "nested|cannot be read"),
        (bundle(HARMLESS | {"pyproject.toml": "# " + "x" * 70_000}), "larger"),
        (bundle(HARMLESS | {"pyproject.toml": b"\xff"}), "cannot be read"),
        (bundle(HARMLESS | {"pyproject.toml": "[tool]\nflwr = 3"}), "components None"),
        (bundle(HARMLESS | {"pyproject.toml": METADATA + 'agentapp = "a:b"\n'}), "components"),
    ],
)
def test_what_is_no_configuration_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(BundleError, match=fault):
        check_bundle(content)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_one_name_twice_is_refused() -> None:
    with pytest.raises(BundleError, match="twice"):
        check_bundle(bundle(dict(HARMLESS), {"configs/run.yaml": "other"}))


def test_configuration_passes() -> None:
    check_bundle(bundle(dict(HARMLESS)))
    assert set(HARMLESS) < BUNDLE_NAMES
