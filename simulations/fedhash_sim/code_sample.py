"""Codes of some queries and of some of the database, kept by a cell for the pictures of its report.

1. At most 500 queries and 1000 studies of the database, drawn by a stream of the seed alone: every
   method of a seed shows the same studies.
2. A study without a modality has no code of it.
3. Codes and findings of single patients stand in it: no noise protects them, whatever the training
   was. It stays in the run folder.

Shape suffixes: n studies of the sample, K findings, W = b/8 bytes.

    >>> sample = CodeSample.draw(model, consortium.queries(), database, seed=0)
    >>> sample.save(Path("codes.safetensors"))
    >>> CodeSample.load(Path("codes.safetensors")).database.codes["image"].shape
    (1000, 8)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedhash.codes import pack_signs
from fedhash.errors import DataError
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.prepared import PreparedStudies
from fedhash.randomness import numpy_stream

__all__ = ["CodeSample", "CodedStudies"]

_MOST_QUERIES = 500
_MOST_DATABASE = 1000


@dataclass(frozen=True, eq=False)
class CodedStudies:
    """Some studies of one role.

    Attributes:
        labels: 1 positive, 0 negative, -1 uncertain.
        codes: Modality to packed codes; the row of a missing modality means nothing.
        present: Modality to whether the study has it.
        of: How many studies the sample is drawn from.
    """

    labels: Int8[np.ndarray, "n K"]
    codes: Mapping[str, UInt8[np.ndarray, "n W"]]
    present: Mapping[str, Bool[np.ndarray, " n"]]
    of: int

    def __len__(self) -> int:
        return len(self.labels)

    def having(self, modality: str) -> tuple[UInt8[np.ndarray, "m W"], Int8[np.ndarray, "m K"]]:
        """Codes and labels of the studies that have a modality."""
        rows = self.present[modality]
        return self.codes[modality][rows], self.labels[rows]


@dataclass(frozen=True, eq=False)
class CodeSample:
    """What one model makes of some queries and of some of the database."""

    queries: CodedStudies
    database: CodedStudies

    @classmethod
    def draw(
        cls, model: HashModel, queries: PreparedStudies, database: PreparedStudies, seed: int
    ) -> CodeSample:
        """Choose and encode."""
        return cls(
            _coded(model, queries, _MOST_QUERIES, numpy_stream(seed, "code sample", "queries")),
            _coded(model, database, _MOST_DATABASE, numpy_stream(seed, "code sample", "database")),
        )

    def save(self, path: Path) -> None:
        """Write to `path` (safetensors)."""
        arrays, totals = {}, {}
        for role, studies in (("queries", self.queries), ("database", self.database)):
            totals[role] = str(studies.of)
            arrays[f"{role}/labels"] = studies.labels
            for modality, codes in studies.codes.items():
                arrays[f"{role}/codes/{modality}"] = codes
                arrays[f"{role}/present/{modality}"] = studies.present[modality]
        unfinished = path.with_name(f"{path.name}.tmp")
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, unfinished, {"of": json.dumps(totals)})
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> CodeSample:
        """Read what `save` wrote.

        Raises:
            DataError: The file is absent, damaged or of another kind.
        """
        try:
            with safe_open(path, framework="np") as file:
                totals = json.loads(file.metadata()["of"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(
                *(
                    CodedStudies(
                        arrays[f"{role}/labels"],
                        _under(f"{role}/codes/", arrays),
                        _under(f"{role}/present/", arrays),
                        int(totals[role]),
                    )
                    for role in ("queries", "database")
                )
            )
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} holds no sample of codes ({error}); remove results.csv beside it and run "
                "the study again: nothing is trained twice"
            ) from error


def _coded(
    model: HashModel, studies: PreparedStudies, most: int, rng: np.random.Generator
) -> CodedStudies:
    rows = np.sort(rng.choice(len(studies), min(most, len(studies)), replace=False))
    chosen = studies.select(rows.tolist())
    return CodedStudies(
        chosen.labels.numpy(),
        {name: pack_signs(encode_studies(model, chosen, name)) for name in model.modalities},
        {name: chosen.present[name].numpy() for name in model.modalities},
        len(studies),
    )


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
