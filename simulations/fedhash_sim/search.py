"""Asking all sites of a finished run, as a consortium would: encode, ask, merge.

Each site's archive is filled with the released model's codes when the consortium is first asked.
A simulation knows what a real asker would not, so the answers here also show the findings of the
hits; the sites themselves answer with opaque handles only.

    >>> with SimulatedConsortium.open(Path("runs/demo")) as consortium:
    ...     question = consortium.question("report", "Large left pleural effusion.", "image")
    ...     consortium.ask(question, k=10).hits
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from fedhash.data.modalities import MODALITIES
from fedhash.errors import QueryError
from fedhash.index import Archive, SiteSearcher, check_limits, site_handle
from fedhash.index.encoding import check_example, encode_entries, encode_example
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.prepared import PreparedStudies
from fedhash.randomness import stream_seed
from fedhash.registry.release import Release
from fedhash.search import abstains, make_query, merge, radius_from_kappa
from fedhash_sim.consortium import Consortium
from fedhash_sim.run_folder import RunFolder

__all__ = ["Answer", "FoundStudy", "Question", "SimulatedConsortium", "simulated_handles"]


@dataclass(frozen=True, eq=False)
class Question:
    """An encoded example.

    Attributes:
        modality: What the example is.
        target: The modality to search in.
        text: The report, or a name for the image.
        findings: What the example shows, where the simulation knows it.
        outputs: The model's relaxed code v.
    """

    modality: str
    target: str
    text: str
    findings: tuple[str, ...]
    outputs: np.ndarray


@dataclass(frozen=True)
class FoundStudy:
    """One hit, with the findings that only the simulation knows."""

    site: str
    handle: str
    distance: int
    score: int
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The merged answer of all sites.

    Attributes:
        question: What was asked.
        hits: Best first.
        sites_asked: Number of sites.
        abstained: The model is unsure what the example shows, so no site was asked.
    """

    question: Question
    hits: tuple[FoundStudy, ...]
    sites_asked: int
    abstained: bool

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        question = self.question
        return {
            "query": {
                "modality": question.modality,
                "target": question.target,
                "text": question.text,
                "findings": list(question.findings),
            },
            "abstained": self.abstained,
            "sites_asked": self.sites_asked,
            "hits": [asdict(hit) for hit in self.hits],
        }


class SimulatedConsortium:
    """The sites of one run; their archives are opened for the first question that can be asked."""

    def __init__(
        self, folder: RunFolder, seed: int, consortium: Consortium, release: Release
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._consortium = consortium
        self._release = release
        self._model: HashModel = release.build_model()
        self._anchors = Anchors.build(release.agreement)
        self._searchers: list[SiteSearcher] = []
        self._labels_of: dict[str, tuple[str, ...]] = {}
        self._archives = ExitStack()

    @classmethod
    def open(cls, run: Path) -> Self:
        """The consortium of a run's first seed, with the federated release.

        Raises:
            CheckpointError: The folder is no run.
            ReleaseError: The run has no federated release yet.
            DataError: The prepared studies are damaged.
        """
        folder, study = RunFolder.existing(run)
        seed = study.settings.seeds[0]
        release = folder.release(study, "federated", seed)
        return cls(folder, seed, Consortium.load(folder.data(seed)), release)

    def _open_archives(self) -> list[SiteSearcher]:
        release = self._release
        searchers = []
        with ExitStack() as archives:
            for site in self._consortium.sites:
                studies = self._consortium.database(site)
                handles = simulated_handles(self._seed, site, studies)
                self._labels_of |= zip(handles, _findings(studies, release), strict=True)
                archive = archives.enter_context(
                    Archive(
                        self._folder.archive(site), release.release_id, release.agreement.code_bits
                    )
                )
                if archive.count() == 0:
                    archive.add(encode_entries(self._model, studies, handles))
                searchers.append(SiteSearcher(site, archive, release.agreement))
            self._archives = archives.pop_all()
        return searchers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archives.close()

    def question(self, modality: str, value: str, target: str | None) -> Question:
        """Encode a report text, or an image or signal named as in a manifest.

        Args:
            modality: What the example is.
            value: The text of a report, or the file of an image.
            target: The modality to search in; None: the example's own.

        Raises:
            DataError: The file cannot be read.
            ModelError: The model has no tower for the example.
            QueryError: The target is unknown.
        """
        check_example(value)
        content = MODALITIES[modality].read(value, Path.cwd()).load()
        return Question(
            modality,
            self._target(target, modality),
            value,
            (),
            encode_example(self._model, modality, content),
        )

    def example(self, modality: str, study_id: str | None, target: str | None) -> Question:
        """Ask with one of the run's own query studies.

        Args:
            modality: Which of its contents asks.
            study_id: Which study; None: the first with the most findings.
            target: The modality to search in; None: the example's own.

        Raises:
            QueryError: There is no such query study, or the target is unknown.
        """
        queries = self._consortium.queries()
        if modality not in queries.present:
            raise QueryError(
                f"the run has no {modality!r}; it has {', '.join(sorted(queries.present))}"
            )
        candidates = queries.select(torch.nonzero(queries.present[modality]).flatten().tolist())
        if study_id is not None and study_id not in candidates.study_ids:
            raise QueryError(
                f"{study_id!r} is no query study with {modality}; one of them is "
                f"{candidates.study_ids[0]!r}"
            )
        row = (
            candidates.study_ids.index(study_id)
            if study_id is not None
            else int((candidates.labels == 1).sum(dim=1).argmax())
        )
        asking = candidates.select([row])
        return Question(
            modality,
            self._target(target, modality),
            f"query study {asking.study_ids[0]}",
            _findings(asking, self._release)[0],
            encode_studies(self._model, asking, modality)[0],
        )

    def ask(
        self,
        question: Question,
        *,
        k: int,
        kappa: float | None = None,
        filters: Mapping[str, str] | None = None,
        abstention_margin: float = 0.0,
    ) -> Answer:
        """Ask all sites and merge their answers under the total order.

        Args:
            question: The encoded example.
            k: Hits wanted.
            kappa: Bounds the radius, see `radius_from_kappa`; None: no bound.
            filters: Attribute to the value that a hit must have.
            abstention_margin: Ask nobody where the best finding's anchor leads the second by less,
                up to 2; 0 always asks.

        Raises:
            QueryError: A limit of the agreement or a range is broken, or no study has an attribute
                of the filters.
            ArchiveError: An archive is damaged or in use.
        """
        check_limits(self._release.agreement, k=k, modality=question.target)
        known = {name for each in self._consortium.prepared.attributes for name in each}
        for name in filters or {}:
            if name not in known:
                raise QueryError(
                    f"no study has the attribute {name!r}; "
                    f"there are {', '.join(sorted(known)) or 'none'}"
                )
        code_bits = self._release.agreement.code_bits
        query = make_query(
            question.outputs,
            release_id=self._release.release_id,
            modality=question.target,
            k=k,
            radius=None if kappa is None else radius_from_kappa(kappa, code_bits),
            filters=filters,
        )
        abstained = abstains(question.outputs, self._anchors.matrix, abstention_margin)
        if not abstained and not self._searchers:
            self._searchers = self._open_archives()
        asked = [] if abstained else self._searchers
        hits = merge([searcher.answer(query).hits for searcher in asked], k)
        return Answer(
            question,
            tuple(
                FoundStudy(h.site, h.handle, h.distance, h.score, self._labels_of[h.handle])
                for h in hits
            ),
            len(asked),
            abstained,
        )

    def _target(self, target: str | None, own: str) -> str:
        if target is not None and target not in self._model.modalities:
            raise QueryError(
                f"there is no modality {target!r} to search in; "
                f"the release has {', '.join(self._model.modalities)}"
            )
        return target or own


def simulated_handles(seed: int, site: str, studies: PreparedStudies) -> list[str]:
    """Handles from a secret that anyone can compute: the studies of a simulation are no secret."""
    secret = stream_seed(seed, "handles", site).to_bytes(16, "big")
    return [site_handle(secret, study_id) for study_id in studies.study_ids]


def _findings(studies: PreparedStudies, release: Release) -> list[tuple[str, ...]]:
    vocabulary = release.agreement.findings
    return [
        tuple(finding for finding, state in zip(vocabulary, row, strict=True) if state == 1)
        for row in studies.labels.tolist()
    ]
