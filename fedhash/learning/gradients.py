"""Where the gradient of a local step comes from: all that reads the patients' data in training.

What a source fills in may be released; what `fedhash.learning.local_training` makes of it, the
optimiser's step, its moments, FedProx's pull and the control variates, reads no patient again.
So a source that protects patients protects them against everything that follows.

`NoPrivacy` is the source without protection; `fedhash.privacy.dp_sgd` has the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from math import ceil
from typing import Protocol, runtime_checkable

import torch

from fedhash.errors import DataError, ModelError
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import PreparedStudies

__all__ = [
    "GradientSource",
    "NoPrivacy",
    "batches_of",
    "check_labelled",
    "check_modalities",
    "rows_by_patient",
]


@runtime_checkable  # the test suite checks types at run time
class GradientSource(Protocol):
    """Fills in the gradients of one round."""

    def gradients(
        self,
        model: HashModel,
        studies: PreparedStudies,
        loss: Loss,
        settings: LearningSettings,
        *,
        margins: Margins,
        steps: int,
        generator: torch.Generator,
    ) -> Generator[float | None, None, None]:
        """Before each of `steps` steps, set `.grad` of the model's parameters.

        Yields:
            The step's mean patient loss; None where it must not leave the site.

        Raises:
            DataError: As `check_labelled`.
        """
        ...


class NoPrivacy:
    """The gradient of the mean loss of a batch. What is released may hold any patient's data.

    A batch has at most `batch_patients` patients and one study of each, so a patient with many
    studies weighs no more than one with a single study. A pass over the patients is cut into
    batches of nearly equal size; steps beyond one pass start the next.
    """

    def gradients(
        self,
        model: HashModel,
        studies: PreparedStudies,
        loss: Loss,
        settings: LearningSettings,
        *,
        margins: Margins,
        steps: int,
        generator: torch.Generator,
    ) -> Generator[float | None, None, None]:
        """See :class:`GradientSource`."""
        check_labelled(studies)
        batches = batches_of(rows_by_patient(studies), settings.batch_patients, generator)
        for rows in islice(batches, steps):
            model.zero_grad()
            batch = studies.select(rows)
            outputs = {name: model.encode(name, x) for name, x in batch.inputs.items()}
            mean_loss = loss(outputs, batch.present, batch.labels, margins).mean()
            mean_loss.backward()  # type: ignore[no-untyped-call]
            if settings.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip_norm)
            yield mean_loss.item()


def check_modalities(model: HashModel, studies: PreparedStudies) -> None:
    """Refuse studies that another model prepared; looks at no patient.

    Raises:
        ModelError: The studies' modalities are not the model's.
    """
    if set(studies.inputs) != set(model.modalities):
        raise ModelError(
            f"the studies are prepared for {sorted(studies.inputs)}, the model reads "
            f"{list(model.modalities)}; prepare them with this model"
        )


def check_labelled(studies: PreparedStudies) -> None:
    """Refuse studies that no gradient comes of; looks at the patients.

    Raises:
        DataError: There is no study, or one without a positive finding.
    """
    if len(studies) == 0:
        raise DataError("there is no study to train on; check the manifest and the split")
    unlabelled = (~(studies.labels == 1).any(dim=1)).nonzero()
    if len(unlabelled):
        raise DataError(
            f"study {studies.study_ids[int(unlabelled[0])]} has no positive finding "
            f"(and {len(unlabelled) - 1} more); label it or leave it out, "
            "'no finding' is a finding too"
        )


def rows_by_patient(studies: PreparedStudies) -> list[list[int]]:
    """The rows of each patient's studies, patients in the order of their first study."""
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(studies.patient_ids):
        rows_of.setdefault(patient, []).append(row)
    return list(rows_of.values())


def batches_of(
    patients: Sequence[Sequence[int]], batch_patients: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Rows of one step after another, without end, of each patient's rows."""
    batches = ceil(len(patients) / batch_patients)
    while True:
        order = torch.randperm(len(patients), generator=generator)
        for part in torch.tensor_split(order, batches):
            yield _one_of_each([patients[place] for place in part.tolist()], generator)


def _one_of_each(patients: Sequence[Sequence[int]], generator: torch.Generator) -> list[int]:
    """One drawn row of each patient; where all have one the draws are made at once, as many."""
    if all(len(rows) == 1 for rows in patients):
        torch.randint(1, (len(patients),), generator=generator)
        return [rows[0] for rows in patients]
    return [rows[int(torch.randint(len(rows), (), generator=generator))] for rows in patients]
