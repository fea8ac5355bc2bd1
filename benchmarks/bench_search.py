"""Exact top-10 of a site's archive beside bare FAISS, in one run on one machine.

    make bench-search                                         # 1 and 10 million codes: 20 min, 3 GB
    .venv/bin/python -m benchmarks.bench_search --quick       # 100,000 codes

The archive does more than bare FAISS: the order among equal distances is total and exact, and
entries are stored, replaced and removed by patient. Both contenders search the same codes for the
same queries, and their distances are checked to agree. A single query uses one thread in both, for
FAISS divides its work by queries; a batch goes to one Python thread a core with the archive, and in
FAISS to one thread or to all cores, whichever is quicker (on a busy machine OpenMP can lose).
Single queries are medians of 64, batches the best of 5. Reopening and resident memory are measured
in a fresh process each.

uniform     random bits, queries equal to stored codes
clustered   what a hash model makes: each study lies near the anchor of one of 14 findings, 6 in 10
            exactly on it; queries likewise, so that often a 25th of the archive ties for place 10
saturated   the worst case of ties: all studies exactly on anchors, queries one bit beside

Writes build/bench/search.csv, or search-quick.csv, with the columns case, contender, figure, unit,
value.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import BENCH, Figure, write_figures
from benchmarks.process_memory import resident_bytes
from fedhash.codes import unpack_signs
from fedhash.index import Archive, Entry
from fedhash.search import Query, make_query

K = 10
FINDINGS = 14
EXACTLY_ON_ANCHOR, FLIP_RATE = 0.6, 0.04
QUERIES = 64
ENTRIES_AT_ONCE = 250_000

_faiss: Any = faiss  # its type stubs lack the Python forms of these methods


def uniform_codes(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    return rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)


def clustered_codes(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    codes = saturated_codes(rng, count, bits)
    off_anchor = np.flatnonzero(rng.random(count) >= EXACTLY_ON_ANCHOR)
    for bit in range(bits):
        flipped = off_anchor[rng.random(len(off_anchor), dtype=np.float32) < FLIP_RATE]
        codes[flipped, bit // 8] ^= 1 << bit % 8
    return codes


def saturated_codes(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    anchors = uniform_codes(rng, FINDINGS, bits)
    return anchors[rng.integers(0, FINDINGS, count)]


KINDS = {"uniform": uniform_codes, "clustered": clustered_codes, "saturated": saturated_codes}


def make_queries(rng: np.random.Generator, codes: np.ndarray, bits_beside: int) -> list[Query]:
    signs = unpack_signs(codes[rng.integers(0, len(codes), QUERIES)])
    signs[:, :bits_beside] *= -1
    outputs = signs * rng.random(signs.shape)
    outputs /= 1.001 * np.linalg.norm(outputs, axis=1, keepdims=True)
    return [make_query(row, release_id="bench", modality="image", k=K) for row in outputs]


def entries_of(codes: np.ndarray, handles: bytes) -> Iterator[list[Entry]]:
    """Three studies a patient, twenty combinations of attributes."""
    for start in range(0, len(codes), ENTRIES_AT_ONCE):
        yield [
            Entry(
                handles[16 * row : 16 * row + 16].hex(),
                f"patient-{row // 3}",
                "image",
                codes[row].tobytes(),
                {"sex": "fm"[row % 2], "age": f"{row % 10}0"},
            )
            for row in range(start, min(start + ENTRIES_AT_ONCE, len(codes)))
        ]


def seconds(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def median_ms(search: Callable[[Query], object], queries: list[Query]) -> float:
    search(queries[0])
    return 1e3 * statistics.median(seconds(search, query) for query in queries)


def search_with(threads: int, index: Any, packed: np.ndarray) -> None:
    faiss.omp_set_num_threads(threads)
    index.search(packed, K)


def reopening(case: str, contender: str, path: Path, codes: np.ndarray) -> Iterator[Figure]:
    with get_context("spawn").Pool(1) as fresh_process:
        opening_s, growth = fresh_process.apply(reopen, (contender, path, 8 * codes.shape[1]))
    yield Figure(case, contender, "reopen", "s", opening_s)
    yield Figure(case, contender, "memory", "bytes/code", growth / len(codes))
    yield Figure(case, contender, "disk", "bytes/code", path.stat().st_size / len(codes))


def reopen(contender: str, path: Path, bits: int) -> tuple[float, int]:
    """Seconds and growth of the process in bytes."""
    before, start = resident_bytes(os.getpid()), time.perf_counter()
    if contender == "FAISS":
        opened = _faiss.read_index_binary(str(path))
    else:
        opened = Archive(path, "bench", bits)
    result = time.perf_counter() - start, resident_bytes(os.getpid()) - before
    del opened
    return result


def bench(
    case: str, codes: np.ndarray, queries: list[Query], folder: Path, handles: bytes
) -> Iterator[Figure]:
    count, bits = len(codes), 8 * codes.shape[1]
    packed = np.frombuffer(b"".join(q.code for q in queries), dtype=np.uint8).reshape(QUERIES, -1)
    filtered = [
        Query(q.release_id, q.modality, q.code, q.weights, K, None, {"sex": "f"}) for q in queries
    ]
    threads = faiss.omp_get_max_threads()

    # Bare FAISS
    index = _faiss.IndexBinaryFlat(bits)
    yield Figure(case, "FAISS", "build", "s", seconds(index.add, codes))
    path = folder / "faiss"
    _faiss.write_index_binary(index, str(path))
    yield from reopening(case, "FAISS", path, codes)
    of_women = _faiss.SearchParameters(
        sel=_faiss.IDSelectorBitmap(np.packbits(np.arange(count) % 2 == 0, bitorder="little"))
    )

    # The archive
    path = folder / "archive.sqlite"
    archive = Archive(path, "bench", bits)
    build_s = sum(seconds(archive.add, batch) for batch in entries_of(codes, handles))
    archive.close()
    yield Figure(case, "archive", "build", "s", build_s)
    yield from reopening(case, "archive", path, codes)
    with Archive(path, "bench", bits) as archive:
        # Queries, in turns
        def as_array(query: Query) -> np.ndarray:
            return np.frombuffer(query.code, dtype=np.uint8)[None]

        distances, _ = index.search(packed, K)
        for query, expected in zip(queries, distances.tolist(), strict=True):
            found = [match.distance for match in archive.search(query)]
            if found != expected:
                raise SystemExit(f"{case}: the archive found {found}, FAISS {expected}")

        faiss.omp_set_num_threads(1)
        single = {
            "FAISS": median_ms(lambda q: index.search(as_array(q), K), queries),
            "archive": median_ms(archive.search, queries),
        }
        with_filter = {
            "FAISS": median_ms(lambda q: index.search(as_array(q), K, params=of_women), queries),
            "archive": median_ms(archive.search, filtered),
        }
        faiss.omp_set_num_threads(threads)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            batch = {
                "FAISS": min(seconds(search_with, n, index, packed) for n in [1, threads] * 5),
                "archive": min(
                    seconds(lambda: list(pool.map(archive.search, queries))) for _ in range(5)
                ),
            }
        for contender in ("FAISS", "archive"):
            yield Figure(case, contender, "single query", "ms", single[contender])
            yield Figure(case, contender, "filtered query", "ms", with_filter[contender])
            yield Figure(
                case,
                contender,
                f"query in a batch of {QUERIES}",
                "ms",
                1e3 * batch[contender] / QUERIES,
            )
        yield Figure(
            case,
            "archive",
            "removal of a patient",
            "ms",
            1e3 * seconds(archive.remove_patient, "patient-7"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 codes only")
    quick = parser.parse_args().quick
    counts = [100_000] if quick else [1_000_000, 10_000_000]
    figures: list[Figure] = []
    for count in counts:
        for bits in (64, 128):
            for kind, make_codes in KINDS.items():
                case = f"{count:,} {kind} codes of {bits} bits"
                Console(stderr=True).print(case)
                rng = np.random.default_rng([count, bits])
                codes = make_codes(rng, count, bits)
                queries = make_queries(rng, codes, bits_beside=kind == "saturated")
                with tempfile.TemporaryDirectory() as folder:
                    figures += bench(case, codes, queries, Path(folder), rng.bytes(16 * count))

    write_figures(BENCH / ("search-quick.csv" if quick else "search.csv"), Figure, figures)
    table = Table("case", "figure", "unit", "FAISS", "archive", title=f"exact top-{K}")
    values = {(f.case, f.figure, f.contender): f for f in figures}
    for case, name in dict.fromkeys((f.case, f.figure) for f in figures):
        both = [values.get((case, name, contender)) for contender in ("FAISS", "archive")]
        unit = next(f.unit for f in both if f)
        table.add_row(case, name, unit, *(f"{f.value:,.3g}" if f else "" for f in both))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
