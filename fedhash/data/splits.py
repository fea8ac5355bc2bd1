"""Patient-disjoint splits that do not move when studies are added.

Rules: a patient stands in one split only; the split of a patient depends on the seed and the
patient_id alone, so a new study or patient changes no other; shares are therefore met on average
and not exactly.

    >>> splits = split_patients(studies, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    >>> training = splits["train"]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate

from fedhash.data.study import Study
from fedhash.errors import DataError
from fedhash.randomness import stream_seed

__all__ = ["published_split", "split_of_patient", "split_patients"]


def split_of_patient(patient_id: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of one patient.

    Args:
        patient_id: The patient.
        fractions: Split name to its share of the patients; the shares sum to 1.
        seed: Another seed draws another split.

    Raises:
        DataError: A share is negative, or they do not sum to 1.
    """
    if not fractions or min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1):
        raise DataError(
            f"the split's shares are {dict(fractions)}; make each 0 to 1 and their sum 1"
        )
    place = stream_seed(seed, "split", patient_id) / 2**63  # uniform in 0..1
    bounds = list(accumulate(fractions.values()))
    return list(fractions)[bisect_right(bounds[:-1], place)]


def split_patients(
    studies: Iterable[Study], fractions: Mapping[str, float], seed: int
) -> dict[str, tuple[Study, ...]]:
    """Split studies by patient, in the order given.

    Args:
        studies: Any studies.
        fractions: Split name to its share of the patients; the shares sum to 1.
        seed: Another seed draws another split.

    Returns:
        Every split name with its studies; a small site may leave a split empty.

    Raises:
        DataError: A share is negative, or they do not sum to 1.
    """
    splits: dict[str, list[Study]] = {split: [] for split in fractions}
    for study in studies:
        splits[split_of_patient(study.patient_id, fractions, seed)].append(study)
    return {split: tuple(members) for split, members in splits.items()}


def published_split(studies: Iterable[Study]) -> dict[str, tuple[Study, ...]]:
    """The split that the manifest's column ``attr.split`` publishes.

    Raises:
        DataError: A study has no split, or a patient stands in two.
    """
    splits: dict[str, list[Study]] = {}
    split_of: dict[str, str] = {}
    for study in studies:
        split = study.attributes.get("split")
        if split is None:
            raise DataError(
                f"study {study.study_id} has no attribute 'split'; fill the column attr.split or "
                "split by patient"
            )
        if split_of.setdefault(study.patient_id, split) != split:
            raise DataError(
                f"patient {study.patient_id} stands in the splits {split_of[study.patient_id]!r} "
                f"and {split!r}; a patient belongs in one"
            )
        splits.setdefault(split, []).append(study)
    return {split: tuple(members) for split, members in splits.items()}
