"""Who has what: findings of a patient and of one exam, with their severity and place.

1. Long-lasting findings (a pacemaker, emphysema) belong to the patient and stand in all exams;
   passing ones (edema, pneumonia) are drawn for each exam.
2. A finding is drawn after those that make it likelier: its log-odds are the base rate, the age,
   the site's tilt, and one term for each finding already present. So effusion follows edema and
   edema follows cardiomegaly, as in the co-occurrence tables of ChestX-ray14 (arXiv 1705.02315).
3. The reader hedges what is subtle, and now and then suspects what is not there. Both are
   uncertain. The most severe finding is never hedged, so an exam always has a positive finding.

    >>> rng = np.random.default_rng(2)
    >>> patient = draw_patient({}, rng)
    >>> draw_case(patient, {}, rng).positive
    frozenset({'pleural_effusion'})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

__all__ = [
    "PHANTOM_FINDINGS",
    "Case",
    "Patient",
    "Presence",
    "draw_case",
    "draw_patient",
    "draw_tilt",
]

Side = Literal["right", "left", "both"]
Zone = Literal["upper", "middle", "lower"]


@dataclass(frozen=True, slots=True)
class _Rule:
    share: float  # probability at 60 years with no other finding and no tilt
    lasting: bool
    per_20_years: float  # log-odds
    after: Mapping[str, float] = field(default_factory=dict)  # log-odds
    both_sides: float = 0.0  # probability
    zones: tuple[Zone, ...] = ("lower",)


# In the order of drawing. The shares are set so that the findings of 10 000 studies fall from
# about a quarter to about four percent, the long tail of ChestX-ray14 and MIMIC-CXR in small.
_RULES: dict[str, _Rule] = {
    "cardiomegaly": _Rule(0.2, True, 0.5, both_sides=1.0),
    "emphysema": _Rule(0.08, True, 0.4, both_sides=1.0),
    "fibrosis": _Rule(0.05, True, 0.4, both_sides=0.8),
    "pacemaker": _Rule(0.04, True, 0.9, {"cardiomegaly": 1.2}),
    "nodule": _Rule(0.09, True, 0.3, {"emphysema": 0.6}, zones=("upper", "middle", "lower")),
    "hiatal_hernia": _Rule(0.045, True, 0.6),
    "fracture": _Rule(0.05, True, 0.3, zones=("upper", "middle", "lower")),
    "edema": _Rule(0.08, False, 0.3, {"cardiomegaly": 1.7}, both_sides=1.0),
    "pneumonia": _Rule(
        0.15, False, 0.1, {"emphysema": 0.5}, both_sides=0.2, zones=("upper", "middle", "lower")
    ),
    "pleural_effusion": _Rule(
        0.15, False, 0.2, {"edema": 1.8, "cardiomegaly": 0.7, "pneumonia": 0.9}, both_sides=0.3
    ),
    "atelectasis": _Rule(0.15, False, 0.2, {"pleural_effusion": 1.2}, both_sides=0.2),
    "pneumothorax": _Rule(0.04, False, -0.2, {"emphysema": 1.0, "fracture": 1.4}, zones=("upper",)),
    "catheter": _Rule(
        0.07, False, 0.1, {"edema": 0.9, "pneumonia": 0.7, "pneumothorax": 0.9}, zones=("upper",)
    ),
}

PHANTOM_FINDINGS: tuple[str, ...] = ("no_finding", *_RULES)

_DEVICES = frozenset({"pacemaker", "catheter"})  # nobody doubts metal

# A pacemaker sits on the left and a central line comes from the right in most patients.
_RIGHT_SHARE = {"pacemaker": 0.15, "catheter": 0.8}


@dataclass(frozen=True, slots=True)
class Presence:
    """One finding that is there.

    Attributes:
        finding: Its name.
        severity: From 0 (barely visible) to 1 (gross).
        side: The patient's side; the patient's right is on the left of the film.
        zone: Height in the lung.
    """

    finding: str
    severity: float
    side: Side
    zone: Zone


@dataclass(frozen=True, slots=True)
class Patient:
    """What does not change between a patient's exams."""

    age_years: int
    female: bool
    lasting: tuple[Presence, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One exam: what is there, and what the reader was unsure of.

    Attributes:
        present: The findings that the image and the signal show.
        hedged: Present findings that the reader only calls possible.
        suspected: An absent finding that the reader cannot exclude.
    """

    present: tuple[Presence, ...]
    hedged: frozenset[str]
    suspected: frozenset[str]

    @property
    def positive(self) -> frozenset[str]:
        """Labels that are 1; no_finding alone when nothing is there."""
        return frozenset(p.finding for p in self.present) - self.hedged or frozenset({"no_finding"})

    @property
    def uncertain(self) -> frozenset[str]:
        """Labels that are neither 1 nor 0."""
        return self.hedged | self.suspected


def draw_tilt(strength: float, rng: np.random.Generator) -> dict[str, float]:
    """A site's case mix: log-odds to add to each finding."""
    return dict(zip(_RULES, strength * rng.standard_normal(len(_RULES)), strict=True))


def draw_patient(tilt: Mapping[str, float], rng: np.random.Generator) -> Patient:
    """Age, sex and long-lasting findings of one patient."""
    age_years = int(np.clip(rng.normal(60, 16), 18, 97))
    return Patient(age_years, bool(rng.random() < 0.48), _draw(True, (), age_years, tilt, rng))


def draw_case(patient: Patient, tilt: Mapping[str, float], rng: np.random.Generator) -> Case:
    """The findings of one exam of a patient, and the reader's doubts."""
    passing = _draw(False, patient.lasting, patient.age_years, tilt, rng)
    present = patient.lasting + passing
    if not present:
        return Case((), frozenset(), frozenset())
    gravest = max(present, key=lambda presence: presence.severity)
    hedged = frozenset(
        p.finding
        for p in present
        if p is not gravest
        and p.finding not in _DEVICES
        and rng.random() < 0.6 * (1 - p.severity) ** 2
    )
    absent = sorted(_RULES.keys() - _DEVICES - {p.finding for p in present})
    suspected = {str(rng.choice(absent))} if rng.random() < 0.1 else set()
    return Case(present, hedged, frozenset(suspected))


def _draw(
    lasting: bool,
    earlier: Sequence[Presence],
    age_years: int,
    tilt: Mapping[str, float],
    rng: np.random.Generator,
) -> tuple[Presence, ...]:
    drawn: list[Presence] = []
    for name, rule in _RULES.items():
        if rule.lasting != lasting:
            continue
        log_odds = np.log(rule.share / (1 - rule.share)) + tilt.get(name, 0.0)
        log_odds += rule.per_20_years * (age_years - 60) / 20
        log_odds += sum(rule.after.get(p.finding, 0.0) for p in (*earlier, *drawn))
        if rng.random() < 1 / (1 + np.exp(-log_odds)):
            drawn.append(_place(name, rule, rng))
    return tuple(drawn)


def _place(name: str, rule: _Rule, rng: np.random.Generator) -> Presence:
    side: Side = "right" if rng.random() < _RIGHT_SHARE.get(name, 0.5) else "left"
    if rng.random() < rule.both_sides:
        side = "both"
    zone = rule.zones[int(rng.integers(len(rule.zones)))]
    return Presence(name, float(rng.beta(1.6, 1.6)), side, zone)
