"""The patients of one seed: split, dealt to sites, and made ready for training.

1. Splits and sites are disjoint in patients.
2. Training patients are dealt to sites; queries come from patients that no site trained on.
3. With a held-out database each site keeps a share of its patients out of training, and only
   those are searched; otherwise the database is what was trained on.
4. Frozen features and the studies prepared with them are known by the SHA-256 of the features'
   files: neither is read with another's.

A consortium is written once and read by every worker of that seed.

    >>> consortium = build_consortium(study, seed=0, folder=Path("runs/demo/data/seed-0"))
    >>> consortium.training("site-03")
    PreparedStudies(...)
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fedhash.configuration import did_you_mean, problem_at
from fedhash.data.splits import published_split, split_patients
from fedhash.data.study import Study
from fedhash.errors import CheckpointError, ConfigurationError, DataError
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures, frozen_file
from fedhash.models.hash_model import build_model, frozen_modalities
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.randomness import stream_seed
from fedhash.rounds.settings import RoundSettings, check_roster
from fedhash_sim.frozen import freeze_towers, with_digests
from fedhash_sim.input_files import INPUT_FILES, write_stamps
from fedhash_sim.partitions import PartitionError, partition_patients
from fedhash_sim.run_folder import explained
from fedhash_sim.settings import PhantomSource, ResolvedStudy, SplitFractions
from fedhash_sim.sources import Pool, load_pool

__all__ = ["Consortium", "Roles", "assign_roles", "build_consortium", "write_partition"]

_PUBLIC = "public"  # the site that the public patients are
_ABOUT = "consortium.json"  # written last: where it is, the rest is whole


@dataclass(frozen=True)
class Roles:
    """Which studies do what, by study id.

    Attributes:
        training: Site to the studies it trains on.
        database: Site to the studies it can be searched for.
        queries: Studies that ask.
        public: Studies of the public patients.
        notes: Sites that the splits left without training patients or without a database.
    """

    training: Mapping[str, tuple[str, ...]]
    database: Mapping[str, tuple[str, ...]]
    queries: tuple[str, ...]
    public: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Consortium:
    """Roles, and all studies prepared.

    Attributes:
        roles: Which studies do what.
        prepared: Every study of the pool.
        problems: Rows of the source that could not be used.
        without_consent: Studies left out for want of consent.
        frozen: Modality to what its frozen tower reads.
    """

    roles: Roles
    prepared: PreparedStudies
    problems: tuple[str, ...]
    without_consent: int
    frozen: Mapping[str, FrozenFeatures]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(sorted(self.roles.training))

    def training(self, *sites: str) -> PreparedStudies:
        """What these sites train on, together."""
        return self._of([each for site in sites for each in self.roles.training[site]])

    def database(self, *sites: str) -> PreparedStudies:
        """What these sites can be searched for, together."""
        return self._of([each for site in sites for each in self.roles.database[site]])

    def queries(self) -> PreparedStudies:
        """The studies that ask."""
        return self._of(self.roles.queries)

    def public(self) -> PreparedStudies:
        """The studies of the public patients."""
        return self._of(self.roles.public)

    def with_frozen(self, settings: RoundSettings) -> RoundSettings:
        """A round whose frozen towers name the features that were made here."""
        return with_digests(settings, self.frozen)

    def _of(self, study_ids: Sequence[str]) -> PreparedStudies:
        row_of = {study_id: row for row, study_id in enumerate(self.prepared.study_ids)}
        return self.prepared.select([row_of[study_id] for study_id in study_ids])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `build_consortium` wrote.

        Raises:
            DataError: The folder does not hold a whole consortium, or frozen features that were
                changed since.
        """
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            roles, digests = about["roles"], dict(about["frozen"])
            consortium = cls(
                Roles(
                    {site: tuple(ids) for site, ids in roles["training"].items()},
                    {site: tuple(ids) for site, ids in roles["database"].items()},
                    tuple(roles["queries"]),
                    tuple(roles["public"]),
                    tuple(roles["notes"]),
                ),
                PreparedStudies.load(folder / about["prepared"]),
                tuple(about["problems"]),
                int(about["without_consent"]),
                {
                    modality: FrozenFeatures.load(folder / frozen_file(modality))
                    for modality in digests
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder} does not hold prepared studies ({error!r}); "
                "remove the folder and run again"
            ) from error
        for modality, each in consortium.frozen.items():
            if each.sha256 != digests[modality]:
                raise DataError(
                    f"{folder / frozen_file(modality)} was changed since the studies beside it were"
                    f" prepared (its SHA-256 was {digests[modality]}); put the file back, or choose"
                    " another --out and run again"
                )
        if Path(about["prepared"]).name != _prepared_file(consortium.frozen):
            raise DataError(
                f"{folder / about['prepared']} was prepared with other frozen features than those "
                "beside it; choose another --out and run again"
            )
        return consortium


def build_consortium(study: ResolvedStudy, seed: int, folder: Path) -> Consortium:
    """Load, split, deal and prepare; what was done before is read.

    Args:
        study: The comparison.
        seed: Of the phantom, the splits and the partition.
        folder: The seed's own; what does not depend on the seed is kept beside it.

    Raises:
        DataError: The data cannot be had, or cannot be split or dealt as asked.
        ModelError: The model's settings are wrong.
        CheckpointError: The data has changed since another seed was prepared.
    """
    of_the_seed = isinstance(study.settings.data, PhantomSource) or frozen_modalities(
        study.round.model
    )
    shared = folder if of_the_seed else folder.parent
    if (folder / _ABOUT).is_file() and any(shared.glob("prepared*.safetensors")):
        return Consortium.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool = load_pool(study, seed, shared)
    roles = assign_roles(study, pool, seed)
    if pool.files and not (shared / INPUT_FILES).is_file():  # stamped before the last reading
        write_stamps(shared / INPUT_FILES, pool.files)
    is_public = set(roles.public)
    public = [each for each in pool.studies if each.study_id in is_public]
    frozen = freeze_towers(study, public, seed, folder)
    prepared = shared / _prepared_file(frozen)
    consortium = Consortium(
        roles,
        _prepared(study, pool, frozen, prepared),
        pool.problems,
        pool.without_consent,
        frozen,
    )
    about = {
        "roles": asdict(roles),
        "prepared": prepared.name if shared == folder else f"../{prepared.name}",
        "problems": pool.problems,
        "without_consent": pool.without_consent,
        "frozen": {modality: each.sha256 for modality, each in frozen.items()},
    }
    unfinished = folder / f"{_ABOUT}.tmp"
    unfinished.write_text(json.dumps(about), encoding="utf-8")
    unfinished.replace(folder / _ABOUT)
    return consortium


def _prepared_file(frozen: Mapping[str, FrozenFeatures]) -> str:
    """Name of the studies prepared with these features, so that others are never read as theirs."""
    if not frozen:
        return "prepared.safetensors"
    digests = " ".join(each.sha256 for _, each in sorted(frozen.items()))
    return f"prepared-{hashlib.sha256(digests.encode()).hexdigest()[:16]}.safetensors"


def _prepared(
    study: ResolvedStudy, pool: Pool, frozen: Mapping[str, FrozenFeatures], path: Path
) -> PreparedStudies:
    """All studies of the pool, from `path` where another seed prepared the same ones."""
    if path.is_file():
        prepared = PreparedStudies.load(path)
        if prepared.study_ids != tuple(each.study_id for each in pool.studies):
            raise CheckpointError(
                f"{path} holds other studies than the data has now; choose another --out, or "
                "--replace to start anew"
            )
        return prepared
    model = build_model(
        with_digests(study.round, frozen).model,
        study.agreement.code_bits,
        seed=0,
        anchors=Anchors.build(study.agreement),
        frozen=frozen,
    )
    prepared = prepare_studies(model, pool.studies, study.agreement.findings)
    with explained(path):
        prepared.save(path)
    return prepared


def assign_roles(study: ResolvedStudy, pool: Pool, seed: int) -> Roles:
    """Split the patients and deal the training patients to sites.

    Raises:
        ConfigurationError: The patients cannot be dealt as asked; it names the line.
        DataError: The published split lacks a part, a site has nobody to train on, a direction has
            nothing to ask or to search, or no study has an attribute that is reported by.
    """
    known = {name for each in pool.studies for name in each.attributes}
    for name in study.settings.evaluation.groups:
        if name not in known:
            raise DataError(
                f"evaluation.groups names {name!r}, an attribute that no study of the data has; "
                f"{did_you_mean(name, sorted(known))}"
            )
    try:
        roles = _roles(study, pool, seed)
        _check_directions(study, pool, roles)
    except PartitionError as error:
        message = f"seed {seed}: {error}"
        if study.file is None:
            raise DataError(message) from error
        place = ("partition", error.key)
        problem = problem_at(study.file, place, message, study.overrides)
        raise ConfigurationError([problem]) from error
    except DataError as error:
        raise DataError(f"seed {seed}: {error}") from error
    return roles


def _roles(study: ResolvedStudy, pool: Pool, seed: int) -> Roles:
    settings = study.settings
    if isinstance(settings.splits, SplitFractions):
        fractions = {"val": settings.splits.val, "test": settings.splits.test}
        splits = split_patients(
            pool.studies, {"train": 1 - sum(fractions.values()), **fractions}, seed
        )
    else:
        splits = published_split(pool.studies)
    for split in ("train", settings.evaluation.queries):
        if not splits.get(split):
            raise DataError(
                f"the split {split!r} is empty; the data has {_sizes(splits)}. "
                "Change 'splits' or 'evaluation.queries' in the study"
            )
    public, dealt = _public_and_dealt(study, splits["train"], seed)
    sites = dict(partition_patients(dealt, settings.partition, seed))
    takes_part = settings.public is not None and settings.public.takes_part
    if takes_part and _PUBLIC in sites:
        raise DataError(f"a site is named {_PUBLIC!r}, as the public patients' own; rename it")
    federated = study.round_of.get("federated")
    fault = (
        None
        if federated is None
        else check_roster(federated, study.agreement, len(sites) + takes_part)
    )
    if fault is not None:
        raise DataError(f"the partition: {fault}")
    held_out = settings.evaluation.held_out_database
    training, database = {}, {}
    notes = []
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
            raise DataError(
                f"site {site} has {len(studies)} studies and none is left to train on; lower "
                "evaluation.held_out_database or raise partition.smallest_site_patients"
            )
        training[site] = tuple(each.study_id for each in parts["train"])
        database[site] = tuple(each.study_id for each in parts["database"])
        if not parts["database"]:
            notes.append(f"site {site!r} keeps no study for the database: nothing is found there")
    queries = tuple(each.study_id for each in splits[settings.evaluation.queries])
    public_ids = tuple(each.study_id for each in public)
    if takes_part:  # it is nobody's archive
        training[_PUBLIC], database[_PUBLIC] = public_ids, ()
    return Roles(training, database, queries, public_ids, tuple(notes))


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
        raise DataError(
            f"of {len(training)} training studies {len(parts['public'])} are public; change "
            "public.share so that some are and some are not"
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
    database = [each for studies in roles.database.values() for each in studies]
    for direction in study.directions:
        for role, modality, studies in (
            ("query", direction.query, roles.queries),
            ("database", direction.target, database),
        ):
            if not any(modality in contents[each] for each in studies):
                raise DataError(
                    f"{direction.query} -> {direction.target} cannot be evaluated: no {role} study "
                    f"has {modality!r}; name other evaluation.directions, or another split or "
                    "held_out_database"
                )


def write_partition(
    path: Path, consortia: Mapping[int, Consortium], findings: Sequence[str]
) -> None:
    """Write the picture of who holds what: seed, site, finding, training patients."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "site", "finding", "patients"])
        for seed, consortium in consortia.items():
            for site in consortium.sites:
                part = consortium.training(site)
                for k, finding in enumerate(findings):
                    positive = (part.labels[:, k] == 1).tolist()
                    patients = {
                        patient
                        for patient, is_positive in zip(part.patient_ids, positive, strict=True)
                        if is_positive
                    }
                    writer.writerow([seed, site, finding, len(patients)])


def _sizes(splits: Mapping[str, Sequence[Study]]) -> str:
    return ", ".join(f"{name}: {len(studies)}" for name, studies in sorted(splits.items()))
