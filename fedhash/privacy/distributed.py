"""One full-batch step whose noise the sites add together, inside the secure sum.

After Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism" (arXiv
2102.06387), without their rotation and their conditional rounding. Neighbours, clipping and values
that are not finite are those of `fedhash.privacy.dp_sgd`. A round is one step of the consortium:

1. At the request's model each site takes all its patients, and of each one study, drawn evenly by
   the noise source and told to nobody. A patient's gradient over all towers together is clipped to
   L2 norm C.
2. A site sends minus the sum of the clipped gradients, and no loss. There is no optimiser at the
   site: clipping bounds one gradient of a patient, not what several local steps make of it.
3. The sum becomes integers, and a discrete Gaussian is added to each of them before the masks
   (`fedhash.privacy.noise_share` says how wide and why). A single site's vector without masks would
   be protected by its own share alone; the secure sum is part of the mechanism.
4. The coordinator multiplies the sum by the learning rate, divides it by N, `expected_patients`,
   and takes its optimiser's step: post-processing.
5. The step is reserved before the first patient is looked at; model and settings are checked first.

    >>> result, noise = noised_step(model, studies, loss, settings.learning, margins=margins,
    ...     clip_norm=1.0, share=share, noise=SecureNoise(), reserve=ledger_entry_of)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from fedhash.learning.gradients import check_labelled, check_modalities, rows_by_patient
from fedhash.learning.local_training import LocalResult
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy.discrete_gaussian import discrete_gaussians
from fedhash.privacy.dp_sgd import clipped_sum
from fedhash.privacy.noise import NoiseSource, one_of_each
from fedhash.privacy.private_steps import SharedNoiseStep
from fedhash.privacy.soundness import check_sound

__all__ = ["noised_step"]


def noised_step(
    model: HashModel,
    studies: PreparedStudies,
    loss: Loss,
    settings: LearningSettings,
    *,
    margins: Margins,
    clip_norm: float,
    share: SharedNoiseStep,
    noise: NoiseSource,
    reserve: Callable[[SharedNoiseStep], object],
) -> tuple[LocalResult, Int64[np.ndarray, " d"]]:
    """Minus the sum of the patients' clipped gradients, and the noise that has to go with it.

    Args:
        model: The round's.
        studies: The site's own, prepared by a model of the same settings.
        loss: Against the agreement's anchors.
        settings: Checked by `one_step_problems`.
        margins: The round's.
        clip_norm: C.
        share: The noise of each site of the sum.
        noise: Of the choice of studies and the site's share.
        reserve: Called before any patient is looked at; raises to refuse the step.

    Raises:
        PrivacyError: Clipping would not bound a patient's influence; nothing was reserved.
        DataError: There is no study, or one without a positive finding.
        ModelError: The studies' modalities do not fit.
        FedhashError: What `reserve` raises.
    """
    check_sound(model, loss, settings)
    check_modalities(model, studies)
    reserve(share)
    check_labelled(studies)
    patients = rows_by_patient(studies)
    places = one_of_each(noise, np.array([len(rows) for rows in patients], np.int64))
    rows = [rows[place] for rows, place in zip(patients, places, strict=True)]
    total = clipped_sum(model, studies, loss, margins, clip_norm, rows)
    added = discrete_gaussians(noise, share.share_sigma_integer_steps, len(total))
    return LocalResult(-total, None, 1, None, {}), added
