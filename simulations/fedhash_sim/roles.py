"""Which studies of a seed do what: split, dealt to sites, and held out.

1. Splits and sites are disjoint in patients.
2. Training patients are dealt to sites; queries come from patients that no site trained on.
3. With a held-out database each site keeps a share of its patients out of training, and only
   those are searched; otherwise the database is what was trained on.
4. A study that has nothing but what its site lacks does nothing.

    >>> assign_roles(study, pool, seed=0).training
    {'site-00': ('s17', 's2', ...), ...}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhash.configuration import did_you_mean
from fedhash.data.splits import published_split, split_patients
from fedhash.data.study import Study
from fedhash.errors import DataError
from fedhash.learning.local_training import planned_steps
from fedhash.randomness import stream_seed
from fedhash.rounds.settings import check_roster
from fedhash_sim.heterogeneity.missing_modalities import lacking, missing_faults
from fedhash_sim.partitions import partition_patients
from fedhash_sim.refusal import RefusedByDataError, at_its_line
from fedhash_sim.settings import ResolvedStudy, SplitFractions
from fedhash_sim.sources import Pool

__all__ = ["PUBLIC_SITE", "Roles", "assign_roles", "check_local_steps"]

PUBLIC_SITE = "public"  # the site that the public patients are


@dataclass(frozen=True)
class Roles:
    """Which studies do what, by study id.

    Attributes:
        training: Site to the studies it trains on.
        database: Site to the studies it can be searched for.
        queries: Studies that ask.
        public: Studies of the public patients.
        notes: Sites that the splits left without training patients or without a database.
        missing: Site to the modalities that it lacks, of the sites that lack any.
    """

    training: Mapping[str, tuple[str, ...]]
    database: Mapping[str, tuple[str, ...]]
    queries: tuple[str, ...]
    public: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def assign_roles(study: ResolvedStudy, pool: Pool, seed: int) -> Roles:
    """Split the patients and deal the training patients to sites.

    Raises:
        ConfigurationError: The patients cannot be split or dealt, or their sites not lack, as
            asked, a site has nobody to train on, a direction has nothing to ask or to search, or no
            study has an attribute that is reported by; it names the line.
        DataError: The same of a study that was read from no file.
    """
    with at_its_line(study, seed):
        _check_groups(study, pool)
        roles = _roles(study, pool, seed)
        _check_directions(study, pool, roles)
    return roles


def check_local_steps(study: ResolvedStudy, pool: Pool, roles: Roles, seed: int) -> None:
    """Sites cut a round short at the agreement's cap without a word; a study must not.

    Raises:
        ConfigurationError: A site would take more steps; it names the line.
        DataError: The same of a study that was read from no file.
    """
    patient_of = {each.study_id: each.patient_id for each in pool.studies}
    most = study.agreement.largest_local_steps
    for method, settings in study.round_of.items():
        at = dict(roles.training)
        if method == "start":  # trains nothing
            continue
        if method == "public":
            at = {"public": roles.public}
        elif method == "central":
            at = {"central": tuple(each for site in at.values() for each in site)}
        for site, studies in at.items():
            steps = planned_steps(len({patient_of[each] for each in studies}), settings.learning)
            if steps > most:
                with at_its_line(study, seed):
                    raise RefusedByDataError(
                        ("round", "learning", "local_epochs"),
                        f"{method}: a round takes {steps} local steps at {site}, and the "
                        f"agreement's largest_local_steps cuts it at {most}; raise that, or lower "
                        "learning.local_epochs",
                    )


def _check_groups(study: ResolvedStudy, pool: Pool) -> None:
    known = {name for each in pool.studies for name in each.attributes}
    for number, name in enumerate(study.settings.evaluation.groups):
        if name not in known:
            raise RefusedByDataError(
                ("evaluation", "groups", number),
                f"evaluation.groups names {name!r}, an attribute that no study of the data has; "
                f"{did_you_mean(name, sorted(known))}",
            )


def _roles(study: ResolvedStudy, pool: Pool, seed: int) -> Roles:
    settings = study.settings
    splits = _splits(study, pool, seed)
    for split in ("train", settings.evaluation.queries):
        if not splits.get(split):
            raise RefusedByDataError(
                ("splits",) if split == "train" else ("evaluation", "queries"),
                f"the split {split!r} is empty; the data has {_sizes(splits)}. "
                "Change 'splits' or 'evaluation.queries' in the study",
            )
    public, dealt = _public_and_dealt(study, splits["train"], seed)
    sites = dict(partition_patients(dealt, settings.partition, seed))
    takes_part = settings.public is not None and settings.public.takes_part
    if takes_part and PUBLIC_SITE in sites:
        raise RefusedByDataError(
            ("partition",),
            f"a site is named {PUBLIC_SITE!r}, as the public patients' own; rename it in the data, "
            "or set public.takes_part: false",
        )
    federated, count = study.round_of.get("federated"), len(sites) + takes_part
    fault = None if federated is None else check_roster(federated, study.agreement, count)
    if fault is not None:
        too_few = (
            ", leave more patients to train in splits, or lower partition.smallest_site_patients"
        )
        remedy = too_few if count < study.agreement.smallest_cohort else ""
        raise RefusedByDataError(("partition",), f"the partition: {fault}{remedy}")
    missing = _missing(study, list(sites), seed)
    notes = _leave_out(sites, missing, study)
    held_out = settings.evaluation.held_out_database
    training, database = {}, {}
    if settings.partition.scheme == "natural":
        notes += _without_training(pool.studies, dealt, settings.partition.attribute)
    for site, studies in sites.items():
        parts: Mapping[str, Sequence[Study]] = {"train": studies, "database": studies}
        if held_out:
            # A stream of its own: the patients of `train` are not uniform under the first one.
            parts = split_patients(
                studies,
                {"train": 1 - held_out, "database": held_out},
                stream_seed(seed, "held-out database"),
            )
        if not parts["train"]:
            raise RefusedByDataError(
                ("evaluation", "held_out_database"),
                f"site {site} has {len(studies)} studies and none is left to train on; lower "
                "evaluation.held_out_database or raise partition.smallest_site_patients",
            )
        training[site] = tuple(each.study_id for each in parts["train"])
        database[site] = tuple(each.study_id for each in parts["database"])
        if not parts["database"]:
            notes.append(f"site {site!r} keeps no study for the database: nothing is found there")
    queries = tuple(each.study_id for each in splits[settings.evaluation.queries])
    public_ids = tuple(each.study_id for each in public)
    if takes_part:  # it is nobody's archive
        training[PUBLIC_SITE], database[PUBLIC_SITE] = public_ids, ()
    return Roles(training, database, queries, public_ids, tuple(notes), missing)


def _splits(study: ResolvedStudy, pool: Pool, seed: int) -> Mapping[str, tuple[Study, ...]]:
    asked = study.settings.splits
    if isinstance(asked, SplitFractions):
        train = 1 - (asked.val + asked.test)
        shares = {"train": train, "val": asked.val, "test": asked.test}
        return split_patients(pool.studies, shares, seed)
    try:
        return published_split(pool.studies)
    except DataError as error:
        raise RefusedByDataError(("splits",), str(error)) from error


def _missing(study: ResolvedStudy, sites: Sequence[str], seed: int) -> dict[str, tuple[str, ...]]:
    settings, modalities = study.settings.missing_modalities, tuple(study.round.model.towers)
    if settings is None:
        return {}
    for place, message in missing_faults(settings, modalities, sites):
        raise RefusedByDataError(place, message)
    return lacking(settings, sites, modalities, seed)


def _leave_out(
    sites: dict[str, tuple[Study, ...]], missing: Mapping[str, Sequence[str]], study: ResolvedStudy
) -> list[str]:
    """Take from the sites the studies that have nothing else than what their site lacks."""
    smallest, notes = study.settings.partition.smallest_site_patients, []
    for site, lost in missing.items():
        kept = set(study.round.model.towers) - set(lost)
        left = tuple(each for each in sites[site] if kept & each.contents.keys())
        patients = len({each.patient_id for each in left})
        if patients < smallest:
            raise RefusedByDataError(
                ("missing_modalities",),
                f"without {' and '.join(lost)} site {site!r} has {patients} patients, and "
                f"partition.smallest_site_patients is {smallest}; let it keep what its patients "
                "have",
            )
        if len(left) < len(sites[site]):
            notes.append(
                f"site {site!r} lacks all that {len(sites[site]) - len(left)} of its "
                f"{len(sites[site])} studies have; they take no part"
            )
        sites[site] = left
    return notes


def _public_and_dealt(
    study: ResolvedStudy, training: Sequence[Study], seed: int
) -> tuple[Sequence[Study], Sequence[Study]]:
    settings = study.settings.public
    if settings is None:
        return (), training
    parts = split_patients(
        training,
        {"public": settings.share, "dealt": 1 - settings.share},
        stream_seed(seed, "public patients"),
    )
    if not parts["public"] or not parts["dealt"]:
        raise RefusedByDataError(
            ("public", "share"),
            f"of {len(training)} training studies {len(parts['public'])} are public; change "
            "public.share so that some are and some are not",
        )
    return parts["public"], parts["dealt"]


def _without_training(
    studies: Sequence[Study], training: Sequence[Study], attribute: str
) -> list[str]:
    """A note for each natural site whose patients all stand in other splits."""
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for study in studies:
        patients[study.attributes.get(attribute, "")].add(study.patient_id)
    gone = patients.keys() - {study.attributes.get(attribute, "") for study in training} - {""}
    return [
        f"site {site!r} takes no part: none of its {len(patients[site])} patients is in the "
        "training split"
        for site in sorted(gone)
    ]


def _check_directions(study: ResolvedStudy, pool: Pool, roles: Roles) -> None:
    """Refuse, before any training, what could not be evaluated after it."""
    contents = {each.study_id: each.contents.keys() for each in pool.studies}
    database = {
        modality: [
            each
            for site, studies in roles.database.items()
            if modality not in roles.missing.get(site, ())
            for each in studies
        ]
        for modality in study.round.model.towers
    }
    for direction in study.directions:
        for role, modality, studies in (
            ("query", direction.query, roles.queries),
            ("database", direction.target, database[direction.target]),
        ):
            if not any(modality in contents[each] for each in studies):
                raise RefusedByDataError(
                    ("evaluation", "directions"),
                    f"{direction.query} -> {direction.target} cannot be evaluated: no {role} study "
                    f"has {modality!r}; name other evaluation.directions, or another split or "
                    "held_out_database",
                )


def _sizes(splits: Mapping[str, Sequence[Study]]) -> str:
    return ", ".join(f"{name}: {len(studies)}" for name, studies in sorted(splits.items()))
