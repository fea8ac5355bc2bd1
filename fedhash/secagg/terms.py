"""What a consortium agrees on for its secure sums: a part of the agreement.

    >>> SecureAggregationTerms(largest_dropout_share=0.2).ring_bits
    32

What the two shares buy is tabled in docs/adr/0009-degree-and-threshold.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["SMALLEST_SECURE_COHORT", "SecureAggregationTerms"]

_Clip = Annotated[float, Field(ge=1e-9, le=1e9)]  # far beyond what float32 training makes of use
SMALLEST_SECURE_COHORT = 3  # of two sites each knows the other's vector from the sum


class SecureAggregationTerms(Settings):
    """The terms of secure aggregation.

    Attributes:
        ring_bits: Width of the integers that are masked and summed, so bits sent a parameter;
            fewer round more coarsely.
        largest_weight: Most patients that a site counts for; a larger site counts as this many.
        largest_corrupt_share: Share of a cohort that may work for the coordinator, in the worst
            cohort that the coordinator may choose; fractions of a site are dropped.
        largest_dropout_share: Share of a cohort that may fail without costing the round.
        largest_update: A parameter's change is clipped to this size.
        largest_control: A parameter's control variate is clipped to this size.
        largest_loss: A site's mean loss is clipped to this size.
        largest_statistic: A site counts for at most so many patients of a finding in the margin
            statistics; the sums of a larger one are scaled down together.
    """

    ring_bits: Literal[16, 20, 24, 32] = 32
    largest_weight: float = Field(default=10_000.0, ge=1)
    # no honest majority from a half on; above a third no threshold of two thirds is reached
    largest_corrupt_share: float = Field(default=0.1, ge=0, lt=0.5)
    largest_dropout_share: float = Field(default=0.1, ge=0, lt=1 / 3)
    largest_update: _Clip = 1.0
    largest_control: _Clip = 10.0
    largest_loss: _Clip = 1000.0
    largest_statistic: _Clip = 10_000.0
