"""What secure aggregation is measured against, and how: Flower's protocol, and no protocol at all.

    .venv/bin/python -m benchmarks.secagg_peers --parameters 100000 --sites 5    # one JSON line

Flower is release 1.41, and its own code runs: `SecAggPlusWorkflow`
(flwr/server/workflow/secure_aggregation/secaggplus_workflow.py) and `secaggplus_mod`
(flwr/client/mod/secure_aggregation/secaggplus_mod.py) over the primitives of
flwr/common/secure_aggregation, with their default clipping, quantisation and modulus. Where a
choice was to be made, Flower has the cheaper one:

1. No training, no global model in the requests, no network. Messages pass in memory: the seconds
   hold what the mod and the workflow serialise themselves, not Flower's protobuf form of a message,
   of which only the size is taken.
2. The strategy returns the workflow's aggregate; FedAvg would average n copies of it.
3. Updates are float32 in tensors no larger than ResNet-18's largest, so that the allocator can use
   memory again; as one vector of 11.7 million the same round takes longer.

The other peer sends float32 vectors in this project's messages and sums them in double precision.
Every round checks its sum against the known one. Nobody drops out.

A round runs twice, each time in a fresh process behind a small round that warms it up: once for CPU
seconds, and once for memory, with an allocator that returns each array's pages when it is freed.
Another protocol is measured in the same way: a function that takes a `Meter`, handed to `cost_of`.

    >>> def round_of(parameters, sites, meter):            # at the top of a module, for pickling
    ...     for site in range(sites):
    ...         with meter.client(site):
    ...             reply = ...
    ...         meter.sent(site, len(reply))
    ...         with meter.coordinator(): ...
    >>> cost_of(partial(round_of, 10**6, 5), partial(round_of, 1000, 3), parameters=10**6)
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, cast

import flwr
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitRes,
    Parameters,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedhash.rounds.messages import Message

__all__ = [
    "Cost",
    "Meter",
    "base_update",
    "check_mean",
    "cost_of",
    "examples",
    "flower_round",
    "keystream_limit_bytes_per_second",
    "plain_round",
    "resident_and_peak_bytes",
    "update_scale",
]

_LARGEST_TENSOR = 512 * 512 * 3 * 3  # ResNet-18, layer4
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What one round used.

    Attributes:
        client_cpu_s: CPU seconds of a client, mean over the clients.
        coordinator_cpu_s: CPU seconds of the coordinator.
        bytes_per_parameter: What a client sends in all messages of the round, mean over clients.
        client_peak_bytes: The most that a client's work adds to memory, beyond its update.
        coordinator_peak_bytes: The most that the coordinator holds, arrived messages included.
    """

    client_cpu_s: float
    coordinator_cpu_s: float
    bytes_per_parameter: float
    client_peak_bytes: int
    coordinator_peak_bytes: int


_Party: TypeAlias = "int | str | None"  # a client's number, the coordinator, or nobody
_COORDINATOR = "coordinator"


class Meter:
    """Charges CPU seconds and memory to the party whose work runs. Linux only.

    The parties take turns in one process, and their blocks may be nested: a block inside another
    interrupts what the outer one is charged. A client's memory is what its block adds to what the
    process held before it. The coordinator's is what the process holds beyond the first block's
    start, so no client may keep an array while the coordinator works. Memory is the resident set,
    which the kernel counts to within half a megabyte.
    """

    def __init__(self) -> None:
        self.cpu_s: defaultdict[_Party, float] = defaultdict(float)
        self.peak_bytes: defaultdict[_Party, int] = defaultdict(int)
        self.sent_bytes: defaultdict[int, int] = defaultdict(int)
        self._party: _Party = None
        self._since_s = time.process_time()
        self._resident_since = 0
        self._resident_first: int | None = None

    def client(self, site: int) -> AbstractContextManager[None]:
        """The block is work of a client."""
        return self._charge(site)

    def coordinator(self) -> AbstractContextManager[None]:
        """The block is work of the coordinator."""
        return self._charge(_COORDINATOR)

    def nobody(self) -> AbstractContextManager[None]:
        """The block is transport, training or checking, which no party is charged."""
        return self._charge(None)

    def sent(self, site: int, size: int) -> None:
        """A client sent a message of `size` bytes."""
        self.sent_bytes[site] += size

    @contextmanager
    def _charge(self, party: _Party) -> Iterator[None]:
        outer = self._switch(party)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, party: _Party) -> _Party:
        """Close the account of the party that worked until now, which is returned."""
        before = self._party
        self.cpu_s[before] += time.process_time() - self._since_s
        resident, peak = resident_and_peak_bytes()
        if self._resident_first is None:
            self._resident_first = resident
        start = self._resident_first if before == _COORDINATOR else self._resident_since
        self.peak_bytes[before] = max(self.peak_bytes[before], peak - start)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        self._party, self._resident_since = party, resident
        self._since_s = time.process_time()
        return before


def cost_of(
    run: Callable[[Meter], None], warm_up: Callable[[Meter], None], *, parameters: int
) -> Cost:
    """Measure a round in fresh processes.

    Args:
        run: The round; it and `warm_up` must survive pickling.
        warm_up: The same with few parameters, for late imports and the like.
        parameters: Entries of a client's update in `run`.
    """
    timed = _in_fresh_process(run, warm_up, False)
    weighed = _in_fresh_process(run, warm_up, True)
    clients = sorted(timed.sent_bytes)
    client_cpu_s = [timed.cpu_s[site] for site in clients]
    return Cost(
        statistics.fmean(client_cpu_s),
        timed.cpu_s[_COORDINATOR],
        statistics.fmean(timed.sent_bytes.values()) / parameters,
        max(weighed.peak_bytes[site] for site in clients),
        weighed.peak_bytes[_COORDINATOR],
    )


def flower_round(parameters: int, sites: int, neighbours: int, threshold: int) -> Cost:
    """A round of Flower's SecAgg+.

    Args:
        parameters: Entries of each client's update.
        sites: Clients.
        neighbours: Of each client; `sites` - 1 is the complete graph, fewer must be even.
        threshold: Shares that rebuild a secret, out of `neighbours` + 1: an owner keeps one. From 2
            to `neighbours`.

    Raises:
        RuntimeError: Another release of Flower, or its sum is wrong.
        ValueError: Flower would take another graph or threshold than the one asked for.
    """
    if not flwr.__version__.startswith("1.41."):
        raise RuntimeError(f"flwr {flwr.__version__} is installed, this runs the modules of 1.41")
    if not 2 <= neighbours < sites or (neighbours % 2 and neighbours != sites - 1):
        raise ValueError(
            f"{neighbours} neighbours of {sites} sites: give {sites - 1} (the complete graph) or "
            f"an even number from 2 to {sites - 1}"
        )
    if not 2 <= threshold <= neighbours:
        raise ValueError(f"a threshold of {threshold}: give 2 to {neighbours}, the neighbours")
    return cost_of(
        partial(_flower_round, parameters, sites, neighbours, threshold),
        partial(_flower_round, 1000, 3, 2, 2),
        parameters=parameters,
    )


def plain_round(parameters: int, sites: int) -> Cost:
    """A round in which the coordinator sees every update.

    Raises:
        RuntimeError: The sum is wrong.
    """
    return cost_of(
        partial(_plain_round, parameters, sites),
        partial(_plain_round, 1000, 3),
        parameters=parameters,
    )


def keystream_limit_bytes_per_second() -> float:
    """How fast one core can make a keystream of AES-256-GCM and add it to words of 32 bits.

    In chunks of 1 MiB onto one place in memory, best of seven runs over 256 MiB: no protocol that
    masks with AES can be faster.
    """
    encryptor = Cipher(AES256(os.urandom(32)), GCM(bytes(12))).encryptor()
    zeros = bytes(_CHUNK_BYTES)
    keystream = np.zeros(_CHUNK_BYTES // 4, np.uint32)
    words = np.zeros_like(keystream)
    best_s, chunks = float("inf"), 256
    for _ in range(7):
        start = time.process_time()
        for _ in range(chunks):
            encryptor.update_into(zeros, keystream.view(np.uint8).data)
            np.add(words, keystream, out=words)
        best_s = min(best_s, time.process_time() - start)
    return chunks * _CHUNK_BYTES / best_s


# Updates with a known mean


def base_update(parameters: int) -> np.ndarray:
    """What all updates are multiples of: normal, with a standard deviation of one."""
    return np.random.default_rng(parameters).standard_normal(parameters, np.float32)


def update_scale(site: int) -> np.float32:
    """The share of the base that is a site's update; a power of two, so it is exact in float32."""
    return np.float32(2.0 ** -(site % 4))


def examples(site: int) -> int:
    """A site's weight."""
    return 100 + site


def check_mean(mean: np.ndarray, parameters: int, sites: int, tolerance: float) -> None:
    """Compare the weighted mean of the updates with the known one.

    Raises:
        RuntimeError: An entry differs by more than the tolerance.
    """
    weights = [examples(site) for site in range(sites)]
    scale = np.average([update_scale(site) for site in range(sites)], weights=weights)
    error = float(np.abs(mean - scale * base_update(parameters)).max())
    if not error <= tolerance:
        raise RuntimeError(f"the mean is wrong by {error:.3g}, at most {tolerance:.3g} is rounding")


# No protocol


def _plain_round(parameters: int, sites: int, meter: Meter) -> None:
    base = base_update(parameters)
    with meter.coordinator():
        total, weight = np.zeros(parameters), 0.0
    for site in range(sites):
        update = update_scale(site) * base
        with meter.client(site):
            data = Message("train_reply", {"weight": examples(site)}, {"vector": update}).encode()
        meter.sent(site, len(data))
        del update
        with meter.coordinator():  # as fedhash.rounds.aggregation.PlainAggregation
            reply = Message.decode(data, max_bytes=len(data))
            total += np.float64(reply.header["weight"]) * reply.arrays["vector"]
            weight += reply.header["weight"]
            del reply, data
    check_mean(total / weight, parameters, sites, tolerance=1e-9)


# Flower


def _flower_round(
    parameters: int, sites: int, neighbours: int, threshold: int, meter: Meter
) -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it tells each round's progress
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # messages carry them
    grid = _InMemoryGrid(base_update(parameters), meter)
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        strategy=_ReturnAggregate(),
    )
    for node in range(1, sites + 1):
        context.client_manager.register(GridClientProxy(node, cast("Grid", grid), run_id=1))
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    workflow = SecAggPlusWorkflow(neighbours + 1, threshold)
    with meter.coordinator():
        workflow(cast("Grid", grid), context)

    aggregate = recorddict_compat.arrayrecord_to_parameters(
        context.state.array_records[MAIN_PARAMS_RECORD], keep_input=False
    )
    if not aggregate.tensors:
        raise RuntimeError("Flower's round halted; its log says why")
    # A client's error is below a step of stochastic rounding and another of float32 arithmetic.
    step = 2 * workflow.clipping_range / workflow.quantization_range
    weight = statistics.fmean(examples(site) for site in range(sites)) / workflow.max_weight
    mean = np.concatenate(parameters_to_ndarrays(aggregate))
    check_mean(mean, parameters, sites, tolerance=2 * step / weight)


class _InMemoryGrid:
    """Of Flower's Grid the one method that the workflow calls; node i is site i - 1."""

    def __init__(self, base: np.ndarray, meter: Meter) -> None:
        self._base = base
        self._meter = meter
        self._contexts: dict[int, Context] = {}

    def send_and_receive(
        self,
        messages: list[FlowerMessage],
        *,
        timeout: float | None = None,  # noqa: ARG002 - Flower's signature
    ) -> list[FlowerMessage]:
        """Let the clients answer one after another; all replies are kept, as Flower's grids do."""
        with self._meter.nobody():
            return [self._answer(message) for message in messages]

    def _answer(self, request: FlowerMessage) -> FlowerMessage:
        # The workflow sends one content object to all nodes, and the mod takes entries out of it.
        request.content = recorddict_from_proto(recorddict_to_proto(request.content))
        node = request.metadata.dst_node_id
        context = self._contexts.setdefault(
            node, Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        )
        with self._meter.client(node - 1):
            reply = secaggplus_mod(request, context, self._train)
        self._meter.sent(node - 1, message_to_proto(reply).ByteSize())
        return reply

    def _train(self, request: FlowerMessage, context: Context) -> FlowerMessage:
        with self._meter.nobody():
            site = context.node_id - 1
            update = update_scale(site) * self._base
            tensors = np.split(update, range(_LARGEST_TENSOR, len(update), _LARGEST_TENSOR))
            result = FitRes(
                Status(Code.OK, ""), ndarrays_to_parameters(tensors), examples(site), metrics={}
            )
            content = recorddict_compat.fitres_to_recorddict(result, keep_input=False)
            return FlowerMessage(content, reply_to=request)


class _ReturnAggregate(FedAvg):
    """Samples all clients as FedAvg does; each result already holds the workflow's aggregate."""

    def aggregate_fit(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[Any],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed: {failures[0]}")
        return results[0][1].parameters, {}


# Processes


def _in_fresh_process(
    run: Callable[[Meter], None], warm_up: Callable[[Meter], None], returns_pages: bool
) -> Meter:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
        return fresh_process.submit(_metered, run, warm_up, returns_pages).result()


def _metered(
    run: Callable[[Meter], None], warm_up: Callable[[Meter], None], returns_pages: bool
) -> Meter:
    # By default glibc keeps freed arrays of up to 32 MiB for later ones: quicker, but what the
    # process holds is then not what the round needs.
    if returns_pages and not ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16):
        raise OSError("the C library cannot return freed memory; glibc is needed")
    warm_up(Meter())
    meter = Meter()
    run(meter)
    return meter


def resident_and_peak_bytes() -> tuple[int, int]:
    """What this process holds, and the most that it has held. Linux only."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    now, peak = (
        re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE) for name in ("VmRSS", "VmHWM")
    )
    if now is None or peak is None:
        raise OSError("/proc/self/status tells no resident memory")
    return 1024 * int(now[1]), 1024 * int(peak[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--neighbours", type=int, help="default: all others")
    parser.add_argument("--threshold", type=int, help="default: above two thirds of the neighbours")
    parser.add_argument("--plain", action="store_true", help="without a protocol")
    args = parser.parse_args()
    if args.plain:
        cost = plain_round(args.parameters, args.sites)
    else:
        if args.neighbours is None:
            args.neighbours = args.sites - 1
        if args.threshold is None:
            args.threshold = 2 * args.neighbours // 3 + 1
        cost = flower_round(args.parameters, args.sites, args.neighbours, args.threshold)
    limit = keystream_limit_bytes_per_second()
    print(json.dumps(vars(args) | asdict(cost) | {"keystream_bytes_per_second": limit}))


if __name__ == "__main__":
    main()
