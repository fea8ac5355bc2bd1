"""The patients of one seed: split and dealt to sites (`fedhash_sim.roles`), ready for training.

1. A consortium is written once and read by every worker of that seed.
2. Frozen features and the studies prepared with them are known by the SHA-256 of the features'
   files: neither is read with another's.

    >>> consortium = build_consortium(study, seed=0, folder=Path("runs/demo/data/seed-0"))
    >>> consortium.training("site-03")
    PreparedStudies(...)
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch

from fedhash.errors import CheckpointError, DataError
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures, frozen_file
from fedhash.models.hash_model import build_model, frozen_modalities
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.frozen import freeze_towers, with_digests
from fedhash_sim.heterogeneity.at_sites import at_their_sites, differ
from fedhash_sim.input_files import INPUT_FILES, write_stamps
from fedhash_sim.results import ANY_MODALITY, HOLDING_COLUMNS
from fedhash_sim.roles import Roles, assign_roles, check_local_steps
from fedhash_sim.run_folder import explained
from fedhash_sim.settings import PhantomSource, ResolvedStudy
from fedhash_sim.sources import Pool, load_pool

__all__ = [
    "Consortium",
    "Dealt",
    "build_consortium",
    "deal",
    "deal_each",
    "write_holdings",
    "write_partition",
]

_ABOUT = "consortium.json"  # written last: where it is, the rest is whole


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
                    {site: tuple(lost) for site, lost in roles["missing"].items()},
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
                f"{folder} does not hold prepared studies ({error!r}); remove it and "
                f"{folder.parent.parent / 'results.csv'}, and run again"
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


@dataclass(frozen=True)
class Dealt:
    """The patients of one seed with their roles, nothing of them prepared."""

    pool: Pool
    roles: Roles


def deal_each(
    study: ResolvedStudy, seeds: Iterable[int], scratch: Path
) -> Iterator[tuple[int, Dealt]]:
    """Load, split and deal the patients of each seed.

    Args:
        study: The comparison.
        seeds: Of it.
        scratch: Folder for the manifest that a recipe writes.

    Raises:
        ConfigurationError: They cannot be split or dealt as asked.
        DataError: The data cannot be had.
    """
    pool = None
    for seed in seeds:
        if pool is None or isinstance(study.settings.data, PhantomSource):
            pool = load_pool(study, seed, scratch)
        roles = assign_roles(study, pool, seed)
        check_local_steps(study, pool, roles, seed)
        yield seed, Dealt(pool, roles)


def deal(study: ResolvedStudy, seeds: Mapping[int, Path]) -> dict[int, Dealt]:
    """`deal_each` for seeds that are not prepared yet, by their folders, which stand in one."""
    unprepared = [seed for seed, folder in seeds.items() if not _is_prepared(study, folder)]
    if not unprepared:
        return {}
    of_all_seeds = seeds[unprepared[0]].parent
    of_all_seeds.mkdir(parents=True, exist_ok=True)
    return dict(deal_each(study, unprepared, of_all_seeds))


def build_consortium(
    study: ResolvedStudy, seed: int, folder: Path, dealt: Dealt | None = None
) -> Consortium:
    """Load, split, deal and prepare; what was done before is read.

    Args:
        study: The comparison.
        seed: Of the phantom, the splits, the partition and what else differs between the sites.
        folder: The seed's own; what does not depend on the seed is kept beside it.
        dealt: What `deal` made of the seed; without it, it is made here.

    Raises:
        DataError: The data cannot be had, or cannot be split or dealt as asked.
        ModelError: The model's settings are wrong.
        CheckpointError: The data has changed since another seed was prepared.
    """
    if _is_prepared(study, folder):
        return Consortium.load(folder)
    dealt = dealt or deal(study, {seed: folder})[seed]
    folder.mkdir(parents=True, exist_ok=True)
    of_all_seeds, shared = folder.parent, _shared(study, folder)
    pool, roles = dealt.pool, dealt.roles
    stamps = of_all_seeds / INPUT_FILES
    if pool.files and not stamps.is_file():  # stamped before the last reading
        write_stamps(stamps, pool.files)
    modalities = tuple(study.round.model.towers)
    pool = at_their_sites(study.settings, modalities, pool, roles, seed)
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


def _shared(study: ResolvedStudy, folder: Path) -> Path:
    """Where the prepared studies stand: the seed's folder, or that of all seeds."""
    of_the_seed = (
        isinstance(study.settings.data, PhantomSource)
        or frozen_modalities(study.round.model)
        or differ(study.settings)
    )
    return folder if of_the_seed else folder.parent


def _is_prepared(study: ResolvedStudy, folder: Path) -> bool:
    is_told = (folder / _ABOUT).is_file()
    return is_told and any(_shared(study, folder).glob("prepared*.safetensors"))


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


def write_holdings(path: Path, consortia: Mapping[int, Consortium]) -> None:
    """Write how much each site trains on: of each modality, and under `(any)` of all."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HOLDING_COLUMNS)
        for seed, consortium in consortia.items():
            for site in consortium.sites:
                part = consortium.training(site)
                everything = torch.ones(len(part), dtype=torch.bool)
                for modality, present in {ANY_MODALITY: everything, **part.present}.items():
                    patients = {
                        each
                        for each, has in zip(part.patient_ids, present.tolist(), strict=True)
                        if has
                    }
                    writer.writerow([seed, site, modality, len(patients), int(present.sum())])
