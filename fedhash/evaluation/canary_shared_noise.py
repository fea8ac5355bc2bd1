"""Canaries against noise that sites share: what the coordinator and its helpers see of a sum.

The audit is that of `fedhash.evaluation.canary`. One site holds all canaries and patients; of the
other sites' shares those are added that the guarantee counts on, and no others: colluding sites
have taken theirs out again, and the missing ones never came.

    >>> privacy = DistributedPrivacySettings(mode="distributed", clip_norm=1, noise_multiplier=2.7,
    ...                                      expected_patients=1000)
    >>> audit = audit_shared_noise(privacy, steps=20, delta=1e-5)
    >>> audit.claimed_epsilon, audit.best.epsilon
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from fedhash.agreement import Agreement
from fedhash.evaluation.canary import CanaryAudit, audit_mechanism
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy.accountant import epsilon
from fedhash.privacy.discrete_gaussian import discrete_gaussians
from fedhash.privacy.distributed import noised_step
from fedhash.privacy.noise import SimulatedNoise
from fedhash.privacy.noise_share import noise_share
from fedhash.privacy.private_steps import SharedNoiseStep
from fedhash.privacy.reservation import model_update
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.randomness import numpy_stream
from fedhash.secagg.fixed_point import Block, FixedPoint
from fedhash.secagg.floors import secure_cohort

__all__ = ["audit_shared_noise"]

_LEARNING_RATE = 1e-3  # of a step, as far as the canaries stay where they are
_LEARNING = LearningSettings(
    optimiser="sgd", local_steps=1, control_variates=False, weight_decay=0.0
)
_AGREEMENT = Agreement(name="audit", findings=("a", "b"), modalities=("image",))


def audit_shared_noise(
    privacy: DistributedPrivacySettings,
    *,
    steps: int,
    delta: float,
    sites: int = 10,
    canaries: int = 2000,
    patients: int = 200,
    seed: int = 0,
) -> CanaryAudit:
    """Audit one run whose noise `sites` sites share.

    Args:
        privacy: C, z and N.
        steps: Of the run, one a round.
        delta: Of the claim.
        sites: Of each sum, with the shares that the agreement's defaults guarantee.
        canaries: m, from 100 to 5000.
        patients: Who take part for certain.
        seed: Of the coins, the patients and the noise.

    Raises:
        PrivacyError: An argument is out of range, or so few sites guarantee no noise.
        ProtocolError: No graph has so many sites.
    """
    reserved: list[SharedNoiseStep] = []
    cohort = secure_cohort(sites, _AGREEMENT)
    terms = _AGREEMENT.secure_aggregation

    def train(
        model: HashModel, studies: PreparedStudies, loss: Loss, margins: Margins
    ) -> Iterator[Float32[np.ndarray, " d"]]:
        layout = Layout.of(model)
        encoding = FixedPoint(
            (Block("update", layout.size, privacy.clip_norm * terms.largest_weight),),
            terms.ring_bits,
            sites,
            largest_weight=1.0,
            tells_clipped=False,
        )
        share = noise_share(privacy, encoding, cohort)
        for step in range(steps):
            result, noise = noised_step(
                model,
                studies,
                loss,
                _LEARNING,
                margins=margins,
                clip_norm=privacy.clip_norm,
                share=share,
                noise=SimulatedNoise(seed, "canary", "own share", step),
                reserve=reserved.append,
            )
            for other in range(cohort.fewest_honest - 1):
                source = SimulatedNoise(seed, "canary", "share of another", step, other)
                noise = noise + discrete_gaussians(
                    source, share.share_sigma_integer_steps, layout.size
                )
            words = encoding.encode(result.update, 1.0, numpy_stream(seed, "rounding", step))
            words[: layout.size] += noise.astype(words.dtype)
            released = -encoding.decode(words).vector.astype(np.float32)
            yield released
            layout.load(model, layout.flatten(model) - np.float32(_LEARNING_RATE) * released)

    def claim() -> float:
        return epsilon(
            [model_update("0" * 64, "audit", step, each) for step, each in enumerate(reserved)],
            delta,
        )

    return audit_mechanism(
        train, claim, delta=delta, canaries=canaries, patients=patients, seed=seed
    )
