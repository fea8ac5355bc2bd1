"""Queries over the router: identical results, what it adds, how many it takes, and their bytes.

    make bench-router                                         # 10 sites with 1 million codes each
    .venv/bin/python -m benchmarks.bench_router --codes 10000 # small

Router and sites are processes of their own on this machine, with mutual TLS, signed queries, the
sites' policies (a smallest bucket of 3) and audit logs that are synced to the disk for each answer.
Codes are those of `bench_search`, clustered: 64 bits, many ties.

identical   the hits of 32 queries, held against a plain computation over all codes of all sites
added       by the round trip of one asker's queries over the slowest site: over its search alone,
            and over all that it does for the answer (signature, policy, search, log)
load        queries a second of 1, 10 and 100 askers, each with a connection of its own
bytes       of the messages of a query with k = 10, without the frames of TLS and HTTP/2

On a machine with fewer cores than sites the sites wait for each other, so a site's search takes
longer here than on a machine of its own; what is added is told beside it.

Writes build/bench/router.csv with the columns case, contender, figure, unit, value.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_search import clustered_codes, entries_of, make_queries
from benchmarks.figures import BENCH, Figure, write_figures
from benchmarks.router_member import member_network
from fedhash.agreement import Agreement
from fedhash.audit_log import AuditLog
from fedhash.codes import hamming_distances, unpack_signs
from fedhash.configuration import resolved
from fedhash.index import Archive, SiteSearcher
from fedhash.index.answering import QueryDesk
from fedhash.search import Hit, Query
from fedhash.search.answers import Found, Gathered, Merged, Refusal
from fedhash.search.policy import QueryPolicy
from fedhash.search.terms import QueryLimits, SearchTerms
from fedhash.search.wire.answers import encode_answer, encode_reply, encode_to_site
from fedhash.search.wire.queries import SignedQuery, decode_query, decode_signed, encode_signed
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.federated_search import RouterClient
from fedhash_client.query_stream import QueryStream
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder

BITS, BUCKET = 64, 3
RELEASE, MODALITY, PURPOSE = "bench", "image", "care"
ASKERS = (1, 10, 100)
COMPARED = 32
UNLIMITED = 10_000_000


def site_names(count: int) -> list[str]:
    return [f"site-{number}" for number in range(count)]


def site_codes(site: str, count: int) -> tuple[np.ndarray, bytes]:
    """The codes of a site and its handles, 16 bytes each."""
    number = int(site.rsplit("-", 1)[1])
    # one seed for the anchors, which all sites share
    rng = np.random.default_rng(7)
    codes = clustered_codes(rng, count, BITS)
    own = np.random.default_rng([11, number])
    flips = own.integers(0, BITS, count)
    moved = np.flatnonzero(own.random(count) < 0.1)
    codes[moved, flips[moved] // 8] ^= (1 << flips[moved] % 8).astype(np.uint8)
    return codes[own.permutation(count)], own.bytes(16 * count)


def terms(folder: Path, sites: list[str]) -> Agreement:
    return Agreement(
        name="bench",
        findings=("no_finding", "edema"),
        code_bits=BITS,
        modalities=(MODALITY,),
        sites={
            site: SiteIdentity.load(folder / site / "identity.pem").public_hex for site in sites
        },
        search=SearchTerms(purposes={PURPOSE: "all"}, queries_per_hour=UNLIMITED),
    )


def make_consortium(folder: Path, sites: list[str], port: int, health: int) -> Agreement:
    """The coordinator's folder, with enrolled sites and their keys beside it."""
    place = CoordinatorFolder(folder / "coordinator")
    make_coordinator_folder(place, "bench", ["localhost"])
    for site in sites:
        own, roster = folder / site, place.sites / site
        own.mkdir()
        roster.mkdir()
        SiteIdentity.generate().save(own / "identity.pem")
        key, certificate = place.authority().issue("site", site)
        (own / "tls.key").touch(mode=0o600)
        (own / "tls.key").write_bytes(key)
        (own / "site.pem").write_bytes(certificate)
        (roster / "certificate.pem").write_bytes(certificate)
        (roster / "supernode.pub").write_text("none\n")
    agreement = terms(folder, sites)
    place.agreement_file.write_text(resolved(agreement), encoding="utf-8")
    place.settings_file.write_text(
        "consortium: bench\nhost: localhost\n"
        f"router: {{listen: 127.0.0.1, port: {port}, health_port: {health}, limits: "
        f"{{queries_in_flight: 1000, queries_per_minute: {UNLIMITED}}}}}\n"
    )
    return agreement


def serve(folder: Path, site: str, port: int, count: int, agreement: Agreement, pipe: Any) -> None:
    """A site's process: answers until it is told to end, and then tells its times."""
    codes, handles = site_codes(site, count)
    times: dict[str, tuple[float, float]] = {}
    searches = threading.local()

    class Timed(SiteSearcher):
        def answer(self, query: Query) -> Any:
            start = time.perf_counter()
            found = super().answer(query)
            searches.seconds = time.perf_counter() - start
            return found

    with (
        Archive(folder / site / "archive.sqlite", RELEASE, BITS) as archive,
        AuditLog(folder / site / "audit.jsonl") as log,
    ):
        for batch in entries_of(codes, handles):
            archive.add(batch)
        del codes, handles
        limits = QueryLimits(
            purposes=(PURPOSE,), smallest_bucket=BUCKET, queries_per_hour=UNLIMITED
        )
        desk = QueryDesk(QueryPolicy(agreement, limits, started_ms=0), log.append)
        searcher = Timed(site, archive, agreement, None, BUCKET)

        def answer(signed: SignedQuery, current: Any, now_ms: int) -> Found | Refusal:
            start = time.perf_counter()
            answered = desk.answer(signed, current, now_ms)
            nonce = decode_query(signed.content).nonce.hex()
            times[nonce] = (searches.seconds, time.perf_counter() - start)
            return answered

        stream = QueryStream(member_network(folder, site, port), answer, lambda: searcher)
        stream.start()
        pipe.recv()
        stream.stop()
    pipe.send(times)


class TimedClient(RouterClient):
    """Notes the round trip of each query, by its nonce."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.round_trips: dict[str, float] = {}
        call = self._ask

        def timed(data: bytes, timeout: float) -> bytes:
            start = time.perf_counter()
            reply = call(data, timeout=timeout)
            seconds = time.perf_counter() - start
            nonce = decode_query(decode_signed(data).content).nonce.hex()
            self.round_trips[nonce] = seconds
            return reply

        self._ask = timed


def one_index(sites: list[str], count: int, queries: list[Query]) -> list[list[Hit]]:
    """The best hits of all codes of all sites, by the definition of the order."""
    best: list[list[Hit]] = [[] for _ in queries]
    for site in sites:
        codes, handles = site_codes(site, count)
        for number, query in enumerate(queries):
            wanted = np.frombuffer(query.code, dtype=np.uint8)[None]
            distances = hamming_distances(wanted, codes)[0]
            reach = np.partition(distances, query.k)[query.k]
            near = np.flatnonzero(distances <= reach)
            scores = unpack_signs(codes[near]).astype(np.int64) @ query.weights.astype(np.int64)
            found = [
                Hit(site, handles[16 * row : 16 * row + 16].hex(), int(distances[row]), int(score))
                for row, score in zip(near.tolist(), scores.tolist(), strict=True)
            ]
            best[number] = sorted([*best[number], *found], key=lambda hit: hit.rank)[: query.k]
    return best


@contextmanager
def running(folder: Path, sites: list[str], count: int) -> Iterator[tuple[Agreement, int, Any]]:
    """Router and sites, all attached; the sites' times are asked for by the last value."""
    port, health = free_ports(2)
    agreement = make_consortium(folder, sites, port, health)
    command = [sys.executable, "-m", "fedhash_server.router", str(folder / "coordinator")]
    context = get_context("spawn")
    with ExitStack() as stack:
        router = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
        stack.callback(router.wait)
        stack.callback(router.terminate)
        pipes = {}
        for site in sites:
            pipes[site], theirs = context.Pipe()
            arguments = (folder, site, port, count, agreement, theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
        wait_for(health, len(sites))

        def site_times() -> dict[str, dict[str, tuple[float, float]]]:
            for pipe in pipes.values():
                pipe.send("end")
            return {site: pipe.recv() for site, pipe in pipes.items()}

        yield agreement, port, site_times


def wait_for(health: int, sites: int) -> None:
    """Until all sites are attached."""
    for _ in range(7200):
        try:
            page = f"http://127.0.0.1:{health}/health"
            with urllib.request.urlopen(page, timeout=5) as response:
                if response.read().count(b"site-") == sites:
                    time.sleep(1)  # a site tells what it holds right after
                    return
        except OSError:
            pass
        time.sleep(0.5)
    raise SystemExit("the sites were not attached within an hour")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, 100 * share))


def load(
    askers: int, clients: Callable[[], TimedClient], queries: list[Query], seconds: float
) -> tuple[list[float], float]:
    """Round trips in seconds, and queries a second, of so many askers at a time."""
    with ExitStack() as stack:
        made = [stack.enter_context(clients()) for _ in range(askers)]
        for client in made:
            whole(client.search(queries[0], purpose=PURPOSE, timeout_s=60))
            client.round_trips.clear()
        start = time.perf_counter()

        def ask(client: TimedClient) -> int:
            done = 0
            while time.perf_counter() - start < seconds:
                query = queries[done % len(queries)]
                whole(client.search(query, purpose=PURPOSE, timeout_s=60))
                done += 1
            return done

        with ThreadPoolExecutor(askers) as threads:
            count = sum(threads.map(ask, made))
        took = time.perf_counter() - start
        return [each for client in made for each in client.round_trips.values()], count / took


def whole(merged: Merged) -> Merged:
    if merged.missing:
        raise SystemExit(f"a site did not answer: {merged.missing[0]}")
    return merged


def bench(folder: Path, sites: list[str], count: int, seconds: float) -> Iterator[Figure]:
    case = f"{len(sites)} sites with {count:,} codes each"
    queries = make_queries(np.random.default_rng(3), site_codes("site-0", count)[0], 0)
    with running(folder, sites, count) as (agreement, port, site_times):
        turn = iter(range(1 << 30))

        def client() -> TimedClient:
            site = sites[next(turn) % len(sites)]
            return TimedClient(site, agreement, member_network(folder, site, port))

        expected = one_index(sites, count, queries[:COMPARED])
        with client() as asker:
            for query, hits in zip(queries[:COMPARED], expected, strict=True):
                merged = whole(asker.search(query, purpose=PURPOSE, timeout_s=60))
                if list(merged.hits) != hits:
                    raise SystemExit(f"{case}: {merged.hits[:3]}..., expected {hits[:3]}...")
            yield Figure(case, "router", "identical to one index", "queries", COMPARED)
            asker.round_trips.clear()
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                for query in queries:
                    whole(asker.search(query, purpose=PURPOSE, timeout_s=60))
            round_trips = dict(asker.round_trips)
            yield from bytes_of(case, asker, queries[0], merged, len(sites))
        for askers in ASKERS:
            times, rate = load(askers, client, queries, seconds)
            name = "1 asker" if askers == 1 else f"{askers} askers"
            yield Figure(case, name, "load", "queries/s", rate)
            for share in (50, 99):
                figure = f"round trip, p{share}"
                yield Figure(case, name, figure, "ms", 1e3 * percentile(times, share / 100))
        of_sites = site_times()
    for number, name in ((0, "search"), (1, "whole answer")):
        slowest = {n: max(each[n][number] for each in of_sites.values()) for n in round_trips}
        added = [round_trips[n] - slowest[n] for n in round_trips]
        for share in (50, 99):
            of_site = percentile(list(slowest.values()), share / 100)
            yield Figure(case, name, f"slowest site, p{share}", "ms", 1e3 * of_site)
            yield Figure(case, name, f"added, p{share}", "ms", 1e3 * percentile(added, share / 100))


def bytes_of(
    case: str, asker: TimedClient, query: Query, merged: Merged, sites: int
) -> Iterator[Figure]:
    """Bytes of the messages of one query."""
    signed = asker.signed(query, purpose=PURPOSE, timeout_s=10)
    hits = tuple(
        Hit("x", hashlib.blake2b(bytes([n]), digest_size=16).hexdigest(), 3, 20_000)
        for n in range(query.k)
    )
    sizes = {
        "asker to router": len(encode_signed(signed)),
        "router to each site": len(encode_to_site(1 << 20, signed)),
        "each site to router": len(encode_answer(1 << 20, Found(hits))),
        "router to asker": len(
            encode_reply(Gathered(merged.sites, {each.site: Found(hits) for each in merged.sites}))
        ),
    }
    together = sizes["asker to router"] + sizes["router to asker"]
    together += sites * (sizes["router to each site"] + sizes["each site to router"])
    for way, size in {**sizes, "all together": together}.items():
        yield Figure(case, way, "messages of a query", "bytes", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--codes", type=int, default=1_000_000, help="of each site")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        sites = site_names(arguments.sites)
        for figure in bench(Path(folder), sites, arguments.codes, arguments.seconds):
            print(f"{figure.contender}, {figure.figure}: {figure.value:.4g} {figure.unit}")
            figures.append(figure)
    write_figures(BENCH / "router.csv", Figure, figures)


if __name__ == "__main__":
    main()
