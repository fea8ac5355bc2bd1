"""Radiology reports from a small grammar.

    report    = [question] [earlier exam] body [closing sentence]
    body      = one line for each organ | sentences | comma-separated telegram
    statement = present finding | hedge | negation of one to three findings

1. What is stated, hedged and denied agrees with the labels. A minor finding may go unmentioned.
2. A report also names findings that are not there: in negations, in the referrer's question and
   in what an earlier exam had shown. Counting words is therefore not enough.
3. Each site has favourite synonyms, layouts and closing sentences (`styles.ReportingStyle`).

    >>> write_report(case, style, np.random.default_rng(5))  # a small pleural effusion
    'CXR: small pl fluid. Clinical correlation is recommended.'
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedhash.data.phantom.findings import Case, Presence
from fedhash.data.phantom.styles import ReportingStyle
from fedhash.data.phantom.vocabulary import BOILERPLATE, COMPLAINTS, DEGREES, HEDGES, TERMS
from fedhash.randomness import numpy_stream

__all__ = ["misspelled", "write_report"]

_SIGN_SHARE = 0.1  # how often a sign stands for the name
_EARLIER_SHARE = 0.15  # reports that mention what an earlier exam had shown
_NEGATIONS = ("No {}", "No evidence of {}", "Negative for {}")
_NORMAL = ("The lungs are clear", "No acute abnormality", "Normal chest radiograph")


def write_report(case: Case, style: ReportingStyle, rng: np.random.Generator) -> str:
    """The report of one exam, in the site's style.

    Args:
        case: The findings, with what the reader hedged and suspected.
        style: The site's habits.
        rng: The exam's stream.
    """
    layout = str(rng.choice(["structured", "prose", "telegraphic"], p=style.layouts))
    named = {presence.finding for presence in case.present} | case.suspected
    absent = rng.permutation([name for name in TERMS if name not in named]).tolist()
    denied = absent[: int(rng.poisson(style.negatives))]

    statements = [
        (TERMS[p.finding].organ, _present(p, case, layout, style, rng))
        for p in _mentioned(case, style, rng)
    ]
    statements += [
        (TERMS[finding].organ, _hedged(_name(finding, layout, style, rng), rng))
        for finding in sorted(case.suspected)
    ]
    statements += _negations(denied, layout, style, rng)
    if not case.present:
        statements.append(("Impression", str(rng.choice(_NORMAL))))

    body = _LAYOUTS[layout]([statements[i] for i in rng.permutation(len(statements))])
    parts = [_question(named, absent, style, rng), _earlier(absent, layout, style, rng), body]
    if rng.random() < 0.5:
        parts.append(BOILERPLATE[style.boilerplate])
    return misspelled(" ".join(part for part in parts if part), style.typos, rng)


def _mentioned(case: Case, style: ReportingStyle, rng: np.random.Generator) -> list[Presence]:
    """All but some minor findings; the gravest and the hedged ones are always mentioned."""
    gravest = max((p.severity for p in case.present), default=0.0)
    return [
        p
        for p in case.present
        if p.severity == gravest or p.finding in case.hedged or rng.random() >= style.omission
    ]


def _present(
    presence: Presence, case: Case, layout: str, style: ReportingStyle, rng: np.random.Generator
) -> str:
    term = TERMS[presence.finding]
    if rng.random() < _SIGN_SHARE:
        name = _favourite(term.signs, style, rng)
    else:
        name = _name(presence.finding, layout, style, rng)
    words = []
    if term.graded and rng.random() < 0.7:
        words.append(str(rng.choice(DEGREES[min(2, int(3 * presence.severity))])))
    if term.sided and rng.random() < 0.8:
        words.append({"both": "bilateral"}.get(presence.side, presence.side))
    if term.zoned and rng.random() < 0.6:
        words.append(f"{presence.zone} zone")
    phrase = " ".join(word for word in (*words, name) if word)
    if presence.finding in case.hedged:
        return _hedged(phrase, rng)
    if layout == "telegraphic":
        return phrase
    return str(rng.choice(["There is {}", "{} is seen", "{}", "{} again noted"])).format(phrase)


def _hedged(phrase: str, rng: np.random.Generator) -> str:
    return str(rng.choice(HEDGES)).format(phrase)


def _negations(
    denied: Sequence[str], layout: str, style: ReportingStyle, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """One statement for each one to three absent findings, under the first one's organ."""
    statements = []
    left = list(denied)
    while left:
        count = int(rng.integers(1, 4))
        group, left = left[:count], left[count:]
        names = [_name(finding, layout, style, rng) for finding in group]
        listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        patterns = ["no {}"] if layout == "telegraphic" else _NEGATIONS
        statements.append((TERMS[group[0]].organ, str(rng.choice(patterns)).format(listed)))
    return statements


def _question(
    named: set[str], absent: Sequence[str], style: ReportingStyle, rng: np.random.Generator
) -> str:
    """The referrer's question; half of the time about something that is not there."""
    if rng.random() >= style.question:
        return ""
    complaint = str(rng.choice(COMPLAINTS))
    pool = sorted(named) if named and rng.random() < 0.5 else absent
    asked = TERMS[str(rng.choice(pool))].names[0]
    return f"Indication: {complaint}, {asked}?"


def _earlier(
    absent: Sequence[str], layout: str, style: ReportingStyle, rng: np.random.Generator
) -> str:
    if rng.random() >= _EARLIER_SHARE or layout == "telegraphic":
        return ""
    name = _name(str(rng.choice(absent)), layout, style, rng)
    pattern = str(rng.choice(["Previously seen {} has resolved.", "Interval resolution of {}."]))
    return pattern.format(name)


def _name(finding: str, layout: str, style: ReportingStyle, rng: np.random.Generator) -> str:
    term = TERMS[finding]
    return _favourite(term.short if layout == "telegraphic" else term.names, style, rng)


def _favourite(words: tuple[str, ...], style: ReportingStyle, rng: np.random.Generator) -> str:
    """One of the words; the site's taste decides which it uses most."""
    rank = numpy_stream(style.synonym_seed, words[0]).permutation(len(words))
    weights = np.exp(-style.taste * rank)
    return words[int(rng.choice(len(words), p=weights / weights.sum()))]


def _structured(statements: Sequence[tuple[str, str]]) -> str:
    organs: dict[str, list[str]] = {}
    for organ, text in statements:
        organs.setdefault(organ, []).append(_capital(text))
    lines = [f"{organ}: {'. '.join(texts)}." for organ, texts in sorted(organs.items())]
    return " ".join(["FINDINGS:", *lines])


def _prose(statements: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{_capital(text)}." for _, text in statements)


def _telegraphic(statements: Sequence[tuple[str, str]]) -> str:
    return "CXR: " + ", ".join(text for _, text in statements) + "."


_LAYOUTS = {"structured": _structured, "prose": _prose, "telegraphic": _telegraphic}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def misspelled(text: str, share: float, rng: np.random.Generator) -> str:
    """Swap two neighbouring letters in a share of the words."""
    words = text.split(" ")
    for i in np.flatnonzero(rng.random(len(words)) < share).tolist():
        swaps = [j for j, (a, b) in enumerate(pairwise(words[i])) if a.isalpha() and b.isalpha()]
        if swaps:
            j = int(rng.choice(swaps))
            words[i] = words[i][:j] + words[i][j + 1] + words[i][j] + words[i][j + 2 :]
    return " ".join(words)
