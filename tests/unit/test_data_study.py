"""Studies and their label matrix."""

from __future__ import annotations

import pytest

from fedhash.data import InMemory, Study, label_matrix
from fedhash.errors import DataError


def study(positive: set[str], uncertain: set[str] = frozenset()) -> Study:
    contents = {"report": InMemory("text")}
    return Study("s1", "p1", contents, frozenset(positive), frozenset(uncertain))


def test_labels_tell_positive_negative_and_uncertain_apart() -> None:
    studies = [study({"a"}, {"c"}), study({"b", "c"})]
    assert label_matrix(studies, ["a", "b", "c"]).tolist() == [[1, 0, -1], [0, 1, 1]]


def test_no_studies_have_an_empty_label_matrix() -> None:
    assert label_matrix([], ["a", "b"]).shape == (0, 2)


@pytest.mark.parametrize("states", [({"z"}, set()), ({"a"}, {"z"})])
def test_a_finding_outside_the_vocabulary_is_refused(states: tuple[set[str], set[str]]) -> None:
    with pytest.raises(DataError, match="study s1 has the finding 'z', which the agreement's"):
        label_matrix([study(*states)], ["a"])


def test_in_memory_content_is_the_value_itself() -> None:
    assert InMemory("text").load() == "text"
