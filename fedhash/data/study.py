"""One exam of one patient, and the label matrix of many.

A study's contents (image, report, signal, ...) are loaded when they are needed, so a manifest of
many large images fits in memory. "no finding" is a finding like any other: every study that can
train or be searched has at least one positive finding.

    >>> contents = {"report": InMemory("Cardiomegaly.")}
    >>> study = Study("s1", "p1", contents, frozenset({"cardiomegaly"}))
    >>> label_matrix([study], ["no_finding", "cardiomegaly"])
    array([[0, 1]], dtype=int8)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int8

from fedhash.errors import DataError

__all__ = ["Content", "InMemory", "Study", "label_matrix"]


@runtime_checkable
class Content(Protocol):
    """One modality of one study, loaded on demand."""

    def load(self) -> np.ndarray | str:
        """Return the array or the text.

        Raises:
            DataError: The stored content cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """Content that is already loaded."""

    value: np.ndarray | str

    def load(self) -> np.ndarray | str:
        """Return the value itself."""
        return self.value


@dataclass(frozen=True, slots=True)
class Study:
    """One exam.

    Attributes:
        study_id: Unique within a site.
        patient_id: Unique within a site; the unit of splits and of privacy.
        contents: Modality name to content; a missing modality has no entry.
        positive: Findings that are present.
        uncertain: Findings that the reader hedged; neither positive nor negative.
        attributes: Strings to filter and group by (site, sex, scanner, ...).
        consent: False keeps the study out of training and of the index.
    """

    study_id: str
    patient_id: str
    contents: Mapping[str, Content]
    positive: frozenset[str]
    uncertain: frozenset[str] = frozenset()
    attributes: Mapping[str, str] = field(default_factory=dict)
    consent: bool = True


def label_matrix(studies: Sequence[Study], findings: Sequence[str]) -> Int8[np.ndarray, "N K"]:
    """Labels of N studies over K findings: 1 positive, 0 negative, -1 uncertain.

    Raises:
        DataError: A study has a finding outside the vocabulary.
    """
    column = {finding: k for k, finding in enumerate(findings)}
    labels = np.zeros((len(studies), len(findings)), dtype=np.int8)
    for row, study in enumerate(studies):
        for states, value in ((study.uncertain, -1), (study.positive, 1)):
            for finding in states:
                if finding not in column:
                    raise DataError(
                        f"study {study.study_id} has the finding {finding!r}, which the "
                        f"agreement's vocabulary does not hold; add it there or map it"
                    )
                labels[row, column[finding]] = value
    return labels
