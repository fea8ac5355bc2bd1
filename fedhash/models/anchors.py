"""Anchors: the published binary code of each finding, the same at every site.

Sites that each learned their own Hamming space would rotate it; with published anchors a bit
means the same everywhere, and a finding that a site has never seen still repels.

Shape suffixes: K findings, B batch, b bits.

1. Anchors depend on the vocabulary, b and the version alone, never on data, and on integer
   arithmetic alone, so every machine builds the same.
2. K < b: rows of a Hadamard matrix, so two anchors differ in exactly b/2 bits. The all-ones row
   is left out; it gives the tie vector, which is then b/2 from every anchor. Where K >= b, or no
   Hadamard matrix of order b is built here (b = 56, 112, 184, 232, 248), the words of a random
   code are picked, each as far as possible from those before. Rows and their negations would
   double K, but the majority of three rows lies next to a negated fourth: a false neighbour.
3. In every case two anchors (and the tie vector) differ in at least b/4 bits, or there are none.

    >>> anchors = Anchors.build(agreement)
    >>> anchors.targets(labels)           # a(y): int8 [B, b] of -1/+1
    >>> anchors.theta(labels)             # how near a(y) lies to each anchor: float32 [B, K]
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import isqrt

import numpy as np
from jaxtyping import Float32, Int8

from fedhash.agreement import Agreement
from fedhash.errors import ModelError

__all__ = ["Anchors"]

_POOL_WORDS = 1 << 14  # candidates of the random code; enough for b/4 at K = 1000 from 24 bits on
_DECIMALS = 9  # sums are rounded before their sign is taken, so that ties are ties everywhere


@dataclass(frozen=True, eq=False)
class Anchors:
    """The codes of all findings of one agreement.

    Attributes:
        findings: The vocabulary, in the order of the rows.
        matrix: A, one row of -1/+1 a finding.
        tie: t, the target's bits where its findings disagree evenly.
        lineage: (row of a child, row of its parent, lambda), deepest children first.
    """

    findings: tuple[str, ...]
    matrix: Int8[np.ndarray, "K b"]
    tie: Int8[np.ndarray, " b"]
    lineage: tuple[tuple[int, int, float], ...]

    @classmethod
    def build(cls, agreement: Agreement) -> Anchors:
        """The anchors that `agreement` publishes.

        Raises:
            ModelError: The version is unknown, or K findings cannot be kept b/4 apart in b bits.
        """
        if agreement.anchors_version != 1:
            raise ModelError(
                f"anchors_version {agreement.anchors_version} is unknown, this release of fedhash "
                "builds version 1; upgrade fedhash or correct the agreement"
            )
        vocabulary = agreement.findings
        seed = json.dumps([vocabulary, agreement.code_bits, agreement.anchors_version])
        words = _words(len(vocabulary) + 1, agreement.code_bits, seed)
        _check_distances(words)
        lineage = tuple(
            (vocabulary.index(child), vocabulary.index(parent), agreement.ancestor_weight)
            for child, parent in sorted(
                agreement.parents.items(), key=lambda pair: -_depth(pair[0], agreement.parents)
            )
        )
        return cls(vocabulary, words[1:], words[0], lineage)

    def targets(self, labels: Int8[np.ndarray, "B K"]) -> Int8[np.ndarray, "B b"]:
        """Semantic targets a(y) = sign(sum_k w_k(y) A_k), ties from the tie vector.

        w_k is 1 for a positive finding and lambda^depth for an ancestor of one (the largest, if
        several findings share it). Uncertain findings count as little as negative ones.

        Raises:
            ModelError: The labels have another number of findings.
        """
        if labels.shape[1] != len(self.findings):
            raise ModelError(
                f"labels of {labels.shape[1]} findings were given, the anchors have "
                f"{len(self.findings)}; label the studies with this agreement's findings"
            )
        weights = (labels == 1).astype(np.float64)
        for child, parent, ancestor_weight in self.lineage:
            inherited = ancestor_weight * weights[:, child]
            weights[:, parent] = np.maximum(weights[:, parent], inherited)
        sums = np.round(weights @ self.matrix, _DECIMALS)
        return np.asarray(np.where(sums == 0, self.tie, np.sign(sums)), dtype=np.int8)

    def theta(self, labels: Int8[np.ndarray, "B K"]) -> Float32[np.ndarray, "B K"]:
        """theta_k(y) = max(0, <a(y), A_k> / b): the scale of the margins (arXiv 2012.03820).

        Raises:
            ModelError: The labels have another number of findings.
        """
        return self.closeness(self.targets(labels))

    def closeness(self, targets: Int8[np.ndarray, "B b"]) -> Float32[np.ndarray, "B K"]:
        """max(0, <a, A_k> / b) of given targets a."""
        products = targets.astype(np.float32) @ self.matrix.T.astype(np.float32)
        return np.asarray(np.maximum(products / self.matrix.shape[1], 0), dtype=np.float32)

    def digest(self) -> str:
        """SHA-256 (hex) over everything that targets depend on."""
        described = json.dumps([self.findings, self.matrix.shape, self.lineage]).encode()
        return hashlib.sha256(described + self.matrix.tobytes() + self.tie.tobytes()).hexdigest()


def _words(count: int, code_bits: int, seed: str) -> Int8[np.ndarray, "words b"]:
    """The tie vector and K anchors as the rows of one matrix."""
    hadamard = _hadamard(code_bits) if count <= code_bits else None
    if hadamard is None:
        return _spread_words(count, code_bits, seed)
    signs = _random_words(1, code_bits, f"signs {seed}")
    keys = np.frombuffer(_bytes(8 * (code_bits - 1), f"rows {seed}"), dtype="<u8")
    order = 1 + np.argsort(keys, kind="stable")[: count - 1]
    return np.asarray(hadamard[[0, *order]] * signs)


def _hadamard(order: int) -> Int8[np.ndarray, "b b"] | None:
    """A Hadamard matrix whose first row is all ones: Paley's first construction, or doubling."""
    prime = order - 1
    if order == 1:
        return np.ones((1, 1), dtype=np.int8)
    if prime % 4 == 3 and all(prime % factor for factor in range(2, isqrt(prime) + 1)):
        character = np.full(prime, -1, dtype=np.int8)  # of non-squares modulo the prime
        character[np.arange(1, prime) ** 2 % prime] = 1
        character[0] = 0
        residues = np.arange(prime)
        matrix = np.ones((order, order), dtype=np.int8)
        matrix[1:, 0] = -1
        matrix[1:, 1:] = character[(residues[:, None] - residues) % prime]
        matrix[1:, 1:] += np.eye(prime, dtype=np.int8)
        return matrix
    if order % 2 == 0 and (half := _hadamard(order // 2)) is not None:
        return np.kron(np.array([[1, 1], [1, -1]], dtype=np.int8), half)
    return None


def _spread_words(count: int, code_bits: int, seed: str) -> Int8[np.ndarray, "words b"]:
    """Pick from a random pool, each time the word farthest from its nearest predecessor."""
    pool = _random_words(_POOL_WORDS, code_bits, f"pool {seed}")
    exact = pool.astype(np.float32)  # products of +-1 up to 256 terms are exact in float32
    nearest = np.full(_POOL_WORDS, -np.inf, dtype=np.float32)
    chosen = [0]
    while len(chosen) < count:
        nearest = np.maximum(nearest, exact @ exact[chosen[-1]])
        chosen.append(int(nearest.argmin()))
    return pool[chosen]


def _random_words(count: int, code_bits: int, seed: str) -> Int8[np.ndarray, "words b"]:
    packed = np.frombuffer(_bytes(count * code_bits // 8, seed), dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little").astype(np.int8)
    return (2 * bits - 1).reshape(count, code_bits)


def _bytes(count: int, seed: str) -> bytes:
    """SHAKE-256 and not numpy's generators: those may change with numpy's version."""
    return hashlib.shake_256(seed.encode()).digest(count)


def _check_distances(words: Int8[np.ndarray, "words b"]) -> None:
    count, code_bits = words.shape
    products = words.astype(np.float32) @ words.T.astype(np.float32)
    np.fill_diagonal(products, -code_bits)
    smallest = int(code_bits - products.max()) // 2
    if smallest < code_bits // 4:
        raise ModelError(
            f"{count - 1} findings in {code_bits} bits come as near as {smallest} bits, at least "
            f"{code_bits // 4} are needed; raise code_bits or shorten the vocabulary"
        )


def _depth(finding: str, parents: dict[str, str]) -> int:
    depth = 0
    while (parent := parents.get(finding)) is not None:  # as many as there are findings
        finding, depth = parent, depth + 1
    return depth
