"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("fedhash", deadline=None)  # no test asserts a time
settings.load_profile("fedhash")
torch.set_num_threads(1)  # the suite runs one worker a core
# A suite that runs in the background inherits that Ctrl-C is ignored, and so would the programs
# whose answer to Ctrl-C it tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets, named by FEDHASH_DATA; the test skips without it."""
    folder = os.environ.get("FEDHASH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data sets are absent: set FEDHASH_DATA to the folder that holds them")
    return Path(folder)
