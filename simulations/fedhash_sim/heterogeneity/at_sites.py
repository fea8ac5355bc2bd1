"""Every study as the site holds it that it was dealt to.

1. A site's studies have none of the modalities that the site lacks, in its training and in its
   database. Queries keep all of theirs.
2. Under feature shift a site's studies wear its look. Queries come from patients of the sites, so a
   query wears the look of one: of its own under `natural`, if that takes part, else of one that the
   seed draws for its patient, each as likely. A query without a look would come from a hospital
   that is none of the consortium's.
3. Public patients are nobody's: they keep all that they have, as it is.

    >>> at_their_sites(study.settings, modalities, pool, assign_roles(study, pool, 0), seed=0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedhash.data.study import Study
from fedhash.randomness import stream_seed
from fedhash_sim.heterogeneity.feature_shift import restyled, shifted_modalities
from fedhash_sim.heterogeneity.settings import FeatureShift
from fedhash_sim.partition_settings import Partition
from fedhash_sim.roles import Roles
from fedhash_sim.settings import StudySettings
from fedhash_sim.sources import Pool

__all__ = ["at_their_sites", "differ"]


def differ(settings: StudySettings) -> bool:
    """Whether a study's content depends on where it was dealt to, and so on the seed."""
    shift = settings.feature_shift
    return settings.missing_modalities is not None or (shift is not None and shift.strength > 0)


def at_their_sites(
    settings: StudySettings, modalities: Sequence[str], pool: Pool, roles: Roles, seed: int
) -> Pool:
    """The studies of a pool, in their order.

    Args:
        settings: The comparison.
        modalities: Those of the round's model.
        pool: As the source has them.
        roles: Who holds which.
        seed: Of the looks.
    """
    site_of, public = _site_of(roles), set(roles.public)
    sites = sorted(set(site_of.values()))
    shift = settings.feature_shift or FeatureShift(strength=0.0)
    shifted = set(shifted_modalities(shift, modalities))
    studies = []
    for study in pool.studies:
        site = site_of.get(study.study_id)
        lost = () if site is None else roles.missing.get(site, ())
        contents = {name: each for name, each in study.contents.items() if name not in lost}
        if shifted and study.study_id not in public:
            look = site or _asks_from(study, sites, settings.partition, seed)
            for name in contents.keys() & shifted:
                contents[name] = restyled(
                    contents[name], name, look, study.study_id, strength=shift.strength, seed=seed
                )
        studies.append(replace(study, contents=contents))
    return replace(pool, studies=tuple(studies))


def _site_of(roles: Roles) -> Mapping[str, str]:
    """The site of each study that one holds; public patients are nobody's."""
    public = set(roles.public)
    return {
        study_id: site
        for part in (roles.training, roles.database)
        for site, study_ids in part.items()
        for study_id in study_ids
        if study_id not in public
    }


def _asks_from(study: Study, sites: Sequence[str], partition: Partition, seed: int) -> str:
    """The site whose look a study wears that no site holds."""
    own = study.attributes.get(partition.attribute, "")
    if partition.scheme == "natural" and own in sites:
        return own
    return sites[stream_seed(seed, "feature shift", "asks from", study.patient_id) % len(sites)]
