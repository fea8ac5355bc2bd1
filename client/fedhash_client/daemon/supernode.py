"""The site's SuperNode as a service of the daemon.

>>> if daemon.settings.network is not None:
...     daemon.add(supernode_service(daemon.settings, daemon.settings.network, state_folder))
"""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

from fedhash.flower_version import check_flower_version
from fedhash_client.daemon.paths import RELAY_SOCKET
from fedhash_client.daemon.programs import write_programs
from fedhash_client.daemon.supervised import Supervised
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.settings import SiteSettings
from fedhash_process.supervisor import Child, Pace

__all__ = ["supernode_service"]

_ANSWER_S = 5.0
# proof_s: one that the SuperLink refuses has its port open for some seconds before it ends
_PACE = Pace(
    longest_wait_s=15,
    good_life_s=120,
    probe_every_s=5,
    proof_s=15,
    start_s=60,
    longest_silence_s=15,
)


def supernode_service(
    settings: SiteSettings, network: NetworkSettings, state_folder: Path
) -> Supervised:
    """The service `supernode`, which connects to the coordinator's gateway.

    Raises:
        ProtocolError: Another Flower is installed than the one that was tried.
        StorageError: Its programs cannot be written.
    """
    check_flower_version()
    programs = write_programs(state_folder)
    command = [
        *programs.python("fedhash_client.supernode"),
        *("--site-certificate", str(network.certificate), "--site-key", str(network.key)),
        *("--root-certificates", str(network.ca), "--superlink", network.superlink),
        *("--auth-supernode-private-key", str(network.supernode_key)),
        *("--host", "127.0.0.1", "--port", str(settings.daemon.supernode_port)),
        *("--node-config", _node_config(settings.name, state_folder / RELAY_SOCKET)),
        *("--node-file", str(state_folder / "flower" / "node")),
    ]
    return Supervised(
        Child(
            "supernode",
            tuple(command),
            partial(_answers, settings.daemon.supernode_port),
            programs.environment,
            state_folder / "flower",
            logged=True,
            pace=_PACE,
        )
    )


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def _node_config(site: str, path: Path) -> str:
    return f"site={_toml_text(site)} site-socket={_toml_text(str(path))}"


def _toml_text(text: str) -> str:
    """A TOML string; Flower splits the whole at blanks and equality signs outside of quotes."""
    escaped = "".join(
        f"\\u{ord(each):04x}" if ord(each) < 32 or each in "\"'\\" else each for each in text
    )
    return f'"{escaped}"'
