"""Can a patient's report be told from the image? Linkage between modalities of unseen patients.

After Tayebi Arasteh et al., "Cross-modal linkage risk in clinical vision-language models" (2026,
arXiv 2606.02276). Someone holds a patient's image, and reports of N patients of whom this is one,
and ranks the reports by how near they lie to the image. Rules:

1. The patients are such that no site trained on, and each stands for one pair: a study that has
   both modalities.
2. **Random pools** hold the patient and N - 1 others. **Label-matched pools** hold only others with
   the patient's very label vector, so that what the findings tell helps nobody. Where there are
   fewer than N - 1 of them, the pool is all of them; `median_pool` and `chance` tell how large the
   pools were. A patient whose labels nobody shares is left out of them; `patients` counts the rest.
3. Nothing is drawn: Recall@K is the expectation over all pools and over all orders of tied items.
   Among M others let R stand before the patient's own item, in some order of the ties. Of N - 1
   drawn, Hypergeometric(M, R, N - 1) stand before it; Recall@K is the probability that these are
   fewer than K, averaged over the orders. The rank is the expected one: a midrank where all tie.
4. Codes are compared by Hamming distance, floats (relaxed codes v) by cosine. Cosines nearer than
   1e-6 are tied: equal texts differ by that much after rounding.
5. The level of chance of Recall@K is min(1, K / pool), lift the ratio of the two, each averaged
   over the patients: in pools of different sizes the mean lift is not the ratio of the means.
6. Intervals are percentiles at 95 % of 1000 bootstrap resamples of the patients who ask; the
   patients who are searched stay. `median_rank` is the median of the expected ranks.

Shape suffixes: P patients, b bits, K findings, R resamples.

    >>> rows = audit_direction(images_Pb, reports_Pb, labels_PK, query="image", target="report",
    ...                        pools=(100, 1000), seed=0)
    >>> str(rows[0])
    'image -> report, codes, random pools of 100: recall@1 0.0123 [0.0104, 0.0141], chance 0.0100'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int8, Int64, UInt8

from fedhash.codes import pack_signs, unpack_signs
from fedhash.errors import DataError
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.prepared import PreparedStudies
from fedhash.randomness import numpy_stream

__all__ = [
    "POOLS",
    "RANKS",
    "LinkageRow",
    "Standings",
    "audit_direction",
    "audit_linkage",
    "expected_rank",
    "expected_recall",
    "one_pair_a_patient",
    "standings",
]

POOLS = (100, 1000, 10_000)
RANKS = (1, 5, 10)
_RESAMPLES = 1000
_BLOCK_PAIRS = 1 << 22  # pairs of patients compared at once (about 100 MB)
_TIED_COSINES = 1e-6
_TIED_CODES = 0.5  # products of codes are whole numbers


@dataclass(frozen=True, slots=True)
class LinkageRow:
    """One figure of one direction.

    Attributes:
        query: Modality that is held.
        target: Modality that is searched.
        representation: What was compared.
        pools: How the others of a pool were chosen.
        pool: N, the pool's size that was asked for.
        metric: `recall@K`, `lift@K` or `median_rank`.
        value: The figure.
        low: Lower end of its 95 % interval.
        high: Upper end.
        chance: The figure of somebody who guesses.
        patients: How many asked.
        median_pool: Median size of their pools.
    """

    query: str
    target: str
    representation: Literal["codes", "floats"]
    pools: Literal["random", "matched"]
    pool: int
    metric: str
    value: float
    low: float
    high: float
    chance: float
    patients: int
    median_pool: float

    def __str__(self) -> str:
        return (
            f"{self.query} -> {self.target}, {self.representation}, {self.pools} pools of "
            f"{self.pool}: {self.metric} {self.value:.4f} [{self.low:.4f}, {self.high:.4f}], "
            f"chance {self.chance:.4f}"
        )


@dataclass(frozen=True, eq=False)
class Standings:
    """Where each patient's own item stands among those of the others.

    Attributes:
        closer: Others that stand before it.
        tied: Others at its very place.
        others: Others in all.
    """

    closer: Int64[np.ndarray, " P"]
    tied: Int64[np.ndarray, " P"]
    others: Int64[np.ndarray, " P"]

    def of(self, patients: Int64[np.ndarray, " some"]) -> Standings:
        """Of these patients only."""
        return Standings(self.closer[patients], self.tied[patients], self.others[patients])

    def pool_sizes(self, pool: int) -> Int64[np.ndarray, " P"]:
        """Sizes of the pools, the own item counted."""
        return np.asarray(np.minimum(pool, self.others + 1))


def audit_linkage(
    model: HashModel, held_out: PreparedStudies, *, pools: Sequence[int] = POOLS, seed: int
) -> list[LinkageRow]:
    """Audit all ordered pairs of a model's modalities.

    Args:
        model: Encodes both sides.
        held_out: Studies of patients that no site trained on.
        pools: Sizes. Those above the number of patients are left out; where all of them are, the
            smallest stays, and its pool is all patients.
        seed: Of the study that stands for a patient, and of the resamples.

    Returns:
        The figures; a direction with fewer than two pairs has none.

    Raises:
        DataError: No two modalities are present together in two patients, or a pool is below 2.
    """
    rows: list[LinkageRow] = []
    for query, target in permutations(model.modalities, 2):
        pairs = one_pair_a_patient(held_out, (query, target), seed)
        if len(pairs) < 2:
            continue
        rows += audit_direction(
            encode_studies(model, pairs, query),
            encode_studies(model, pairs, target),
            pairs.labels.numpy(),
            query=query,
            target=target,
            pools=pools,
            seed=seed,
        )
    if not rows:
        raise DataError(
            f"there are no two patients with two of the modalities {', '.join(model.modalities)} "
            "in one study, so there is nothing to link; audit a run with paired queries"
        )
    return rows


def one_pair_a_patient(
    studies: PreparedStudies, modalities: tuple[str, str], seed: int
) -> PreparedStudies:
    """For each patient one study that has both modalities, drawn by the seed."""
    both = studies.present[modalities[0]] & studies.present[modalities[1]]
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(both.numpy()).tolist():
        rows_of.setdefault(studies.patient_ids[row], []).append(row)
    # the same pairs in both directions
    rng = numpy_stream(seed, "linkage", "pairs", *sorted(modalities))
    return studies.select([rows[rng.integers(len(rows))] for rows in rows_of.values()])


def audit_direction(
    queries_Pb: Float[np.ndarray, "P b"],
    targets_Pb: Float[np.ndarray, "P b"],
    labels_PK: Int8[np.ndarray, "P K"],
    *,
    query: str,
    target: str,
    pools: Sequence[int] = POOLS,
    seed: int,
) -> list[LinkageRow]:
    """Audit one direction from outputs; row by row the same patient.

    Args:
        queries_Pb: Relaxed codes v of what is held; their signs are the codes.
        targets_Pb: Of what is searched.
        labels_PK: 1 positive, 0 negative, -1 uncertain.
        query: Name of the modality.
        target: Name of the modality.
        pools: See :func:`audit_linkage`.
        seed: Of the resamples.

    Raises:
        DataError: There are fewer than two patients, or a pool is below 2.
    """
    patients = len(queries_Pb)
    if patients < 2:
        raise DataError(f"{patients} patients cannot be taken for each other; give two at least")
    if not pools or min(pools) < 2:
        raise DataError(f"the pools are {list(pools)}; give sizes of 2 and more")
    sizes = sorted({pool for pool in pools if pool <= patients}) or [min(pools)]
    groups = np.unique(labels_PK, axis=0, return_inverse=True)[1].reshape(-1)
    compared: dict[Literal["codes", "floats"], tuple[np.ndarray, np.ndarray, float]] = {
        "codes": (_signs(queries_Pb), _signs(targets_Pb), _TIED_CODES),
        "floats": (_units(queries_Pb), _units(targets_Pb), _TIED_COSINES),
    }
    rows: list[LinkageRow] = []
    for representation, (asked, searched, tolerance) in compared.items():
        everyone, matched = standings(asked, searched, groups, tolerance)
        alike = matched.of(np.flatnonzero(matched.others > 0))
        rng = numpy_stream(seed, "linkage", "bootstrap")
        samples = _resamples(patients, rng)
        named = _Named(query, target, representation, "random")
        for pool in sizes:
            rows += _rows(named, everyone, pool, samples)
        if not len(alike.others):
            continue
        samples = _resamples(len(alike.others), rng)
        largest = int(alike.others.max()) + 1
        for pool, smaller in zip(sizes, [1, *sizes], strict=False):
            if smaller < largest:  # else it would be the smaller pool again
                rows += _rows(named._replace(pools="matched"), alike, pool, samples)
    return rows


def standings(
    queries_Pb: Float[np.ndarray, "P b"],
    targets_Pb: Float[np.ndarray, "P b"],
    groups: Int64[np.ndarray, " P"],
    tolerance: float,
) -> tuple[Standings, Standings]:
    """Standings among all others and among the others of one's own group, by inner product.

    Args:
        queries_Pb: Unit vectors, or codes of -1/+1.
        targets_Pb: Likewise.
        groups: Number of each patient's group.
        tolerance: Products that differ by no more are tied.
    """
    patients = len(queries_Pb)
    counts = np.zeros((2, 3, patients), dtype=np.int64)
    rows = max(1, _BLOCK_PAIRS // patients)
    for start in range(0, patients, rows):
        block = np.arange(start, min(start + rows, patients))
        products = queries_Pb[block] @ targets_Pb.T
        own = products[np.arange(len(block)), block][:, None]
        closer = products > own + tolerance
        tied = ~closer & (products >= own - tolerance)
        alike = groups[block][:, None] == groups
        for place, among in enumerate((np.True_, alike)):
            counts[place, 0, block] = (closer & among).sum(axis=1)
            counts[place, 1, block] = (tied & among).sum(axis=1) - 1  # without itself
        counts[1, 2, block] = alike.sum(axis=1) - 1
    counts[0, 2] = patients - 1
    return Standings(*counts[0]), Standings(*counts[1])


def expected_recall(found: Standings, pool: int, rank: int) -> Float64[np.ndarray, " P"]:
    """Probability that the own item is among the first `rank` of a pool (rule 3)."""
    from scipy.stats import hypergeom  # a second of imports

    recall = np.empty(len(found.others))
    for others in np.unique(found.others).tolist():
        at = np.flatnonzero(found.others == others)
        before = np.arange(others + 1)
        hit = hypergeom.cdf(rank - 1, others, before, min(pool - 1, others))
        sums = np.concatenate([[0.0], np.cumsum(hit)])
        first, orders = found.closer[at], found.tied[at] + 1
        recall[at] = (sums[first + orders] - sums[first]) / orders
    return recall


def expected_rank(found: Standings, pool: int) -> Float64[np.ndarray, " P"]:
    """Expected rank of the own item in a pool, from 1."""
    drawn = np.minimum(pool - 1, found.others) / np.maximum(found.others, 1)
    return np.asarray(1 + drawn * (found.closer + found.tied / 2))


class _Named(NamedTuple):
    """What all figures of one table have in common."""

    query: str
    target: str
    representation: Literal["codes", "floats"]
    pools: Literal["random", "matched"]


def _rows(
    named: _Named, found: Standings, pool: int, samples: UInt8[np.ndarray, "R P"]
) -> Iterator[LinkageRow]:
    """All figures at one size of pool."""
    sizes = found.pool_sizes(pool)

    def row(metric: str, value: float, ends: tuple[float, float], chance: float) -> LinkageRow:
        about = (len(sizes), float(np.median(sizes)))
        return LinkageRow(*named, pool, metric, value, *ends, chance, *about)

    for rank in RANKS:
        recall = expected_recall(found, pool, rank)
        lucky = np.minimum(1.0, rank / sizes)
        lift = recall / lucky
        ends = [_ends(means) for means in _means(samples, np.stack([recall, lift]))]
        yield row(f"recall@{rank}", float(recall.mean()), ends[0], float(lucky.mean()))
        yield row(f"lift@{rank}", float(lift.mean()), ends[1], 1.0)
    ranks = expected_rank(found, pool)
    middle = float(np.median((sizes + 1) / 2))
    yield row("median_rank", float(np.median(ranks)), _ends(_medians(samples, ranks)), middle)


def _resamples(patients: int, rng: np.random.Generator) -> UInt8[np.ndarray, "R P"]:
    """How often each patient stands in each resample."""
    counts = np.empty((_RESAMPLES, patients), dtype=np.uint8)
    for sample in counts:
        drawn = np.bincount(rng.integers(patients, size=patients), minlength=patients)
        sample[:] = drawn  # more than 255 of one patient: less than 1e-500
    return counts


def _means(
    samples: UInt8[np.ndarray, "R P"], values: Float64[np.ndarray, "some P"]
) -> Float64[np.ndarray, "some R"]:
    """Means of the values over each resample."""
    blocks = [values @ block.T.astype(np.float64) for block in np.array_split(samples, 20)]
    return np.asarray(np.concatenate(blocks, axis=1) / samples.shape[1])


def _medians(
    samples: UInt8[np.ndarray, "R P"], values: Float64[np.ndarray, " P"]
) -> Float64[np.ndarray, " R"]:
    """Median of the values over each resample."""
    order = np.argsort(values, kind="stable")
    ordered, patients = values[order], len(values)
    medians = []
    for block in np.array_split(samples, 20):
        upto = block[:, order].cumsum(axis=1, dtype=np.int64)
        middles = [
            ordered[(upto > place).argmax(axis=1)] for place in ((patients - 1) // 2, patients // 2)
        ]
        medians.append((middles[0] + middles[1]) / 2)
    return np.concatenate(medians)


def _ends(resampled: Float64[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _signs(outputs_Pb: Float[np.ndarray, "P b"]) -> Float[np.ndarray, "P b"]:
    """Codes as -1/+1; their product is b minus twice the Hamming distance, exact in float32."""
    return unpack_signs(pack_signs(outputs_Pb)).astype(np.float32)


def _units(outputs_Pb: Float[np.ndarray, "P b"]) -> Float64[np.ndarray, "P b"]:
    outputs = outputs_Pb.astype(np.float64)
    return np.asarray(outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-30))
