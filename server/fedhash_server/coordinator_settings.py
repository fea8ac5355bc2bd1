"""The coordinator's own file: who it is, and where its servers listen.

>>> read_settings(Path("coordinator.yaml"), CoordinatorSettings).gateway.port
9443
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from fedhash.configuration import Settings
from fedhash.search.terms import RouterLimits

__all__ = ["CoordinatorSettings", "GatewaySettings", "RouterSettings", "SuperLinkSettings"]


def _check_address(address: str) -> str:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(
            f"{address!r} is no IP address; write that of the interface, such as 0.0.0.0 for all"
        ) from None
    return address


_ListenAddress = Annotated[str, AfterValidator(_check_address)]
_Port = Annotated[int, Field(ge=1, le=65535)]


class GatewaySettings(Settings):
    """The door for training: nginx, which passes ten requests of sites to the SuperLink.

    Attributes:
        listen: IP address of the interface.
        port: Sites name it under `network.superlink`.
        connections_per_site: At once; a SuperNode needs a few.
    """

    listen: _ListenAddress = "0.0.0.0"  # noqa: S104 - sites reach it from outside
    port: _Port = 9443
    connections_per_site: int = Field(default=64, ge=1, le=10_000)


class RouterSettings(Settings):
    """The door for searches and releases.

    Attributes:
        listen: IP address of the interface.
        port: Sites name it under `network.router`.
        health_port: Of `/health` and `/metrics`, on loopback.
        limits: What it takes on.
    """

    listen: _ListenAddress = "0.0.0.0"  # noqa: S104 - sites reach it from outside
    port: _Port = 9444
    health_port: _Port = 9446
    limits: RouterLimits = RouterLimits()


class SuperLinkSettings(Settings):
    """Flower's server. It listens on loopback only, for it asks local users for no credential.

    Attributes:
        port: Of all its interfaces.
    """

    port: _Port = 9445


class CoordinatorSettings(Settings):
    """The coordinator.

    Attributes:
        consortium: Its name, as in the agreement and in all certificates.
        host: Host name or address under which sites reach this machine.
        gateway: The door for training.
        router: The door for searches and releases.
        superlink: Flower's server, on loopback.
        nginx: The program, a name on the PATH or a file.
    """

    consortium: str = Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")
    host: str = Field(min_length=1, max_length=253)
    gateway: GatewaySettings = GatewaySettings()
    router: RouterSettings = RouterSettings()
    superlink: SuperLinkSettings = SuperLinkSettings()
    nginx: str = Field(default="nginx", min_length=1)

    @model_validator(mode="after")
    def _check_ports_differ(self) -> CoordinatorSettings:
        ports = {
            "gateway.port": self.gateway.port,
            "router.port": self.router.port,
            "router.health_port": self.router.health_port,
            "superlink.port": self.superlink.port,
        }
        names: dict[int, list[str]] = {}
        for name, port in ports.items():
            names.setdefault(port, []).append(name)
        if shared := [f"{' and '.join(each)} ({port})" for port, each in names.items() if each[1:]]:
            raise ValueError(f"one port for {'; '.join(shared)}; give each its own")
        return self
