"""The phantom consortium: patients, exams, radiographs, reports and pulse waves.

Every exam draws from streams named by (seed, site, patient, exam), every patient by
(seed, site, patient), every site by (seed, site). Adding a site, a patient or an exam, or changing
how reports are written, therefore changes nothing else.

    >>> studies = generate_phantom(PhantomSettings(sites=2, patients_per_site=3), seed=7)
    >>> studies[0].study_id, sorted(studies[0].contents)
    ('site-0-p0-e0', ['image', 'report', 'signal'])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedhash.data.phantom.anatomy import Body, draw_body
from fedhash.data.phantom.findings import Patient, draw_case, draw_patient, draw_tilt
from fedhash.data.phantom.lesions import draw_radiograph
from fedhash.data.phantom.reports import write_report
from fedhash.data.phantom.settings import PhantomSettings
from fedhash.data.phantom.signals import draw_signal
from fedhash.data.phantom.styles import (
    ReportingStyle,
    Scanner,
    Sensor,
    draw_reporting,
    draw_scanner,
    draw_sensor,
)
from fedhash.data.study import InMemory, Study
from fedhash.randomness import numpy_stream

__all__ = ["generate_phantom"]


@dataclass(frozen=True, slots=True)
class _Site:
    name: str
    scanner: Scanner
    sensor: Sensor
    reporting: ReportingStyle
    tilt: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Visitor:
    patient_id: str
    patient: Patient
    body: Body


def generate_phantom(settings: PhantomSettings, seed: int) -> tuple[Study, ...]:
    """All exams of all sites.

    Args:
        settings: Size and heterogeneity of the consortium.
        seed: Of the streams; the same seed and settings give the same studies.

    Returns:
        Studies by site, patient and exam. Attributes: site, scanner, sex, age_band. Contents:
        image (float32 [H, W], 0 to 1), report (text), signal (float32 [1, 600] at 100 Hz).
    """
    studies: list[Study] = []
    for site_number in range(settings.sites):
        site = _site(site_number, settings, seed)
        for number in range(settings.patients_per_site):
            visitor = _visitor(site, number, seed)
            studies += [
                _study(site, visitor, exam, settings.image_size_px, seed)
                for exam in range(_exams(site, number, settings, seed))
            ]
    return tuple(studies)


def _site(number: int, settings: PhantomSettings, seed: int) -> _Site:
    name, strength = f"site-{number}", settings.style_strength
    return _Site(
        name,
        draw_scanner(strength, _stream(seed, name, "scanner")),
        draw_sensor(strength, _stream(seed, name, "sensor")),
        draw_reporting(strength, _stream(seed, name, "reporting")),
        draw_tilt(settings.prevalence_tilt, _stream(seed, name, "tilt")),
    )


def _visitor(site: _Site, number: int, seed: int) -> _Visitor:
    rng = _stream(seed, site.name, number, "patient")
    patient = draw_patient(site.tilt, rng)
    body = draw_body(female=patient.female, rng=rng)
    return _Visitor(f"{site.name}-p{number}", patient, body)


def _exams(site: _Site, number: int, settings: PhantomSettings, seed: int) -> int:
    more = settings.studies_per_patient - 1
    return 1 + int(_stream(seed, site.name, number, "exams").poisson(more))


def _study(site: _Site, visitor: _Visitor, exam: int, image_size_px: int, seed: int) -> Study:
    patient = visitor.patient
    rng = {
        purpose: _stream(seed, visitor.patient_id, exam, purpose)
        for purpose in ("case", "image", "report", "signal")
    }
    case = draw_case(patient, site.tilt, rng["case"])
    at = site.scanner.field_of_view(image_size_px, rng["image"])
    film = draw_radiograph(visitor.body, case.present, at, rng["image"])
    decade = patient.age_years // 20 * 20
    return Study(
        study_id=f"{visitor.patient_id}-e{exam}",
        patient_id=visitor.patient_id,
        contents={
            "image": InMemory(site.scanner.expose(film, rng["image"])),
            "report": InMemory(write_report(case, site.reporting, rng["report"])),
            "signal": InMemory(draw_signal(case.present, site.sensor, rng["signal"])),
        },
        positive=case.positive,
        uncertain=case.uncertain,
        attributes={
            "site": site.name,
            "scanner": site.name.replace("site", "scanner"),
            "sex": "female" if patient.female else "male",
            "age_band": f"{decade}-{decade + 19}",
        },
    )


def _stream(seed: int, *name: str | int) -> np.random.Generator:
    return numpy_stream(seed, "phantom", *name)
