"""What the daemon needs of the machine: free ports, one version of Flower, addresses to go to."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from fedhash.flower_version import check_flower_version
from fedhash_client.checks.addresses import address_fault
from fedhash_client.checks.findings import CheckedSite, Findings

__all__ = ["check_machine"]


def check_machine(site: CheckedSite, found: Findings) -> None:
    """Look at ports, programs and addresses; nothing is connected to."""
    network, daemon = site.settings.network, site.settings.daemon
    if network is not None:
        with found.gathered(Path(sys.prefix)):
            check_flower_version()
        for name in ("superlink", "router"):
            if fault := address_fault(getattr(network, name)):
                found.add_at(site.file, ("network", name), fault)
        if network.superlink == network.router:
            message = "this is the address of network.superlink as well; the router has its own"
            found.add_at(site.file, ("network", "router"), f"{message} port, 9444 by default")
    if site.settings.state is None:
        return  # no daemon
    ports = {"health_port": daemon.health_port}
    if network is not None:
        ports["supernode_port"] = daemon.supernode_port
    if len(set(ports.values())) < len(ports):
        found.add_at(
            site.file,
            ("daemon", "supernode_port"),
            f"health_port and supernode_port are both {daemon.health_port}; choose another for one",
        )
    elif not site.running:  # else they are taken by this very daemon
        for name, port in ports.items():
            if fault := _bind_fault(port):
                message = f"the port 127.0.0.1:{port} cannot be had ({fault}); end what has it"
                found.add_at(
                    site.file,
                    ("daemon", name),
                    f"{message} (ss -ltnp shows which program), or choose another daemon.{name}",
                )


def _bind_fault(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # as the servers do: a connection that has ended does not hold its port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return None
