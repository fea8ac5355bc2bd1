"""Studies ready for training: the towers' fixed front ends run once, labels beside them.

Shape suffixes: N studies, K findings; `...` is a tower's `prepared_shape`.

    >>> prepared = prepare_studies(model, studies, agreement.findings)
    >>> prepared.save(Path("prepared.safetensors"))
    >>> part = prepared.select([0, 5, 7])
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Int8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedhash.data.study import Study, label_matrix
from fedhash.errors import DataError
from fedhash.models.hash_model import HashModel

__all__ = ["PreparedStudies", "prepare_studies"]

_BLOCK_STUDIES = 256  # contents in memory at a time


@dataclass(frozen=True, eq=False)
class PreparedStudies:
    """N studies as tensors.

    Attributes:
        study_ids: One a study.
        patient_ids: One a study.
        labels: 1 positive, 0 negative, -1 uncertain.
        inputs: Modality to prepared inputs; the row of a missing modality is zero.
        present: Modality to whether the study has it.
        attributes: One mapping a study.
    """

    study_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: Int8[torch.Tensor, "N K"]
    inputs: Mapping[str, Float32[torch.Tensor, "N ..."]]
    present: Mapping[str, Bool[torch.Tensor, " N"]]
    attributes: tuple[Mapping[str, str], ...]

    def __len__(self) -> int:
        return len(self.study_ids)

    def select(self, indices: Sequence[int]) -> PreparedStudies:
        """The studies at `indices`, in their order; an index may repeat."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        places = rows.tolist()
        return type(self)(
            study_ids=tuple(self.study_ids[i] for i in places),
            patient_ids=tuple(self.patient_ids[i] for i in places),
            labels=self.labels[rows],
            inputs={name: tensor[rows] for name, tensor in self.inputs.items()},
            present={name: tensor[rows] for name, tensor in self.present.items()},
            attributes=tuple(self.attributes[i] for i in places),
        )

    def save(self, path: Path) -> None:
        """Write to `path` (safetensors); an earlier file is replaced as a whole or not at all."""
        tensors = {"labels": self.labels}
        tensors |= {f"inputs/{name}": tensor for name, tensor in self.inputs.items()}
        tensors |= {f"present/{name}": tensor for name, tensor in self.present.items()}
        texts = {
            "study_ids": self.study_ids,
            "patient_ids": self.patient_ids,
            "attributes": [dict(attributes) for attributes in self.attributes],
        }
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        metadata = {name: json.dumps(value) for name, value in texts.items()}
        save_file({name: t.contiguous() for name, t in tensors.items()}, unfinished, metadata)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> PreparedStudies:
        """Read what `save` wrote.

        Raises:
            DataError: The file is absent, damaged or of another kind.
        """
        try:
            with safe_open(path, framework="pt") as file:
                texts = {name: json.loads(value) for name, value in file.metadata().items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                study_ids=tuple(texts["study_ids"]),
                patient_ids=tuple(texts["patient_ids"]),
                labels=tensors["labels"],
                inputs=_under("inputs/", tensors),
                present=_under("present/", tensors),
                attributes=tuple(texts["attributes"]),
            )
        except (OSError, SafetensorError, AttributeError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} does not hold prepared studies ({error}); remove it and prepare again"
            ) from error


def prepare_studies(
    model: HashModel, studies: Sequence[Study], findings: Sequence[str]
) -> PreparedStudies:
    """Load each study once and run the fixed front end of each of the model's towers.

    Raises:
        DataError: A content cannot be read or does not fit its tower, or a study has a finding
            outside `findings`.
    """
    inputs, present = {}, {}
    for modality in model.modalities:
        tower = model.tower(modality)
        rows = [row for row, study in enumerate(studies) if modality in study.contents]
        prepared = torch.zeros(len(studies), *tower.prepared_shape)
        for start in range(0, len(rows), _BLOCK_STUDIES):
            block = rows[start : start + _BLOCK_STUDIES]
            prepared[block] = tower.prepare([studies[i].contents[modality].load() for i in block])
        inputs[modality] = prepared
        present[modality] = torch.zeros(len(studies), dtype=torch.bool)
        present[modality][rows] = True
    return PreparedStudies(
        study_ids=tuple(study.study_id for study in studies),
        patient_ids=tuple(study.patient_id for study in studies),
        labels=torch.from_numpy(label_matrix(studies, findings)),
        inputs=inputs,
        present=present,
        attributes=tuple(study.attributes for study in studies),
    )


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
