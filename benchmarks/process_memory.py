"""Seconds and peak memory of a command together with every process that it starts. Linux only.

Memory is the sum over the process tree of the proportional set size: a page that n processes share
counts one n-th in each (PSS, proc_pid_smaps(5)). A process whose `smaps_rollup` may not be read
counts with its resident set, where shared pages count fully, so the sum is then an upper bound.
Peaks shorter than the time between two samples are missed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

__all__ = ["memory_bytes", "process_tree", "resident_bytes", "run_measured"]

_INTERVAL_S = 0.1
_PROC = Path("/proc")


def run_measured(command: Sequence[str]) -> tuple[float, int]:
    """Run a command to its end; what it prints goes where this process prints.

    Returns:
        Seconds, and the largest sampled sum of the tree's memory in bytes.

    Raises:
        CalledProcessError: The command failed.
        OSError: The command cannot be started, or this is not Linux.
    """
    if sys.platform != "linux":
        raise OSError("memory is read from /proc, which only Linux has")
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:  # noqa: S603 - the benches' own commands
        while process.poll() is None:
            peak = max(peak, sum(map(memory_bytes, process_tree(process.pid))))
            time.sleep(_INTERVAL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, peak


def process_tree(root: int) -> list[int]:
    """The ids of a process and of all that descend from it."""
    children = defaultdict(list)
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            text = stat.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        # Behind the name, which stands in parentheses and may hold any byte: state and parent.
        parent = text.rpartition(b")")[2].split()[1]
        children[int(parent)].append(int(stat.parent.name))
    tree = [root]
    for process in tree:  # grows on the way
        tree += children[process]
    return tree


def memory_bytes(process: int) -> int:
    """Proportional set size, or the resident set where that cannot be read; 0 after its end."""
    for read in (_proportional_bytes, resident_bytes):
        try:
            return read(process)
        except OSError:
            continue
    return 0


def resident_bytes(process: int) -> int:
    """Resident set size.

    Raises:
        OSError: There is no such process, or this is not Linux.
    """
    pages = (_PROC / str(process) / "statm").read_bytes().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _proportional_bytes(process: int) -> int:
    rollup = (_PROC / str(process) / "smaps_rollup").read_bytes()
    found = re.search(rb"^Pss: +(\d+) kB", rollup, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0  # it is empty at the process's end
