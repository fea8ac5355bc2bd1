"""Sites in Flower's simulation runtime. Each test starts a Ray of its own, which takes seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from small_federation import outcomes

from fedhash.errors import DataError, ProtocolError
from fedhash.rounds.engine import Engine, SiteFailure
from fedhash.rounds.messages import Message
from fedhash_sim.engines.flower import run_in_flower

# two Rays at once would only wait for each other
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

MARK = "FEDHASH_TEST_MARK"


class CountingSite:
    """Answers with how often it was asked and where it lives."""

    max_message_bytes = 1 << 20

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0

    def handle(self, message: Message) -> Message:
        if message.kind == "crash":
            raise ZeroDivisionError("the site has a bug")
        if message.kind == "sleep":
            time.sleep(3600)
        self.asked += 1
        return Message(
            "count",
            {
                "site": self.name,
                "asked": self.asked,
                "process": os.getpid(),
                "node": ray.get_runtime_context().get_node_id(),
                "threads": torch.get_num_threads(),
            },
            {},
        )


def missing_data() -> CountingSite:
    raise DataError("there is no manifest")


def sites(count: int) -> dict[str, Callable[[], CountingSite]]:
    return {f"site-{i}": partial(CountingSite, f"site-{i}") for i in range(count)}


def marked_processes(mark: str) -> list[str]:
    """Command lines of all processes that inherited the mark from this test."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended, is another user's, or is no process
            continue
    return found


@pytest.fixture(autouse=True)
def no_process_stays_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    deadline = time.monotonic() + 20  # the last workers of Ray end by themselves
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def ask(engine: Engine, **kinds: str) -> dict[str, Message | SiteFailure]:
    """One exchange; the keywords name sites that are asked for something else than a count."""
    requests = {
        site: Message(kinds.get(site.replace("-", "_"), "count"), {}, {}) for site in engine.sites
    }
    timeout_s = 0.5 if "sleep" in kinds.values() else 60
    return outcomes(engine.ask("count", requests, timeout_s))


def test_sites_keep_their_state_and_failures_stay_with_their_site() -> None:
    def run(engine: Engine) -> list[dict[str, Message | SiteFailure]]:
        return [ask(engine), ask(engine, site_1="crash"), ask(engine), ask(engine, site_1="sleep")]

    first, crash, third, late = run_in_flower(run, sites(3))

    headers = [{s: m.header for s, m in answers.items()} for answers in (first, third)]
    assert [h["site-0"]["asked"] for h in headers] == [1, 3]
    assert [h["site-1"]["asked"] for h in headers] == [1, 2]
    for name in ("site-0", "site-1", "site-2"):
        before, after = headers[0][name], headers[1][name]
        assert before["site"] == after["site"] == name
        assert before["process"] == after["process"] != os.getpid()
        assert before["threads"] == 1
    assert len({h["process"] for h in headers[0].values()}) == 2
    assert crash["site-1"] == SiteFailure(
        "no_answer", "site 'site-1' crashed: ZeroDivisionError('the site has a bug')"
    )
    assert isinstance(crash["site-2"], Message)
    # the sleeping site would answer in an hour; the run did not wait for it
    assert late["site-1"] == SiteFailure("late", "no answer within 0.5 s")
    assert isinstance(late["site-0"], Message)


def test_a_ray_of_several_nodes_is_joined_and_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        for _ in range(2):  # the first run has left it as it was
            answers = run_in_flower(ask, sites(3))
            headers = [each.header for each in answers.values() if isinstance(each, Message)]
            assert [each["asked"] for each in headers] == [1, 1, 1]
            assert len({each["node"] for each in headers}) == 2
    finally:
        cluster.shutdown()
    with pytest.raises(ProtocolError, match=r"RAY_ADDRESS is .*, where no Ray listens"):
        run_in_flower(ask, sites(1))


class TrialError(Exception):
    pass


def test_errors_reach_the_caller_with_their_type_and_another_run_can_follow() -> None:
    def fail(engine: Engine) -> None:
        raise TrialError(f"after {len(ask(engine))} answers")

    with pytest.raises(TrialError, match="after 1 answers"):
        run_in_flower(fail, sites(1), processes=1)
    with pytest.raises(DataError, match="there is no manifest"):
        run_in_flower(ask, sites(1) | {"site-1": missing_data})


INTERRUPTED = """

from test_flower_simulation import Message, ask, run_in_flower, sites
def run(engine):
    ask(engine)
    print("running", flush=True)
    outcomes(engine.ask("sleep", {"site-0": Message("sleep", {}, {})}, 3600))
run_in_flower(run, sites(2))
"""


def test_ctrl_c_ends_everything() -> None:
    paths = [str(Path(__file__).parent), *sys.path]
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        os.killpg(program.pid, signal.SIGINT)  # what a terminal does
        _, errors = program.communicate(timeout=120)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
