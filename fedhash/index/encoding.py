"""From studies to archive entries, and from one example to a query's output.

    >>> archive.add(encode_entries(model, prepared, handles))
    >>> outputs = encode_example(model, "report", "Large left pleural effusion.")
    >>> make_query(outputs, release_id=archive.release_id, modality="image", k=10)

Both must come from one release: codes of different releases are never compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from fedhash.codes import pack_signs
from fedhash.errors import QueryError
from fedhash.index.entry import Entry
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.prepared import PreparedStudies

__all__ = ["check_example", "encode_entries", "encode_example"]


def encode_entries(
    model: HashModel, studies: PreparedStudies, handles: Sequence[str]
) -> list[Entry]:
    """An entry for each modality that each study has.

    Args:
        model: The released model.
        studies: Prepared by a model of the same settings.
        handles: One a study, from `site_handle`.
    """
    entries = []
    for modality in model.modalities:
        codes = pack_signs(encode_studies(model, studies, modality))
        for row, present in enumerate(studies.present[modality].tolist()):
            if present:
                entries.append(
                    Entry(
                        handles[row],
                        studies.patient_ids[row],
                        modality,
                        codes[row].tobytes(),
                        studies.attributes[row],
                    )
                )
    return entries


def check_example(value: str) -> None:
    """Refuse what nobody can have meant as an example.

    Raises:
        QueryError: The text is blank, or not text that UTF-8 can write.
    """
    if not value.strip() or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise QueryError("the example is blank or not UTF-8 text; give a report or a file name")


@torch.no_grad()
def encode_example(
    model: HashModel, modality: str, content: np.ndarray | str
) -> Float32[np.ndarray, " b"]:
    """The relaxed code v of one content, for `make_query`.

    Raises:
        ModelError: The model has no tower for the modality.
        DataError: The content does not fit the tower.
    """
    prepared = model.eval().tower(modality).prepare([content])
    outputs: Float32[np.ndarray, " b"] = model.relaxed_codes(modality, prepared)[0].numpy()
    return outputs
