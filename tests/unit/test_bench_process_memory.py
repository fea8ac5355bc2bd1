"""The sampled peak of a process tree, on children that allocate a known amount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.process_memory import memory_bytes, process_tree, resident_bytes, run_measured

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

# The child is started while the parent holds its own, and both stay for many samples.
PARENT_AND_CHILD = """
import subprocess, sys
mine = b"p" * (100 * 2**20)
subprocess.run([sys.executable, "-c", "x = b'c' * (60 * 2**20); import time; time.sleep(1)"])
"""
# The resident set would count the pages that a fork shares twice.
FORK = """
import os, time
mine = b"p" * (100 * 2**20)
if os.fork() == 0:
    time.sleep(1)
    os._exit(0)
os.wait()
"""


def test_the_peak_holds_the_children_too() -> None:
    seconds, peak = run_measured([sys.executable, "-c", PARENT_AND_CHILD])
    assert 160 * MIB < peak < 220 * MIB  # the rest is two interpreters
    assert seconds > 0


@pytest.mark.skipif(
    not os.access("/proc/self/smaps_rollup", os.R_OK), reason="the kernel shows no smaps_rollup"
)
def test_shared_pages_count_once() -> None:
    _, peak = run_measured([sys.executable, "-c", FORK])
    assert 100 * MIB < peak < 150 * MIB


def test_a_command_that_fails_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(FileNotFoundError):
        run_measured([str(tmp_path / "no-such-program")])


def test_a_tree_holds_descendants_whatever_they_are_called(tmp_path: Path) -> None:
    odd = tmp_path / ") R 1 (\n"  # what stands behind a name must not be read from it
    odd.symlink_to("/bin/sh")
    command = [odd, "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shell:
        try:
            assert shell.stdout
            grandchild = int(shell.stdout.readline())
            assert {shell.pid, grandchild} <= set(process_tree(os.getpid()))
            assert set(process_tree(shell.pid)) == {shell.pid, grandchild}
            assert 0 < memory_bytes(shell.pid) <= resident_bytes(shell.pid)
            os.kill(grandchild, signal.SIGKILL)
        finally:
            os.kill(shell.pid, signal.SIGKILL)  # `shell.kill` would wait for a shell that has ended
        os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT)
        assert memory_bytes(shell.pid) == 0  # ended, but not yet waited for
    assert process_tree(shell.pid) == [shell.pid]
    assert memory_bytes(shell.pid) == 0
