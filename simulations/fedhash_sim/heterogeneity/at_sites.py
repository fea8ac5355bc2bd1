"""Every study as the site holds it that it was dealt to.

1. A site's studies have none of the modalities that the site lacks, in its training and in its
   database.
2. Queries stay whole, and so do the public patients, who are nobody's.

    >>> at_their_sites(pool, assign_roles(study, pool, seed=0))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedhash.data.study import Study
from fedhash_sim.roles import Roles
from fedhash_sim.settings import StudySettings
from fedhash_sim.sources import Pool

__all__ = ["at_their_sites", "differ"]


def differ(settings: StudySettings) -> bool:
    """Whether a study's content depends on where it was dealt to, and so on the seed."""
    return settings.missing_modalities is not None


def at_their_sites(pool: Pool, roles: Roles) -> Pool:
    """The studies of a pool, in their order.

    Args:
        pool: As the source has them.
        roles: Who holds which.
    """
    site_of = _site_of(roles)
    return replace(
        pool,
        studies=tuple(
            _without(each, roles.missing.get(site_of.get(each.study_id, ""), ()))
            for each in pool.studies
        ),
    )


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


def _without(study: Study, lost: tuple[str, ...]) -> Study:
    if not lost:
        return study
    contents = {name: each for name, each in study.contents.items() if name not in lost}
    return replace(study, contents=contents)
