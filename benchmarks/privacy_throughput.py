"""Patients a second of a private step beside a plain one, on the same model and studies.

The two take turns, several times, on one thread; the figure is the median of the ratios. So do the
two ways of clipping, from formed gradients and from two vectors (`fedhash.privacy.dp_sgd`, rule 8).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.figures import Figure
from fedhash.agreement import Agreement
from fedhash.learning.gradients import GradientSource, NoPrivacy
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.losses import build_loss
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.dp_sgd import SiteDpSgd, clipped_sum
from fedhash.privacy.noise import SecureNoise
from fedhash.privacy.settings import SitePrivacySettings

__all__ = ["throughput_figures"]

_PATIENTS = 128
_STEPS = 10
_TURNS = 7
_FINDINGS = tuple("abcdefghijklmn")
_PRIVACY = SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=1.0, sampling_rate=1.0)
_MODELS = {
    "from scratch, HOG tower": {"image": "image_hog"},
    "from scratch, convnet": {"image": "image_convnet"},
    "from scratch, HOG and n-grams": {"image": "image_hog", "report": "report_ngrams"},
    "heads only": {"image": "frozen_image", "report": "frozen_report"},
}


def throughput_figures() -> Iterator[Figure]:
    """Figures of every model."""
    torch.set_num_threads(1)
    agreement = Agreement(name="bench", findings=_FINDINGS, modalities=("image", "report"))
    anchors = Anchors.build(agreement)
    for case, towers in _MODELS.items():
        heads = "frozen_image" in towers.values()
        model = build_model(
            ModelSettings(
                towers={name: TowerSettings(name=tower) for name, tower in towers.items()},
                head="logits" if heads else "sign",
            ),
            64,
            seed=0,
            anchors=anchors,
        )
        loss = build_loss(LossSettings(name="logistic" if heads else "anchor_margin"), anchors)
        studies = _studies({name: model.tower(name).prepared_shape for name in model.modalities})
        sources: dict[str, GradientSource] = {
            "plain": NoPrivacy(),
            "private": SiteDpSgd(_PRIVACY, SecureNoise(), _reserve),
        }
        turns = [
            {name: _seconds(source, model, studies, loss) for name, source in sources.items()}
            for _ in range(_TURNS)
        ]
        for name in sources:
            rate = _STEPS * _PATIENTS / median(turn[name] for turn in turns[1:])
            yield Figure(case, name, "throughput", "patients/s", rate)
        ratio = median(turn["plain"] / turn["private"] for turn in turns[1:])
        yield Figure(case, "private", "throughput of plain", "", ratio)
        sums = [
            {way: _clipping_seconds(model, studies, loss, way) for way in (True, False)}
            for _ in range(_TURNS)
        ]
        gain = median(turn[False] / turn[True] for turn in sums[1:])
        yield Figure(case, "unformed", "throughput of formed gradients", "", gain)


def _seconds(
    source: GradientSource, model: HashModel, studies: PreparedStudies, loss: Loss
) -> float:
    gradients = source.gradients(
        model,
        studies,
        loss,
        LearningSettings(batch_patients=_PATIENTS, local_steps=_STEPS),
        margins=Margins.constant(len(_FINDINGS), 0.3),
        steps=_STEPS,
        generator=torch.Generator().manual_seed(0),
    )
    started = time.perf_counter()
    for _ in gradients:
        pass
    return time.perf_counter() - started


def _clipping_seconds(
    model: HashModel, studies: PreparedStudies, loss: Loss, unformed: bool
) -> float:
    margins = Margins.constant(len(_FINDINGS), 0.3)
    started = time.perf_counter()
    clipped_sum(model, studies, loss, margins, 1.0, unformed=unformed)
    return time.perf_counter() - started


def _reserve(steps: object) -> None:
    """Nobody's patients: there is no ledger."""


def _studies(shapes: dict[str, tuple[int, ...]]) -> PreparedStudies:
    names = tuple(map(str, range(_PATIENTS)))
    labels = torch.zeros(_PATIENTS, len(_FINDINGS), dtype=torch.int8)
    labels[torch.arange(_PATIENTS), torch.arange(_PATIENTS) % len(_FINDINGS)] = 1
    generator = torch.Generator().manual_seed(0)
    return PreparedStudies(
        names,
        names,
        labels,
        {
            name: torch.randn(_PATIENTS, *shape, generator=generator)
            for name, shape in shapes.items()
        },
        {name: torch.ones(_PATIENTS, dtype=torch.bool) for name in shapes},
        tuple({} for _ in names),
    )
