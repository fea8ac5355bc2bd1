"""Sites that the data names itself, in an attribute of each study.

A patient may have been seen at two of them. Sites with too few patients are pooled into one, and
leave it when they have enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from fedhash.agreement import SiteName
from fedhash.data.study import Study
from fedhash_sim.partition_settings import Partition
from fedhash_sim.partitions.refusal import PartitionError

__all__ = ["POOLED_SITE", "natural_sites"]

POOLED_SITE = "(small sites)"
_MOST_SITES = 1000  # of one round
_SITE_NAME: TypeAdapter[str] = TypeAdapter(SiteName)


def natural_sites(studies: Sequence[Study], partition: Partition) -> Mapping[str, str]:
    """Each study's site, by study id.

    Raises:
        PartitionError: A study has no site, or one that no round can name, or there are too many.
    """
    attribute, smallest = partition.attribute, partition.smallest_site_patients
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for study in studies:
        if not study.attributes.get(attribute):
            raise PartitionError(
                "attribute",
                f"study {study.study_id} has no attribute {attribute!r}, which the natural "
                f"partition follows; add a column attr.{attribute}, name another attribute or "
                "choose another scheme",
            )
        patients[study.attributes[attribute]].add(study.patient_id)
    for site in patients:
        try:
            _SITE_NAME.validate_python(site)
        except ValidationError as error:
            raise PartitionError(
                "attribute",
                f"{site[:60]!r} cannot be a site's name; give attr.{attribute} 1 to 200 "
                "characters, none of them a control character",
            ) from error
    small = {site for site, who in patients.items() if len(who) < smallest}
    if len(patients) - len(small) >= _MOST_SITES:
        raise PartitionError(
            "smallest_site_patients",
            f"the data has {len(patients)} sites, a round takes {_MOST_SITES}; raise "
            "partition.smallest_site_patients, which pools the small ones",
        )
    own = {each.study_id: each.attributes[attribute] for each in studies}
    return {study: POOLED_SITE if site in small else site for study, site in own.items()}
