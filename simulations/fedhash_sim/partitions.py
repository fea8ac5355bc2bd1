"""Dealing training patients to sites.

The schemes are flwr-datasets' partitioners over a table with one row a patient, so a patient never
stands at two sites. The class of a patient is its rarest positive finding: that is what makes the
patient special, and "no finding" would hide it. The natural partition follows the data, where a
patient may have been seen at two sites; natural sites with too few patients are pooled into one.

    >>> partition_patients(studies, Partition(scheme="dirichlet", sites=10, alpha=.1), seed=0)
    {'site-00': (Study(...), ...), ...}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner
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
_DRAWS = 1000  # Dirichlet draws before a smallest site of the asked size is called impossible


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
    patients = _patient_classes(studies)
    needed = (partition.sites or 0) * partition.smallest_site_patients
    if len(patients) < needed:
        raise DataError(
            f"{partition.sites} sites of at least {partition.smallest_site_patients} patients need "
            f"{needed} patients, and there are {len(patients)}; lower partition.sites or "
            "partition.smallest_site_patients"
        )
    table = Dataset.from_dict(
        {"patient": list(patients), "finding": [patients[p] for p in patients]}
    )
    partitioner = _drawn(partition, table, seed)
    site_of = {
        patient: f"site-{site:02d}"
        for site in range(partition.sites or 0)
        for patient in partitioner.load_partition(site)["patient"]
    }
    return _grouped((site_of[study.patient_id], study) for study in studies)


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


def _patient_classes(studies: Sequence[Study]) -> Mapping[str, str]:
    """Each patient's rarest positive finding, patients in order of first appearance."""
    frequency = Counter(finding for study in studies for finding in study.positive)
    findings: dict[str, set[str]] = {}
    for study in studies:
        findings.setdefault(study.patient_id, set()).update(study.positive)
    return {
        patient: min(positive, key=lambda finding: (frequency[finding], finding))
        for patient, positive in findings.items()
    }


def _drawn(partition: Partition, table: Dataset, seed: int) -> Partitioner:
    """A partitioner whose smallest site is large enough, drawing again where it is not."""
    sites = partition.sites or 0
    if partition.scheme == "iid":
        shuffled = table.shuffle(seed=stream_seed(seed, "partition") % 2**32)
        partitioner: Partitioner = IidPartitioner(sites)
        partitioner.dataset = shuffled
        return partitioner
    for draw in range(_DRAWS):
        partitioner = DirichletPartitioner(
            sites,
            "finding",
            alpha=partition.alpha or 0.0,
            min_partition_size=0,
            self_balancing=False,
            seed=stream_seed(seed, "partition", draw) % 2**32,
        )
        partitioner.dataset = table
        sizes = [len(partitioner.load_partition(site)) for site in range(sites)]
        if min(sizes) >= partition.smallest_site_patients:
            return partitioner
    raise DataError(
        f"no draw of {_DRAWS} gave each of {sites} sites at least "
        f"{partition.smallest_site_patients} patients at alpha {partition.alpha}; raise "
        "partition.alpha or lower partition.sites or partition.smallest_site_patients"
    )
