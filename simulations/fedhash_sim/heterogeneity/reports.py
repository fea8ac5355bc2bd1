"""A report as a site's department would have written it.

The phantom's reporting style chooses among the words of its own grammar, and in a real report no
word may be exchanged for another finding's. So habits are those that leave the meaning alone:
which of the usual abbreviations, which words for a negation, a heading, a closing sentence,
capitals, typing errors. Abbreviations and negations are of English, the rest of any language.

    >>> habits = draw_habits(1.0, numpy_stream(0, "site-00"))
    >>> as_written("No evidence of pneumothorax.", numpy_stream(0, "site-00", "s17"), habits=habits)
    'FINDINGS: Negative for PTX. Clinical correlation is recommended.'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fedhash.data.phantom.reports import misspelled
from fedhash.data.phantom.vocabulary import BOILERPLATE
from fedhash.models.tower import text_of

__all__ = ["WritingHabits", "as_written", "draw_habits"]

_HEADINGS = ("FINDINGS:", "REPORT:", "INTERPRETATION:", "RESULT:")
_NEGATIONS = ("no", "no evidence of", "no sign of", "negative for")
_ABBREVIATIONS = {
    "atrial fibrillation": "AF",
    "bilateral": "bilat",
    "chest radiograph": "CXR",
    "chest x-ray": "CXR",
    "follow-up": "f/u",
    "history": "hx",
    "left lower lobe": "LLL",
    "left upper lobe": "LUL",
    "myocardial infarction": "MI",
    "normal": "nl",
    "patient": "pt",
    "pleural effusion": "pl eff",
    "pneumothorax": "PTX",
    "possible": "poss",
    "right lower lobe": "RLL",
    "right upper lobe": "RUL",
    "shortness of breath": "SOB",
    "sinus rhythm": "SR",
    "with": "w/",
    "within normal limits": "WNL",
    "without": "w/o",
}
_MOST_TYPOS = 0.03  # of the words, at strength 1
_CAPITALS = 0.25  # of the departments, at strength 1


def _any_of(words: tuple[str, ...]) -> str:
    """The longest word that fits comes first."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


_SHORTENED = re.compile(rf"\b(?:{_any_of(tuple(_ABBREVIATIONS))})\b", re.IGNORECASE)
# "no longer" and "no more" deny nothing by name
_DENIED = re.compile(rf"\b(?:{_any_of(_NEGATIONS)})(?= (?!longer|more)[a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WritingHabits:
    """How a site's reports are written; probabilities are 0 to 1.

    Attributes:
        heading: Before the text.
        headed: Probability that a report has the heading.
        closing: Sentence after the text.
        closed: Probability that a report has it.
        negation: The department's words for an absent finding.
        denied_so: Probability that a negation is in these words.
        shortened: Probability that a word with a usual abbreviation is abbreviated.
        typos: Probability that a word is misspelled.
        capitals: Whether reports are typed in capitals.
    """

    heading: str
    headed: float
    closing: str
    closed: float
    negation: str
    denied_so: float
    shortened: float
    typos: float
    capitals: bool


def draw_habits(strength: float, rng: np.random.Generator) -> WritingHabits:
    """A department's habits; at strength 0 it leaves every report as it is."""
    headed, closed, denied_so, shortened = np.minimum(1, strength * rng.random(4)).tolist()
    return WritingHabits(
        heading=str(rng.choice(_HEADINGS)),
        headed=headed,
        closing=str(rng.choice(BOILERPLATE)),
        closed=closed,
        negation=str(rng.choice(_NEGATIONS)),
        denied_so=denied_so,
        shortened=shortened,
        typos=_MOST_TYPOS * strength * float(rng.random()),
        capitals=bool(rng.random() < _CAPITALS * min(1.0, strength)),
    )


def as_written(
    content: np.ndarray | str, rng: np.random.Generator, *, habits: WritingHabits
) -> str:
    """The report of one exam.

    Args:
        content: The text.
        rng: Of the exam's own choices.
        habits: The site's.

    Raises:
        DataError: The content is no text.
    """

    def denied(found: re.Match[str]) -> str:
        words = habits.negation if rng.random() < habits.denied_so else found[0]
        return words.capitalize() if found[0][0].isupper() else words

    def shortened(found: re.Match[str]) -> str:
        return _ABBREVIATIONS[found[0].lower()] if rng.random() < habits.shortened else found[0]

    text = _SHORTENED.sub(shortened, _DENIED.sub(denied, text_of(content)))
    text = misspelled(text, habits.typos, rng)
    if rng.random() < habits.headed:
        text = f"{habits.heading} {text}"
    if rng.random() < habits.closed:
        text = f"{text} {habits.closing}"
    return text.upper() if habits.capitals else text
