"""Dealing training patients to sites.

1. Under `iid` and `dirichlet` a patient stands at one site, which depends on the partition's
   settings, the seed, the patient's id and its own findings alone: no other patient moves it.
   So flwr-datasets' partitioners deal not the patients but a fixed table of places, one table for
   each finding, and a patient takes the place that its id draws.
2. The class of a patient is one of its positive findings, drawn by its id. `iid` has one class.
3. Deals are drawn until every site is large enough, and the first such draw is taken. This is the
   one exception to 1: where draws were refused, more patients can make an earlier draw large
   enough, and then all are dealt by that one. Where the first draw was taken, a new patient moves
   nobody.
4. `natural` follows the data, where a patient may have been seen at two sites; sites with too few
   patients are pooled into one, and leave it when they have enough.

    >>> partition_patients(studies, Partition(scheme="dirichlet", sites=10, alpha=.1), seed=0)
    {'site-00': (Study(...), ...), ...}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner
from jaxtyping import Int64
from pydantic import TypeAdapter, ValidationError

from fedhash.agreement import SiteName
from fedhash.data.study import Study
from fedhash.errors import DataError
from fedhash.randomness import stream_seed
from fedhash_sim.settings import Partition

__all__ = ["POOLED_SITE", "partition_patients"]

POOLED_SITE = "(small sites)"
_MOST_SITES = 1000  # of one round
_SITE_NAME: TypeAdapter[str] = TypeAdapter(SiteName)
_PLACES_A_SITE = 100  # a site's share of a finding is a multiple of a hundredth of an even share
_DRAWS = 200  # before a smallest site of the asked size is called impossible


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
        DataError: A study has no site under `natural`, or one that no round can name, or there are
            too many; or the scheme cannot give every site its smallest number of patients.
    """
    if partition.scheme == "natural":
        return _natural(studies, partition.smallest_site_patients)
    site_of = _dealt(_patient_classes(studies, partition, seed), partition, seed)
    return _grouped((f"site-{site_of[study.patient_id]:02d}", study) for study in studies)


def _natural(studies: Sequence[Study], smallest_site_patients: int) -> dict[str, tuple[Study, ...]]:
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for study in studies:
        if not study.attributes.get("site"):
            raise DataError(
                f"study {study.study_id} has no attribute 'site', which the natural partition "
                "follows; add a column attr.site or choose the scheme iid or dirichlet"
            )
        patients[study.attributes["site"]].add(study.patient_id)
    for site in patients:
        try:
            _SITE_NAME.validate_python(site)
        except ValidationError as error:
            raise DataError(
                f"{site[:60]!r} cannot be a site's name; give attr.site 1 to 200 characters, "
                "none of them a control character"
            ) from error
    small = {site for site, who in patients.items() if len(who) < smallest_site_patients}
    if len(patients) - len(small) >= _MOST_SITES:
        raise DataError(
            f"the data has {len(patients)} sites, a round takes {_MOST_SITES}; raise "
            "partition.smallest_site_patients, which pools the small ones"
        )
    return _grouped(
        (POOLED_SITE if study.attributes["site"] in small else study.attributes["site"], study)
        for study in studies
    )


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
    if partition.scheme == "iid":
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
        raise DataError(
            f"{sites} sites of at least {smallest} patients need {sites * smallest} patients, and "
            f"there are {len(class_of)}; lower partition.sites or "
            "partition.smallest_site_patients"
        )
    count = sites * _PLACES_A_SITE
    places = Dataset.from_dict({"place": range(count), "finding": [0] * count})
    place_of = {each: stream_seed(seed, "partition", "place", each) % count for each in class_of}
    for draw in range(_DRAWS):
        deals = {
            each: _deal(places, partition, stream_seed(seed, "partition", "deal", each, draw))
            for each in set(class_of.values())
        }
        site_of = {each: int(deals[class_of[each]][place_of[each]]) for each in class_of}
        sizes = Counter(site_of.values())
        if all(sizes[site] >= smallest for site in range(sites)):
            return site_of
    raise DataError(
        f"no draw of {_DRAWS} gave each of {sites} sites at least {smallest} patients"
        + (
            f" at alpha {partition.alpha}; raise partition.alpha or lower"
            if partition.alpha
            else "; lower"
        )
        + " partition.sites or partition.smallest_site_patients"
    )


def _deal(places: Dataset, partition: Partition, seed: int) -> Int64[np.ndarray, " places"]:
    """The site of each place of one class."""
    sites = partition.sites or 0
    partitioner: Partitioner
    if partition.scheme == "iid":
        partitioner = IidPartitioner(sites)
        partitioner.dataset = places.shuffle(seed=seed)
    else:
        partitioner = DirichletPartitioner(
            sites,
            "finding",
            alpha=partition.alpha or 0.0,
            min_partition_size=0,
            self_balancing=False,
            seed=seed,
        )
        partitioner.dataset = places
    site_of = np.empty(len(places), dtype=np.int64)
    for site in range(sites):
        site_of[partitioner.load_partition(site)[:]["place"]] = site
    return site_of
