"""How the vector of a round is laid out in the ring: which blocks, in which order, how clipped.

>>> encoding = round_encoding(request.plan, request.blocks, agreement.secure_aggregation)
>>> encoding.digest()
"""

from __future__ import annotations

from collections.abc import Mapping

from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.rounds.training_messages import PLAIN_SUMS, RunPlan
from fedhash.secagg.fixed_point import Block, FixedPoint
from fedhash.secagg.terms import SecureAggregationTerms

__all__ = ["round_encoding"]


def round_encoding(
    plan: RunPlan, blocks: Mapping[str, int], terms: SecureAggregationTerms
) -> FixedPoint:
    """The encoding of a round's `reply_blocks`, with room for the sum over the whole roster.

    Where the sites share their noise, the update is a sum of clipped gradients, in which a patient
    moves no coordinate by more than the clipping norm; and the number of clipped values, which has
    no noise, stays at the site.
    """
    privacy = plan.settings.privacy
    clips = {
        "update": privacy.clip_norm * terms.largest_weight
        if isinstance(privacy, DistributedPrivacySettings)
        else terms.largest_update,
        "control": terms.largest_control,
        "statistics": terms.largest_statistic,
        "loss": terms.largest_loss,
    }
    return FixedPoint(
        blocks=tuple(
            Block(name, length, clips[name], weighted=name not in PLAIN_SUMS)
            for name, length in blocks.items()
        ),
        ring_bits=terms.ring_bits,
        sites=len(plan.sites),
        # all weights are one, and the ring's integers are all for the values
        largest_weight=1.0 if plan.settings.weighting == "uniform" else terms.largest_weight,
        tells_clipped=not privacy.shares_noise,
    )
