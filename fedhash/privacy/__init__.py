"""What one patient's data may have leaked, over the whole life of a consortium.

events          what happened: the mechanism, its noise, its sampling, its steps
accountant      epsilon of events; the noise for a target; the steps that are left
terms           how much a site, or its consortium, allows
ledger          the events of one site, written down before they happen
reservation     a round's steps as events of the ledger
noise           the random numbers that privacy rests on
dp_sgd          clipped and noised gradients, one patient the unit
distributed     one step whose noise the sites add together
noise_share     how much noise each of them adds
discrete_gaussian   noise in integers
soundness       what breaks the bound of a clipped gradient, and the remedy
"""

from __future__ import annotations

from fedhash.privacy.accountant import (
    Spending,
    epsilon,
    epsilon_after,
    smallest_noise_multiplier,
    spending,
    steps_left,
)
from fedhash.privacy.events import (
    DistributedGaussianStep,
    FullBatchGaussianSteps,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
    canonical_json,
    parse_event,
)
from fedhash.privacy.ledger import Anchor, Ledger, LedgerEntry, anchor_of, read_ledger
from fedhash.privacy.terms import AgreedPrivacy, PrivacyTerms

__all__ = [
    "AgreedPrivacy",
    "Anchor",
    "DistributedGaussianStep",
    "FullBatchGaussianSteps",
    "GaussianRelease",
    "Ledger",
    "LedgerEntry",
    "PoissonGaussianSteps",
    "PrivacyEvent",
    "PrivacyTerms",
    "Spending",
    "anchor_of",
    "canonical_json",
    "epsilon",
    "epsilon_after",
    "parse_event",
    "read_ledger",
    "smallest_noise_multiplier",
    "spending",
    "steps_left",
]
