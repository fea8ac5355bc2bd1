"""A killed process leaves every committed batch and no part of another."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fedhash.index import Archive, site_handle
from fedhash.search import Query

BATCH = 4000
SECRET = b"0123456789abcdef"
INGEST = """
import sys
from pathlib import Path
from fedhash.index import Archive, Entry, site_handle

path, batch, size, secret = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with Archive(path, "r1", 64) as archive:
    while True:
        archive.add(
            [
                Entry(site_handle(secret.encode(), f"{batch}/{n}"), f"p{n}", "image", bytes(8))
                for n in range(size)
            ]
        )
        print(batch, flush=True)
        batch += 1
"""


def test_kill_9_while_adding(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    waits = random.Random(0)
    stored = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", INGEST, str(path), str(stored), str(BATCH), SECRET.decode()],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        committed = int(child.stdout.readline())  # at least one batch, then somewhere in another
        time.sleep(waits.uniform(0, 0.1))
        child.kill()
        committed = max([committed, *map(int, child.stdout.read().split())])
        child.stdout.close()
        child.wait()

        with Archive(path, "r1", 64) as archive:
            stored, rest = divmod(archive.count(), BATCH)
            assert rest == 0
            # The last batch may have been committed before its number was printed.
            assert stored in (committed + 1, committed + 2)
            everything = archive.search(
                Query("r1", "image", bytes(8), np.zeros(64, dtype=np.int16), k=archive.count())
            )
            assert {match.handle for match in everything} == {
                site_handle(SECRET, f"{batch}/{n}") for batch in range(stored) for n in range(BATCH)
            }
