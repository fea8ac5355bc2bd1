"""Small sites whose noise is shared, and what their secure sum must come to, by another path.

The reference takes each patient's gradient by plain autograd, clips it by hand and adds it up; the
noise is drawn once more from the same seeds. So the right model is known to the last integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from small_federation import (
    MODEL,
    SECURE_AGREEMENT,
    SITES,
    model_and_layout,
    round_settings,
    run_plan,
    secure_half,
    site_studies,
)

from fedhash.learning.losses import build_loss
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.privacy.discrete_gaussian import discrete_gaussians
from fedhash.privacy.noise import NoiseSource, SimulatedNoise
from fedhash.privacy.noise_share import noise_share
from fedhash.privacy.settings import DistributedPrivacySettings, PrivateMode
from fedhash.randomness import numpy_stream
from fedhash.rounds.settings import RoundSettings, starting_margins
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import MemorySiteState
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.floors import secure_cohort

PRIVACY = DistributedPrivacySettings(
    mode="distributed", clip_norm=0.25, noise_multiplier=1.5, expected_patients=12
)
ONE_STEP = {
    "local_steps": 1,
    "optimiser": "sgd",
    "weight_decay": 0.0,
    "control_variates": False,
    "learning_rate": 0.5,
}
SETTINGS = round_settings(
    aggregation="secure", weighting="uniform", privacy=PRIVACY, learning=ONE_STEP, rounds=2
)


def simulated(site: str, run: str, number: int) -> SimulatedNoise:
    return SimulatedNoise(11, run, site, number)


def forget(*_: object) -> None:
    """Nothing keeps account."""


def distributed_site(
    site: str,
    noise: Callable[[str, str, int], NoiseSource] = simulated,
    reserve: Callable[..., object] = forget,
    modes: tuple[PrivateMode, ...] = ("distributed",),
) -> SiteAgent:
    privacy = SitePrivacy(partial(noise, site), reserve, modes)
    trainer = SiteTrainer(site, SECURE_AGREEMENT, MODEL, prepared(site), 7, privacy)
    return SiteAgent(site, SECURE_AGREEMENT, trainer, MemorySiteState(), secure_half(site))


def prepared(site: str) -> PreparedStudies:
    model = build_model(MODEL, SECURE_AGREEMENT.code_bits, seed=0)
    return prepare_studies(model, site_studies(site), SECURE_AGREEMENT.findings)


def sum_by_hand(site: str, vector: np.ndarray) -> np.ndarray:
    """The sum of the clipped gradients of a site's patients, who have one study each."""
    model = build_model(MODEL, SECURE_AGREEMENT.code_bits, seed=0)
    Layout.of(model).load(model, vector)
    loss = build_loss(SETTINGS.loss, Anchors.build(SECURE_AGREEMENT))
    margins = starting_margins(SETTINGS.loss, SECURE_AGREEMENT)
    studies, total = prepared(site), np.zeros(len(vector))
    for row in range(len(studies)):
        model.zero_grad()
        one = studies.select([row])
        outputs = {name: model.encode(name, x) for name, x in one.inputs.items()}
        loss(outputs, one.present, one.labels, margins).sum().backward()
        parts = [p.grad.reshape(-1).numpy().astype(float) for p in model.parameters()]
        gradient = np.concatenate(parts)
        norm = np.linalg.norm(gradient)
        total += gradient * min(1.0, 0.999 * PRIVACY.clip_norm / (norm + 1e-6))
    return total


def sum_of_round(
    vector: np.ndarray, number: int, sites: Sequence[str] = SITES, begun: int = len(SITES)
) -> np.ndarray:
    """What the coordinator decodes of the update: integers and noise without any mask."""
    plan, size = run_plan(SETTINGS), model_and_layout()[1].size
    encoding = round_encoding(
        plan, {"update": size, "loss": 1}, SECURE_AGREEMENT.secure_aggregation
    )
    share = noise_share(PRIVACY, encoding, secure_cohort(begun, SECURE_AGREEMENT))
    total = np.zeros(size, np.int64)
    for site in sites:
        block = np.append(-sum_by_hand(site, vector), 0.0)
        rng = numpy_stream(7, "stochastic rounding", site, plan.run_id, number)
        noise = simulated(site, plan.run_id, number)
        noise.uniforms(len(prepared(site)))  # the choice of studies
        total += encoding.encode(block, 1.0, rng)[:size].view("<i4")
        total += discrete_gaussians(noise, share.share_sigma_integer_steps, size)
    return total * encoding.step(encoding.blocks[0])


def rate_of_round(settings: RoundSettings, number: int) -> float:
    """The cosine over the rounds."""
    return 0.5 * (1 + math.cos(math.pi * (number - 1) / settings.rounds)) / 2
