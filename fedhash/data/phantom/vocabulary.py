"""The words of the reports: synonyms, signs and abbreviations of each finding.

Some words are shared on purpose: an opacity at the base may be pneumonia or atelectasis, and
interstitial markings edema or fibrosis. A report alone then does not settle the finding, which is
one of the reasons why no text model reaches a perfect score.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOILERPLATE", "COMPLAINTS", "DEGREES", "HEDGES", "TERMS", "Term"]


@dataclass(frozen=True, slots=True)
class Term:
    """How one finding is written.

    Attributes:
        organ: Heading of a structured report.
        names: Noun phrases, usual ones first.
        signs: Noun phrases that other findings share.
        short: Telegraphic abbreviations.
        sided: Whether a side is named.
        zoned: Whether a zone of the lung is named.
        graded: Whether a degree is named.
    """

    organ: str
    names: tuple[str, ...]
    signs: tuple[str, ...]
    short: tuple[str, ...]
    sided: bool = True
    zoned: bool = False
    graded: bool = True


TERMS: dict[str, Term] = {
    "cardiomegaly": Term(
        "Heart",
        ("cardiomegaly", "enlargement of the heart", "enlarged cardiac silhouette"),
        ("prominent cardiomediastinal contour",),
        ("CMG", "big heart", "CTR up"),
        sided=False,
    ),
    "emphysema": Term(
        "Lungs",
        ("emphysema", "hyperinflation", "COPD changes"),
        ("flattened diaphragms", "hyperlucent lungs"),
        ("emphys", "COPD"),
        sided=False,
    ),
    "fibrosis": Term(
        "Lungs",
        ("fibrosis", "fibrotic change", "reticular scarring"),
        ("increased interstitial markings", "reduced lung volumes"),
        ("fibr", "ILD"),
        sided=False,
    ),
    "pacemaker": Term(
        "Devices",
        ("cardiac pacemaker", "pacing device with leads", "implanted pulse generator"),
        ("implanted device",),
        ("PPM", "pacer"),
        graded=False,
    ),
    "nodule": Term(
        "Lungs",
        ("pulmonary nodule", "rounded opacity", "coin lesion"),
        ("focal density",),
        ("nod", "SPN"),
        zoned=True,
    ),
    "hiatal_hernia": Term(
        "Mediastinum",
        ("hiatal hernia", "hiatus hernia", "retrocardiac air-fluid level"),
        ("retrocardiac density",),
        ("HH",),
        sided=False,
    ),
    "fracture": Term(
        "Bones",
        ("rib fracture", "displaced rib", "fractured ribs"),
        ("chest wall deformity", "cortical irregularity"),
        ("rib fx", "fx"),
    ),
    "edema": Term(
        "Lungs",
        ("pulmonary edema", "vascular congestion", "perihilar haze"),
        ("increased interstitial markings", "bilateral opacities"),
        ("edema", "CHF", "congestion"),
        sided=False,
    ),
    "pneumonia": Term(
        "Lungs",
        ("pneumonia", "consolidation", "pneumonic infiltrate"),
        ("airspace opacity", "focal density", "bilateral opacities"),
        ("PNA", "infiltr"),
        zoned=True,
    ),
    "pleural_effusion": Term(
        "Pleura",
        ("pleural effusion", "pleural fluid", "fluid in the pleural space"),
        ("blunting of the costophrenic angle", "basal opacity"),
        ("eff", "pl fluid"),
    ),
    "atelectasis": Term(
        "Lungs",
        ("atelectasis", "plate-like collapse", "subsegmental collapse"),
        ("basal opacity", "elevated hemidiaphragm", "reduced lung volumes"),
        ("atel", "ATX"),
    ),
    "pneumothorax": Term(
        "Pleura",
        ("pneumothorax", "pleural air", "visceral pleural line with absent markings"),
        ("hyperlucent lungs",),
        ("PTX", "ptx"),
    ),
    "catheter": Term(
        "Devices",
        ("central venous catheter", "central line", "catheter in the superior vena cava"),
        ("indwelling line",),
        ("CVC", "line"),
        graded=False,
    ),
}

# Degree words for severities below 1/3, below 2/3 and above.
DEGREES: tuple[tuple[str, ...], ...] = (
    ("mild", "small", "minimal", "subtle"),
    ("moderate", ""),
    ("severe", "large", "marked"),
)

HEDGES: tuple[str, ...] = (
    "possible {}",
    "questionable {}",
    "{} cannot be excluded",
    "findings may represent {}",
    "suspicious for {}",
)

COMPLAINTS: tuple[str, ...] = (
    "cough",
    "fever",
    "shortness of breath",
    "chest pain",
    "fall",
    "preoperative assessment",
    "follow-up",
)

BOILERPLATE: tuple[str, ...] = (
    "Clinical correlation is recommended.",
    "Findings were discussed with the referring physician.",
    "Dictated with speech recognition; transcription errors may occur.",
    "No prior films are available for comparison.",
    "Electronically signed by the attending radiologist.",
    "Follow-up imaging as clinically indicated.",
)
