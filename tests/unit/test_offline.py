from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fedhash.offline import OFFLINE_SWITCHES


@pytest.mark.parametrize("package", ["fedhash_client", "fedhash_server", "fedhash_sim"])
def test_importing_a_command_switches_reports_and_downloads_off(package: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in OFFLINE_SWITCHES}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = f"import json, os, {package}; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert OFFLINE_SWITCHES.items() <= json.loads(done.stdout).items()
