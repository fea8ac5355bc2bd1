"""What the phantom's images, reports and signals show of the findings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedhash.data.phantom.anatomy import draw_body, grid
from fedhash.data.phantom.findings import Case, Presence, draw_case, draw_patient
from fedhash.data.phantom.lesions import draw_radiograph
from fedhash.data.phantom.reports import write_report
from fedhash.data.phantom.signals import beat_times, draw_signal
from fedhash.data.phantom.styles import draw_reporting, draw_scanner, draw_sensor
from fedhash.data.phantom.vocabulary import TERMS
from fedhash.randomness import numpy_stream

CLEAR = dataclasses.replace(
    draw_reporting(0.0, numpy_stream(0, "style")), typos=0.0, layouts=(0.0, 1.0, 0.0)
)


def films(present: list[Presence]) -> np.ndarray:
    """Films of the same eight people."""
    pictures = []
    for person in range(8):
        rng = numpy_stream(person, "film")
        body = draw_body(female=person % 2 == 0, rng=rng)
        pictures.append(draw_radiograph(body, present, grid(64), rng))
    return np.stack(pictures)


# (rows, columns) in pixels of 64; the patient's left is on the right of the film.
@pytest.mark.parametrize(
    ("presence", "rows", "columns", "change"),
    [
        (Presence("cardiomegaly", 0.8, "both", "lower"), (32, 44), (44, 54), 0.05),
        (Presence("emphysema", 0.9, "both", "lower"), (44, 48), (12, 24), -0.04),
        (Presence("fibrosis", 0.9, "both", "lower"), (34, 44), (10, 22), 0.02),
        (Presence("pacemaker", 0.5, "left", "lower"), (12, 19), (45, 52), 0.1),
        (Presence("nodule", 0.9, "right", "middle"), (24, 34), (13, 26), 0.02),
        (Presence("hiatal_hernia", 0.9, "left", "lower"), (32, 38), (31, 38), -0.02),
        (Presence("fracture", 0.9, "right", "middle"), (24, 34), (6, 14), 0.02),
        (Presence("edema", 0.9, "both", "lower"), (22, 40), (14, 26), 0.08),
        (Presence("pneumonia", 0.9, "right", "upper"), (12, 26), (12, 26), 0.05),
        (Presence("pleural_effusion", 0.8, "left", "lower"), (34, 44), (48, 54), 0.15),
        (Presence("atelectasis", 0.9, "right", "lower"), (36, 44), (12, 26), 0.05),
        (Presence("pneumothorax", 0.9, "left", "upper"), (16, 28), (46, 52), -0.01),
        (Presence("catheter", 0.5, "right", "upper"), (14, 26), (28, 31), 0.03),
    ],
    ids=lambda value: value.finding if isinstance(value, Presence) else "",
)
def test_every_finding_shows_where_it_lies(
    presence: Presence, rows: tuple[int, int], columns: tuple[int, int], change: float
) -> None:
    difference = films([presence]) - films([])
    region = float(difference[:, slice(*rows), slice(*columns)].mean())
    assert region / change > 1


def test_a_more_severe_effusion_is_larger() -> None:
    brightness = [
        films([Presence("pleural_effusion", severity, "right", "lower")]).mean()
        for severity in (0.1, 0.5, 0.9)
    ]
    assert brightness == sorted(brightness)


def test_a_film_shows_the_same_anatomy_at_every_size() -> None:
    # Where the leads of a pacemaker and the nodules lie is drawn after the texture of the lungs.
    def film(person: int, size_px: int) -> np.ndarray:
        rng = numpy_stream(person, "film")
        body = draw_body(female=True, rng=rng)
        present = [
            Presence(finding, 0.8, "left", "upper")
            for finding in ("nodule", "pacemaker", "catheter")
        ]
        return np.asarray(draw_radiograph(body, present, grid(size_px), rng))

    for person in range(8):
        halved = film(person, 128).reshape(64, 2, 64, 2).mean(axis=(1, 3))
        assert np.abs(halved - film(person, 64)).mean() < 0.01


def test_a_scanner_adds_noise_from_the_exams_stream() -> None:
    film = films([])[0]
    scanner = draw_scanner(1.0, numpy_stream(0, "scanner"))
    first = scanner.expose(film, numpy_stream(0, "exam"))
    assert np.array_equal(first, scanner.expose(film, numpy_stream(0, "exam")))
    assert not np.array_equal(first, scanner.expose(film, numpy_stream(1, "exam")))


def cases(count: int) -> list[Case]:
    rng = numpy_stream(4, "cases")
    return [draw_case(draw_patient({}, rng), {}, rng) for _ in range(count)]


def statements(report: str) -> list[str]:
    """Lower-case sentences about the exam, without the question and the earlier exam."""
    report = report.rsplit("? ", maxsplit=1)[-1]
    left_out = ("previously", "interval")
    sentences = [sentence.strip().lower() for sentence in report.split(".")]
    return [sentence for sentence in sentences if sentence and not sentence.startswith(left_out)]


def test_a_report_denies_only_what_is_absent_and_never_affirms_it() -> None:
    rng = numpy_stream(0, "reports")
    denials = affirmations = 0
    for case in cases(300):
        named = {presence.finding for presence in case.present} | case.suspected
        for sentence in statements(write_report(case, CLEAR, rng)):
            denied = sentence.startswith(("no ", "negative for"))
            for finding, term in TERMS.items():
                if any(name.lower() in sentence for name in term.names):
                    assert (finding in named) != denied, (sentence, sorted(named))
                    denials += denied
                    affirmations += not denied
    assert denials > 300
    assert affirmations > 200


@pytest.mark.parametrize("layout", [0, 1, 2], ids=["structured", "prose", "telegraphic"])
def test_the_gravest_finding_is_always_mentioned(layout: int) -> None:
    style = dataclasses.replace(
        CLEAR, layouts=tuple(float(i == layout) for i in range(3)), question=0.0, omission=1.0
    )
    rng = numpy_stream(1, "reports")
    for case in cases(100):
        if case.present:
            gravest = max(case.present, key=lambda presence: presence.severity)
            term = TERMS[gravest.finding]
            report = write_report(case, style, rng).lower()
            words = (*term.names, *term.signs, *term.short)
            assert any(word.lower() in report for word in words), (gravest, report)


def test_a_hedged_finding_is_written_as_possible() -> None:
    grave = Presence("cardiomegaly", 0.9, "both", "lower")
    slight = Presence("pneumonia", 0.1, "left", "upper")
    case = Case((grave, slight), hedged=frozenset({"pneumonia"}), suspected=frozenset({"fracture"}))
    hedges = ("possible", "questionable", "cannot be excluded", "may represent", "suspicious for")
    rng = numpy_stream(2, "reports")
    for _ in range(50):
        sentences = statements(write_report(case, CLEAR, rng))
        assert sum(any(hedge in sentence for hedge in hedges) for sentence in sentences) == 2
    assert (case.positive, case.uncertain) == ({"cardiomegaly"}, {"pneumonia", "fracture"})


def test_a_normal_report_says_so() -> None:
    normal = Case((), frozenset(), frozenset())
    report = write_report(normal, CLEAR, numpy_stream(3, "reports"))
    assert any(
        phrase in report
        for phrase in ("lungs are clear", "No acute abnormality", "Normal chest radiograph")
    )


def test_typos_swap_letters_and_lose_none() -> None:
    case = Case((Presence("edema", 0.9, "both", "lower"),), frozenset(), frozenset())
    clean = write_report(case, CLEAR, numpy_stream(4, "reports"))
    sloppy = dataclasses.replace(CLEAR, typos=1.0)
    misspelled = write_report(case, sloppy, numpy_stream(4, "reports"))
    assert misspelled != clean
    assert sorted(misspelled) == sorted(clean)


def intervals_s(severity: dict[str, float]) -> list[np.ndarray]:
    return [np.diff(beat_times(severity, numpy_stream(i, "beats"))) for i in range(60)]


def irregularity(severity: dict[str, float]) -> float:
    return float(np.mean([np.std(gaps) / np.mean(gaps) for gaps in intervals_s(severity)]))


def test_findings_change_the_rhythm() -> None:
    healthy = irregularity({})
    assert irregularity({"pacemaker": 0.5}) < 0.2 * healthy
    assert irregularity({"cardiomegaly": 0.5}) > 1.5 * healthy
    slow = np.mean([np.mean(gaps) for gaps in intervals_s({})])
    fast = np.mean([np.mean(gaps) for gaps in intervals_s({"edema": 0.9})])
    assert fast < 0.9 * slow


def test_a_large_heart_flattens_the_pulse_and_emphysema_makes_it_swing() -> None:
    sensor = dataclasses.replace(draw_sensor(0.0, numpy_stream(0, "s")), noise=0.0, drift=0.0)

    def mean_spread(finding: str | None) -> float:
        present = [Presence(finding, 0.9, "both", "lower")] if finding else []
        signals = [draw_signal(present, sensor, numpy_stream(i, "pulse")) for i in range(40)]
        return float(np.mean([signal.std() for signal in signals]))

    assert mean_spread("cardiomegaly") < 0.9 * mean_spread(None)
    assert mean_spread("emphysema") > 1.05 * mean_spread(None)
