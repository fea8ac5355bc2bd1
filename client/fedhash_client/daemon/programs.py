"""The programs that a site's SuperNode may start, and the home that Flower finds closed.

A SuperNode starts programs by their names on its PATH: by the kind of run, which the
**coordinator** says, `flwr-clientapp` or `flwr-agentapp`, and by tasks others. So the PATH of the
site's SuperNode holds one folder alone, written at each start of the daemon:

- `flwr-clientapp` is the site's own launcher (`fedhash_client.launcher`), in Python's isolated
  mode: no environment variable and no current folder adds a module.
- `flower-superexec` is Flower's, which starts the others.
- Each other program of Flower's is one that refuses.

And Flower's home has a *file* where it would unpack bundles (`apps`): whatever tries to, fails, and
as root as well, whom the rights of a folder would not stop.

    >>> programs = write_programs(Path("state"))
    >>> subprocess.Popen(programs.python("fedhash_client.supernode"), env=programs.environment)
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fedhash
import fedhash_client
from fedhash.errors import StorageError
from fedhash.offline import FLOWER_SWITCHES, exempt_loopback

__all__ = ["REFUSED_PROGRAMS", "Programs", "write_programs"]

# Flower's other programs; a test holds the list against flwr.supercore.constant.
REFUSED_PROGRAMS = (
    "flwr-agentapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)
# What a program of Flower's needs of this process' environment.
_PASSED_ON = (
    "HTTPS_PROXY",
    "https_proxy",
    "LANG",
    "LC_ALL",
    "NO_PROXY",
    "no_proxy",
    "TZ",
    "TMPDIR",
)

_START_NAME = "start.py"
_START = """\
import runpy, sys

sys.path[:0] = [folder for folder in {folders!r} if folder not in sys.path]
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Programs:
    """What was written.

    Attributes:
        folder: The only entry of the PATH.
        environment: Of the SuperNode.
    """

    folder: Path
    environment: Mapping[str, str]

    def python(self, module: str) -> list[str]:
        """The command that runs a module of this site's code, isolated."""
        return [sys.executable, "-I", str(self.folder / _START_NAME), module]


def write_programs(state_folder: Path) -> Programs:
    """Write the programs and Flower's home below a state folder.

    Raises:
        StorageError: The operating system refuses.
    """
    folder, home = state_folder / "programs", state_folder / "flower"
    try:
        for each in (folder, home):
            each.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():  # nothing but what is written below
            left.unlink()
        ours = [str(Path(package.__path__[0]).parent) for package in (fedhash, fedhash_client)]
        _write(folder / _START_NAME, _START.format(folders=ours), 0o400)
        launch = [sys.executable, "-I", str(folder / _START_NAME), "fedhash_client.launcher"]
        _write_program(folder / "flwr-clientapp", f'exec {shlex.join(launch)} "$@"')
        superexec = shlex.quote(str(Path(sys.executable).parent / "flower-superexec"))
        _write_program(folder / "flower-superexec", f'exec {superexec} "$@"')
        for name in REFUSED_PROGRAMS:
            refusal = "echo this site runs the relay of fedhash and no other app >&2; exit 1"
            _write_program(folder / name, refusal)
        apps = home / "apps"
        if apps.is_symlink() or not apps.is_file():  # a folder would take bundles
            if apps.is_dir() and not apps.is_symlink():
                shutil.rmtree(apps)
            apps.unlink(missing_ok=True)
            _write(apps, "Bundles are not unpacked here.\n", 0o400)
    except OSError as error:
        raise StorageError(error, state_folder) from error
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= FLOWER_SWITCHES
    environment |= {
        "PATH": str(folder),
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    exempt_loopback(environment)
    return Programs(folder, environment)


def _write_program(path: Path, command: str) -> None:
    _write(path, f"#!/bin/sh\n{command}\n", 0o500)


def _write(path: Path, content: str, mode: int) -> None:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
