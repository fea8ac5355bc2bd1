"""A router in a thread and the members that talk to it over loopback.

>>> with RouterThread(place.folder) as router: ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.router_member import member_network
from fedhash.agreement import Agreement
from fedhash.configuration import resolved
from fedhash_client.network_settings import NetworkSettings
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.coordinator_settings import RouterSettings
from fedhash_server.router import RouterServer
from tests.search_consortium import SITES, agreement, identity


class Place:
    """A coordinator's folder with enrolled sites, whose keys stand beside it."""

    def __init__(self, path: Path, terms: Agreement | None = None) -> None:
        self.agreement = terms or agreement()
        self.path = path
        self.folder = CoordinatorFolder(path / "coordinator")
        make_coordinator_folder(self.folder, self.agreement.name, ["localhost", "127.0.0.1"])
        self.folder.agreement_file.write_text(resolved(self.agreement), encoding="utf-8")
        for site in self.agreement.sites:
            self.enrol(site)

    def enrol(self, site: str) -> None:
        """A certificate in the roster; a second call replaces it."""
        key, certificate = self.folder.authority().issue("site", site)
        roster, own = self.folder.sites / site, self.path / site
        for folder in (roster, own):
            folder.mkdir(parents=True, exist_ok=True)
        (roster / "certificate.pem").write_bytes(certificate)
        (roster / "supernode.pub").write_text("ecdsa-sha2-nistp384 AAAA test\n")
        (own / "site.pem").write_bytes(certificate)
        for name, content in (("tls.key", key), ("supernode.key", b"")):
            (own / name).touch(mode=0o600)
            (own / name).write_bytes(content)
        if not (own / "identity.pem").exists():
            identity(site).save(own / "identity.pem")

    def network(self, site: str, port: int) -> NetworkSettings:
        return member_network(self.path, site, port)


class RouterThread:
    """A router with an event loop of its own."""

    def __init__(
        self,
        folder: CoordinatorFolder,
        port: int = 0,
        **limits: int,
    ) -> None:
        settings = RouterSettings.model_construct(
            listen="127.0.0.1",
            port=port,
            health_port=0,
            limits=RouterSettings().limits.model_copy(update=limits),
        )
        self._folder, self._settings = folder, settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a coroutine function in the router's loop."""
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result(20)

    def __enter__(self) -> RouterThread:
        self._thread.start()

        async def start() -> RouterServer:
            server = RouterServer(self._folder, self._settings)
            await server.start()
            return server

        try:
            self.server: RouterServer = self.call(start)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.server.stop)
        self._end()

    def tasks(self) -> list[str]:
        """What the loop works on, besides this question."""

        async def names() -> list[str]:
            own = asyncio.current_task()
            return [task.get_name() for task in asyncio.all_tasks() if task is not own]

        return list(self.call(names))

    def _end(self) -> None:
        async def drain() -> None:  # as asyncio.run does
            own = asyncio.current_task()
            rest = [task for task in asyncio.all_tasks() if task is not own]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.call(drain)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        return self.server.port


__all__ = ["SITES", "Place", "RouterThread"]
