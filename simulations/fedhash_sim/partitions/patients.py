"""Which patient stands at which site.

1. Under `iid` and `dirichlet` a patient stands at one site, which depends on the partition's
   settings, the seed, the patient's id and its own findings alone: no other patient moves it.
   So flwr-datasets' partitioners deal not the patients but a fixed table of places, one table for
   each finding, and a patient takes the place that its id draws.
2. Under `pathological`, `shard`, `linear`, `square` and `exponential` the patients themselves are
   dealt, in an order drawn by their ids: shares are exact, and a new patient may move others.
3. The class of a patient is one of its positive findings, drawn by its id. Schemes that do not look
   at findings have one class.
4. Deals are drawn until every site is large enough, and the first such draw is taken. This is the
   one exception to 1: where draws were refused, more patients can make an earlier draw large
   enough, and then all are dealt by that one. Where the first draw was taken, a new patient moves
   nobody.
5. `natural` follows the data (`fedhash_sim.partitions.natural`).
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    ExponentialPartitioner,
    IidPartitioner,
    LinearPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SquarePartitioner,
)
from jaxtyping import Int64

from fedhash.data.study import Study
from fedhash.randomness import stream_seed
from fedhash_sim.partition_settings import Partition
from fedhash_sim.partitions.natural import natural_sites
from fedhash_sim.partitions.refusal import PartitionError

__all__ = ["PartitionError", "partition_patients"]

_PLACES_A_SITE = 100  # a site's share of a finding is a multiple of a hundredth of an even share
_DRAWS = 200  # before a smallest site of the asked size is called impossible
_NOBODY = -1  # the site of a finding that a draw leaves out
_OF_PLACES = ("iid", "dirichlet")
_BY_FINDING = ("dirichlet", "pathological", "shard")
_BY_CHANCE = ("iid", "dirichlet", "pathological", "shard")  # another draw has other sizes


def partition_patients(
    studies: Sequence[Study], partition: Partition, seed: int
) -> dict[str, tuple[Study, ...]]:
    """Deal the patients of `studies` to named sites.

    Args:
        studies: Training studies.
        partition: The scheme and its arguments.
        seed: The experiment's seed.

    Returns:
        Site name to its studies, sites in name order, studies in their given order.

    Raises:
        PartitionError: A study has no site under `natural`, or one that no round can name, or there
            are too many; or the scheme cannot give every site its smallest number of patients.
    """
    if partition.scheme == "natural":
        site_of_study = natural_sites(studies, partition)
        return _grouped((site_of_study[study.study_id], study) for study in studies)
    site_of = _dealt(_patient_classes(studies, partition, seed), partition, seed)
    names = partition.site_names or ()
    return _grouped((names[site_of[study.patient_id]], study) for study in studies)


def _grouped(pairs: Iterable[tuple[str, Study]]) -> dict[str, tuple[Study, ...]]:
    sites: defaultdict[str, list[Study]] = defaultdict(list)
    for site, study in pairs:
        sites[site].append(study)
    return {site: tuple(sites[site]) for site in sorted(sites)}


def _patient_classes(
    studies: Sequence[Study], partition: Partition, seed: int
) -> Mapping[str, str]:
    """Each patient's class: the positive finding whose draw is the least.

    A finding more takes a patient into its class or leaves it where it was, never into a third one.
    """
    findings: defaultdict[str, set[str]] = defaultdict(set)
    for study in studies:
        findings[study.patient_id] |= study.positive
    if partition.scheme not in _BY_FINDING:
        return dict.fromkeys(findings, "")
    return {
        patient: min(
            positive, key=lambda each: stream_seed(seed, "partition", "class", patient, each)
        )
        for patient, positive in findings.items()
    }


def _dealt(class_of: Mapping[str, str], partition: Partition, seed: int) -> Mapping[str, int]:
    """Each patient's site, from the first draw whose sites are all large enough."""
    sites, smallest = partition.sites or 0, partition.smallest_site_patients
    if len(class_of) < sites * smallest:
        raise PartitionError(
            "sites",
            f"{sites} sites of at least {smallest} patients need {sites * smallest} patients, and "
            f"there are {len(class_of)}; lower partition.sites or "
            "partition.smallest_site_patients",
        )
    deal = _in_places if partition.scheme in _OF_PLACES else _in_turn
    draw_of = deal(class_of, partition, seed)
    draws = _DRAWS if partition.scheme in _BY_CHANCE else 1
    left_out = scarce = 0
    for draw in range(draws):
        try:
            site_of = draw_of(draw)
        except ValueError:  # of sizes that come to nobody, or a finding dealt to too many sites
            scarce += 1
            continue
        sizes = Counter(site_of.values())
        left_out += sizes[_NOBODY] > 0
        if not sizes[_NOBODY] and all(sizes[site] >= smallest for site in range(sites)):
            return site_of
    if partition.scheme == "pathological":
        raise PartitionError(
            "findings_per_site",
            f"of {draws} draws of {partition.findings_per_site} findings for each of {sites} sites "
            f"{left_out} left a finding to nobody, {scarce} gave one to more sites than it has "
            f"patients, and the others a site less than {smallest} patients; "
            + ("raise" if left_out > scarce else "lower")
            + " partition.findings_per_site, or change partition.sites",
        )
    raise PartitionError(
        "smallest_site_patients",
        (
            f"no draw of {draws} gave"
            if draws > 1
            else f"sizes that grow as {partition.scheme} do not give"
        )
        + f" each of {sites} sites at least {smallest} patients"
        + (
            f" at alpha {partition.alpha}; raise partition.alpha or lower"
            if partition.alpha
            else "; lower"
        )
        + " partition.sites or partition.smallest_site_patients",
    )


_Draws = Callable[[int], Mapping[str, int]]  # number of the draw to each patient's site


def _in_places(class_of: Mapping[str, str], partition: Partition, seed: int) -> _Draws:
    count = (partition.sites or 0) * _PLACES_A_SITE
    places = Dataset.from_dict({"row": range(count), "finding": [0] * count})
    place_of = {each: stream_seed(seed, "partition", "place", each) % count for each in class_of}

    def draw_of(draw: int) -> Mapping[str, int]:
        deals = {
            each: _deal(places, partition, stream_seed(seed, "partition", "deal", each, draw))
            for each in set(class_of.values())
        }
        return {each: int(deals[class_of[each]][place_of[each]]) for each in class_of}

    return draw_of


def _in_turn(class_of: Mapping[str, str], partition: Partition, seed: int) -> _Draws:
    """Deals of the patients themselves.

    Raises:
        PartitionError: There are more shards than patients, or more findings than the sites see.
    """
    sites = partition.sites or 0
    findings = sorted(set(class_of.values()))
    shards = sites * (partition.shards_per_site or 0)
    if shards > len(class_of):
        raise PartitionError(
            "shards_per_site",
            f"{sites} sites of {partition.shards_per_site} shards need at least {shards} patients, "
            f"and there are {len(class_of)}; lower partition.shards_per_site or partition.sites",
        )
    seen = partition.findings_per_site
    if seen is not None and seen > len(findings):
        raise PartitionError(
            "findings_per_site",
            f"each site is to see {seen} findings, and the training patients have "
            f"{len(findings)}; lower partition.findings_per_site",
        )
    if seen is not None and sites * seen < len(findings):
        raise PartitionError(
            "findings_per_site",
            f"{sites} sites that see {seen} of {len(findings)} findings would leave "
            f"{len(findings) - sites * seen} to nobody; raise partition.findings_per_site or "
            "partition.sites",
        )
    order = sorted(class_of, key=lambda each: stream_seed(seed, "partition", "order", each))
    if shards:  # patients sorted by class, cut so that sizes differ by one at most
        order.sort(key=class_of.__getitem__)
        row_of = [rank * shards // len(order) for rank in range(len(order))]
        rows = Dataset.from_dict({"row": range(shards), "finding": [0] * shards})
    else:
        row_of = list(range(len(order)))
        rows = Dataset.from_dict({"row": row_of, "finding": [class_of[each] for each in order]})

    def draw_of(draw: int) -> Mapping[str, int]:
        deal = _deal(rows, partition, stream_seed(seed, "partition", "deal", draw))
        return {each: int(deal[row]) for each, row in zip(order, row_of, strict=True)}

    return draw_of


def _deal(rows: Dataset, partition: Partition, seed: int) -> Int64[np.ndarray, " rows"]:
    """The site of each row, or `_NOBODY`."""
    sites = partition.sites or 0
    partitioner = _partitioner(partition, sites, seed)
    partitioner.dataset = rows.shuffle(seed=seed) if partition.scheme == "iid" else rows
    site_of = np.full(len(rows), _NOBODY, dtype=np.int64)
    with warnings.catch_warnings():
        # of findings that nobody sees: such a draw is refused
        warnings.simplefilter("ignore")
        for site in range(sites):
            site_of[partitioner.load_partition(site)[:]["row"]] = site
    return site_of


def _partitioner(partition: Partition, sites: int, seed: int) -> Partitioner:
    of_scheme: dict[str, Callable[[], Partitioner]] = {
        "iid": lambda: IidPartitioner(sites),
        "dirichlet": lambda: DirichletPartitioner(
            sites,
            "finding",
            alpha=partition.alpha or 0.0,
            min_partition_size=0,
            self_balancing=False,
            seed=seed,
        ),
        "pathological": lambda: PathologicalPartitioner(
            sites,
            "finding",
            partition.findings_per_site or 0,
            class_assignment_mode="first-deterministic",  # else most draws leave some out
            seed=seed,
        ),
        "shard": lambda: ShardPartitioner(sites, "finding", partition.shards_per_site, seed=seed),
        "linear": lambda: LinearPartitioner(sites),
        "square": lambda: SquarePartitioner(sites),
        "exponential": lambda: ExponentialPartitioner(sites),
    }
    return of_scheme[partition.scheme]()
