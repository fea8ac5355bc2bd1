"""Sites in Flower's simulation runtime on Ray: the ServerApp and ClientApp of the real consortium.

The coordinator's code runs in a ServerApp on this machine; messages pass through the relay that a
hospital runs. Rules:

1. A site lives in one process for the whole run and keeps its state there. Any Flower worker may
   relay any message, so a worker's memory is no place for it. Sites share `processes` processes:
   one for each site would cost 200 MB and two seconds a site.
2. Torch computes on one thread, so the result does not depend on the number of cores.
3. Whatever ends the run, an error or Ctrl-C included, Ray is shut down before the caller goes on.
   Ray is this run's own, on this machine, unless RAY_ADDRESS names one that runs already, perhaps
   on several machines: the run joins and leaves it.
4. Nothing is reported to anyone: usage statistics, update checks and dashboards are off.

    >>> run_in_flower(lambda engine: run_rounds(coordinator, engine), {"site-0": make_site_0})
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedhash.errors import ProtocolError
from fedhash.rounds.engine import Engine
from fedhash.rounds.messages import Message
from fedhash_client.flower import SiteEndpoint, relay_app
from fedhash_server.flower_engine import FlowerEngine

if TYPE_CHECKING:  # Flower's workers import this module, and the site's code loads torch
    from fedhash.rounds.site import SiteAgent

__all__ = ["run_in_flower"]

T = TypeVar("T")

_CONNECT_S = 5
_OBJECT_STORE_BYTES = 256 << 20  # shared memory; larger messages in flight go through the disk


def run_in_flower(
    run: Callable[[Engine], T],
    sites: Mapping[str, Callable[[], SiteAgent]],
    *,
    processes: int = 2,
) -> T:
    """Call `run` inside a Flower ServerApp, with an engine that reaches the given sites.

    Args:
        run: The coordinator's program; it runs in this process, in a thread of its own.
        sites: Name to blueprint: a picklable function without arguments that makes the site's
            agent, called once in the process where the site will live.
        processes: So many sites compute at the same time, each process for its share of the
            sites; a site that is late delays those that share its process. In a Ray that is
            joined, one a CPU.

    Returns:
        What `run` returns.

    Raises:
        ProtocolError: RAY_ADDRESS names no Ray that listens.
        BaseException: What `run` or a blueprint raises, with its type.
    """
    # flwr reads its switches when it is imported, and fedhash_server has set them by now
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    stop = Event()
    outcome: Future[T] = Future()
    server_app = ServerApp()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise KeyboardInterrupt("the simulation was stopped")

    with _quiet_ray(processes) as nodes:
        # no CPU is reserved: a site computes while the worker that relays its message waits
        actors: list[Any] = [
            ray.remote(_SiteProcess)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, False))
            .remote()
            for node in nodes[: len(sites)]
        ]
        endpoints = [_SiteInRay(name, actors[i % len(actors)]) for i, name in enumerate(sites)]

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
            try:
                ray.get(
                    [site.process.add.remote(site.name, sites[site.name]) for site in endpoints]
                )
                outcome.set_result(run(FlowerEngine(grid, tuple(sites), pause=pause)))
            except BaseException as error:  # noqa: BLE001 - handed to the caller below
                outcome.set_exception(error)
            finally:
                # Flower waits for messages under way, however long a late site still computes
                for actor in actors:
                    ray.kill(actor)

        def find_endpoint(context: Context) -> SiteEndpoint:
            return endpoints[int(context.node_config["partition-id"])]

        # in a thread of its own, because Ctrl-C in Flower's main loop would wait for the run's end
        with ThreadPoolExecutor(1) as flower:
            try:
                flower.submit(
                    run_simulation,
                    server_app,
                    relay_app(find_endpoint),
                    num_supernodes=len(endpoints),
                    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}},
                ).result()
            finally:
                stop.set()
    return outcome.result()


class _SiteProcess:
    """A Ray actor that holds some of the sites."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._agents: dict[str, SiteAgent] = {}

    def add(self, name: str, blueprint: Callable[[], SiteAgent]) -> None:
        self._agents[name] = blueprint()

    def answer(self, name: str, request: bytes) -> bytes:
        agent = self._agents[name]
        return agent.handle(Message.decode(request, max_bytes=agent.max_message_bytes)).encode()


@dataclass(frozen=True, slots=True)
class _SiteInRay:
    """A SiteEndpoint: the site's name and the actor that holds it."""

    name: str
    process: Any  # ray has no public type for the handle of an actor

    def answer(self, request: bytes, timeout_s: float) -> bytes:
        try:
            reply: bytes = ray.get(
                self.process.answer.remote(self.name, request), timeout=timeout_s
            )
        except (GetTimeoutError, RayActorError) as error:
            raise ProtocolError(
                f"the process of site {self.name!r} does not answer: {error}"
            ) from error
        except RayTaskError as error:
            raise ProtocolError(f"site {self.name!r} crashed: {error.cause!r}") from error
        return reply


@contextmanager
def _quiet_ray(processes: int) -> Iterator[list[str]]:
    """Join Ray, or start one that is gone at the end; yields the node of each CPU, in turn."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",  # under `uv run` Ray would copy the working directory
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # the coming default; without it Ray warns
    )
    address = os.environ.get("RAY_ADDRESS")
    start: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        # the workers find the modules that this program finds
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    }
    if address is None:
        start |= {
            "address": "local",
            "num_cpus": processes,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        _check_listens(address)
    flower_log = logging.getLogger("flwr")
    level = flower_log.level
    flower_log.setLevel(logging.CRITICAL)  # what goes wrong is told by exceptions and failures
    try:
        ray.init(**start)  # without an address Ray reads RAY_ADDRESS itself
        nodes = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        cpus = [(i, n["NodeID"]) for n in nodes for i in range(int(n["Resources"].get("CPU", 0)))]
        yield [node for _, node in sorted(cpus)]
    finally:
        ray.shutdown()
        flower_log.setLevel(level)


def _check_listens(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ProtocolError(
            f"RAY_ADDRESS is {address!r}, where no Ray listens ({error}); start one with 'ray start"
            " --head' and name it as HOST:PORT, or unset RAY_ADDRESS"
        ) from error
