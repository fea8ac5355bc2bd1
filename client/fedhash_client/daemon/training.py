"""The trainer of whatever model a round asks for, within the site's own limits.

A real site learns of a model by the first request that names it. Rules:

1. What can be judged without data is judged first: the model is laid out without memory (torch's
   device `meta`), so the agent's checks of layout and size come before any study is read.
2. No model above the site's `largest_model_parameters` and no prepared studies above its
   `largest_prepared_bytes` are built: ``too_large``.
3. Only patients who consent train. The studies are prepared once a model; the trainer stays warm
   for the next round, and the prepared studies on the disk for the next start (`prepared_cache`).
4. Data that changed - the manifest, a withdrawal, a file of it - is prepared anew before the next
   round trains. Data that changes while it is read is refused: ``data_changing``.
5. Preparing may outlast the caller's patience. Then nothing is trained, for nobody would read the
   answer and privacy would be spent on it: ``abandoned``. Asked again, the site answers at once.
6. What is wrong with the data stands in the site's log and in no refusal: ``not_ready``.

    >>> trainers = Trainers(settings, agreement, state_folder)
    >>> SiteAgent(name, agreement, trainers.of(settings.model, wanted), state, aggregation)
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

import fedhash
from fedhash.agreement import Agreement
from fedhash.errors import DataError, FedhashError, ModelError, RefusedError, StorageError
from fedhash.learning.local_training import LocalResult
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.hash_model import (
    HashModel,
    build_model,
    frozen_modalities,
    model_without_memory,
)
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings
from fedhash.privacy.noise import SecureNoise
from fedhash.privacy.reservation import data_fingerprint, reserve_model_update
from fedhash.rounds.messages import canonical_json
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.rounds.training_messages import TrainRequest
from fedhash.secagg.floors import SecureCohort
from fedhash_client.archive_index import read_site_manifest
from fedhash_client.daemon.paths import WITHDRAWN_FILE
from fedhash_client.daemon.prepared_cache import (
    FileMarks,
    PreparedCache,
    file_marks,
    unchanged,
)
from fedhash_client.privacy_budget import limits_of
from fedhash_client.settings import SiteSettings

__all__ = ["PlannedTrainer", "Trainers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Warm:
    """A trainer and what it was made of."""

    model_settings: ModelSettings
    version: str
    marks: FileMarks
    trainer: SiteTrainer


class Trainers:
    """Makes trainers, and keeps the one that was asked for last.

    Args:
        settings: The site's file.
        agreement: What it signed.
        state_folder: Holds `prepared/`.
        seed: Of the site's batches (`training_seed`).
    """

    def __init__(
        self, settings: SiteSettings, agreement: Agreement, state_folder: Path, seed: int
    ) -> None:
        self._settings = settings
        self._agreement = agreement
        self._state_folder = state_folder
        self._cache = PreparedCache(state_folder / "prepared")
        self._seed = seed
        self._warm: _Warm | None = None

    @property
    def patients(self) -> int | None:
        """Patients of the warm trainer, or None."""
        return None if self._warm is None else self._warm.trainer.patients

    def of(self, model: ModelSettings, still_wanted: Callable[[], bool]) -> PlannedTrainer:
        """The trainer of a model; no data is read yet.

        Args:
            model: As the round file has it, not validated.
            still_wanted: Whether the caller still waits.

        Raises:
            RefusedError: There is no such model, or it is too large for this site.
        """
        return PlannedTrainer(
            model, self._layout(model), partial(self._trainer, model, still_wanted)
        )

    def forget(self) -> None:
        """Drop the warm trainer and all prepared studies, here and on the disk.

        Raises:
            StorageError: The operating system refuses.
        """
        self._warm = None
        self._cache.forget()

    def _layout(self, model: ModelSettings) -> Layout:
        try:
            layout = Layout.of(self._without_memory(model))
        except ModelError as error:  # it speaks of the request alone
            raise RefusedError("other_model", str(error)) from error
        most = self._settings.training.largest_model_parameters
        if layout.size > most:
            raise RefusedError(
                "too_large",
                f"the request is for a model of {layout.size} parameters, this site's own file "
                f"allows {most}",
            )
        return layout

    def _without_memory(self, model: ModelSettings) -> HashModel:
        return model_without_memory(model, Anchors.build(self._agreement))

    def _trainer(self, model: ModelSettings, still_wanted: Callable[[], bool]) -> SiteTrainer:
        warm = self._warm
        version = self._data_version()
        if (
            warm is None
            or (warm.model_settings, warm.version) != (model, version)
            or not unchanged(warm.marks)
        ):
            self._warm = warm = None  # before the next one fills the memory
            try:
                warm = self._made(model, version)
            except RefusedError:
                raise
            except FedhashError as error:
                _log.exception("this site's data cannot be trained on")
                raise RefusedError(
                    "not_ready", "this site's data is not ready for the model; see its own log"
                ) from error
            self._warm = warm
        if not still_wanted():
            raise RefusedError("abandoned", "nobody waits for the answer any more")
        return warm.trainer

    def _made(self, model: ModelSettings, version: str) -> _Warm:
        key = self._key(model, version)
        found = self._cache.load(key)
        if found is None:
            found = self._prepared(model)
            if self._data_version() != version or not unchanged(found[1]):
                raise RefusedError(
                    "data_changing", "this site's data changed while it was read; ask again"
                )
            self._cache.store(key, *found)
        prepared, marks = found
        trainer = SiteTrainer(
            self._settings.name,
            self._agreement,
            model,
            prepared,
            self._seed,
            self._privacy(prepared),
        )
        _log.info("ready for a model of %d parameters", trainer.model_size)
        return _Warm(model, version, marks, trainer)

    def _prepared(self, model: ModelSettings) -> tuple[PreparedStudies, FileMarks]:
        manifest = read_site_manifest(self._settings, self._agreement)
        towers = model.towers
        studies = [
            study
            for study in manifest.studies
            if study.consent and not towers.keys().isdisjoint(study.contents)
        ]
        if not studies:
            raise DataError(
                f"{self._settings.manifest} holds no usable study with consent for "
                f"{', '.join(sorted(towers))}; fedhash-site check names the reason of each row"
            )
        marks = file_marks(studies)
        self._check_room(model, len(studies))
        frozen = {}
        for modality in frozen_modalities(model):
            file = self._settings.training.frozen.get(modality)
            if file is None:
                raise DataError(
                    f"the round has a frozen tower for {modality!r} and training.frozen names no "
                    "file for it; fetch the file of frozen features, and name it there"
                )
            frozen[modality] = FrozenFeatures.load(file)
        ready = build_model(
            model,
            self._agreement.code_bits,
            0,
            anchors=Anchors.build(self._agreement),
            frozen=frozen,
        )
        return prepare_studies(ready, studies, self._agreement.findings), marks

    def _check_room(self, model: ModelSettings, studies: int) -> None:
        shape = self._without_memory(model)
        numbers = sum(math.prod(shape.tower(name).prepared_shape) for name in shape.modalities)
        most = self._settings.training.largest_prepared_bytes
        if 4 * numbers * studies > most:  # the log tells how many, the refusal must not
            raise DataError(
                f"{studies} prepared studies of {numbers} numbers need {4 * numbers * studies} "
                f"bytes, training.largest_prepared_bytes is {most}; raise it if there is memory"
            )

    def _privacy(self, prepared: PreparedStudies) -> SitePrivacy | None:
        privacy = self._settings.privacy
        if privacy is None:
            return None
        return SitePrivacy(
            noise=lambda _run, _round: SecureNoise(),
            reserve=partial(
                reserve_model_update,
                privacy.ledger,
                list(limits_of(privacy, self._agreement).values()),
                data_fingerprint(prepared),
            ),
            modes=privacy.modes,
        )

    def _data_version(self) -> str:
        """Changes with the manifest and with every withdrawal."""
        try:
            hashed = hashlib.sha256(self._settings.manifest.read_bytes())
            for name in (WITHDRAWN_FILE, f"{WITHDRAWN_FILE}-wal"):
                path = self._state_folder / name
                status = path.stat() if path.exists() else None
                if status is not None and status.st_size:
                    hashed.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
        except OSError as error:
            _log.exception("this site's data cannot be looked at")
            raise RefusedError("not_ready", "this site's data cannot be read; see its log") from (
                StorageError(error)
            )
        return hashed.hexdigest()

    def _key(self, model: ModelSettings, version: str) -> str:
        about = {
            "data": version,
            "manifest": str(self._settings.manifest),
            "model": model.model_dump(mode="json"),
            "findings": list(self._agreement.findings),
            "code": fedhash.__version__,
        }
        return hashlib.sha256(canonical_json(about).encode()).hexdigest()


class PlannedTrainer:
    """What an agent judges a request by; the data is read when the training begins.

    It is a `fedhash.rounds.site.Trainer` for the one model of a plan.
    """

    def __init__(
        self,
        model_settings: ModelSettings,
        layout: Layout,
        ready: Callable[[], SiteTrainer],
    ) -> None:
        self.model_settings = model_settings
        self.layout_digest = layout.digest()
        self.model_size = layout.size
        self._make_ready = ready
        self._ready: SiteTrainer | None = None

    @property
    def patients(self) -> int:
        """Patients that trained; 0 before the training, for that alone reads data."""
        return 0 if self._ready is None else self._ready.patients

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:
        """See :class:`fedhash.rounds.site.Trainer`."""
        self._ready = self._make_ready()
        return self._ready.train(request, carried)

    def shared_step(
        self, request: TrainRequest, cohort: SecureCohort | None
    ) -> tuple[LocalResult, Int64[np.ndarray, " d"]]:
        """See :class:`fedhash.rounds.site.Trainer`."""
        self._ready = self._make_ready()
        return self._ready.shared_step(request, cohort)
