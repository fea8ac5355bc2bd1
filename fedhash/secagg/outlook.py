"""What a person should see of a run's secure sums before its first round.

>>> outlook = sum_outlook(plan, model_size=11_700_000, agreement=agreement)
>>> outlook.rounding_sd["update"]
{1.0: 2.69e-06, 10000.0: 2.69e-10}
>>> outlook.warnings
()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedhash.agreement import Agreement
from fedhash.privacy.noise_share import noise_share
from fedhash.privacy.private_steps import SharedNoiseStep
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.rounds.training_messages import RunPlan, reply_blocks
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.floors import secure_cohort, smallest_cohort
from fedhash.secagg.graph import cohorts_without_graph

__all__ = ["SumOutlook", "sum_outlook"]

# A site's value is then off by 1/32 of the clip at most, as a standard deviation: the lightest
# site still says something.
_FEWEST_LEVELS = 16
_LISTED = 12


@dataclass(frozen=True, slots=True)
class SumOutlook:
    """The foreseeable of a run's sums.

    Attributes:
        rounding_sd: Weight of each site (the smallest, the largest) to `FixedPoint.rounding_sd`
            of the mean over the whole roster.
        warnings: What works, and worse than its agreement may intend; one sentence each.
        shared_noise: What each site adds where the sites share their noise.
    """

    rounding_sd: Mapping[float, Mapping[str, float]]
    warnings: tuple[str, ...]
    shared_noise: SharedNoiseStep | None = None


def sum_outlook(plan: RunPlan, model_size: int, agreement: Agreement) -> SumOutlook:
    """Foresee the sums of a run whose whole roster takes part.

    Raises:
        ProtocolError: The ring cannot hold the roster's sum.
        PrivacyError: Every site would refuse to share noise in it.
    """
    terms, sites = agreement.secure_aggregation, len(plan.sites)
    schedule = plan.settings.margin_schedule
    number = 1 if schedule is None else schedule.every_rounds  # a round with all blocks
    blocks = reply_blocks(plan, number, model_size, len(agreement.findings))
    encoding = round_encoding(plan, blocks, terms)
    warnings = []
    if encoding.fewest_levels < _FEWEST_LEVELS:
        warnings.append(
            f"ring_bits is {terms.ring_bits}: with {sites} sites and a largest_weight of "
            f"{terms.largest_weight:g}, a value of the lightest site ({encoding.weight_step} "
            f"patients, or fewer) has {encoding.fewest_levels:.2g} levels up to its clip, and "
            f"below {_FEWEST_LEVELS} it is mostly rounding; widen ring_bits or lower "
            "largest_weight"
        )
    smallest = smallest_cohort(agreement)
    if missing := cohorts_without_graph(smallest, sites, terms):
        listed = ", ".join(map(str, missing[:_LISTED]))
        more = f" and {len(missing) - _LISTED} other numbers of" if len(missing) > _LISTED else ""
        warnings.append(
            f"no graph joins {listed}{more} sites: a round in which just so many offer keys fails; "
            "agree on smaller shares of corrupt sites or of dropouts"
        )
    weights = (float(encoding.weight_step), encoding.largest_weight)
    sds = {weight: encoding.rounding_sd(weight * sites, sites) for weight in weights}
    privacy, shared = plan.settings.privacy, None
    if isinstance(privacy, DistributedPrivacySettings):
        shared = noise_share(privacy, encoding, secure_cohort(sites, agreement))
    return SumOutlook(sds, tuple(warnings), shared)
