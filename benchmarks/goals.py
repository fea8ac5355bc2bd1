"""What the benches are held to.

A goal of retrieval quality asks that in each of its directions a contender's mAP over queries
reaches `at_least`: as it is, or as a share of another contender's.

    >>> goal = Goal("phantom_dirichlet", ("image -> image",), "federated", 0.97, "central")
    >>> goal.verdict(goal.measured(values, "map image -> image"))
    'met'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "DEMO_GOALS",
    "NETWORK_GOALS",
    "NETWORK_SECURE",
    "PRIVACY_GOALS",
    "QUALITY_GOALS",
    "SECAGG_CASE",
    "SECAGG_FEW_SITES",
    "SECAGG_GOALS",
    "SIM_GOALS",
    "Goal",
]


@dataclass(frozen=True)
class Goal:
    """One goal of retrieval quality.

    Attributes:
        study: The case of the figures.
        directions: Query and target, as the figures name them.
        contender: Whose mAP is judged.
        at_least: The smallest value, or the smallest share, that meets the goal.
        share_of: The contender that the share is of; None judges the mAP itself.
    """

    study: str
    directions: tuple[str, ...]
    contender: str
    at_least: float
    share_of: str | None = None

    def __str__(self) -> str:
        text = f"{self.contender} at least {self.at_least:.2f}"
        if self.share_of is not None:
            text += f" of {self.share_of}"
        return text

    def measured(self, values: Mapping[tuple[str, str, str], float], figure: str) -> float | None:
        """The judged value; None where a study that it needs was not run.

        Args:
            values: By case, figure and contender.
            figure: Metric and direction.
        """
        value = values.get((self.study, figure, self.contender))
        if self.share_of is None or value is None:
            return value
        whole = values.get((self.study, figure, self.share_of))
        return None if whole is None else value / whole

    def verdict(self, measured: float | None) -> str:
        """Met, missed or not run."""
        if measured is None:
            return "not run"
        return "met" if measured >= self.at_least else "missed"


_IMAGES = ("image -> image",)
_IMAGES_AND_REPORTS = ("image -> image", "image -> report", "report -> image", "report -> report")

QUALITY_GOALS = (
    Goal("kermany_hog_train_database", _IMAGES, "central", 0.76),
    Goal("kermany_hog_train_database", _IMAGES, "federated", 0.95, "central"),
    Goal("kermany_hog_held_out", _IMAGES, "federated", 0.98, "central"),
    Goal("phantom_dirichlet", _IMAGES_AND_REPORTS, "federated", 0.97, "central"),
)

DEMO_GOALS = {"wall time": 180.0, "peak memory": 2.0}
"""The largest value of each figure that meets its goal, in seconds and GB (10^9 bytes)."""

NETWORK_SECURE = ("secure", "secure, Flower's SuperNodes")
NETWORK_GOALS = {
    ("Flower averaging", "round"): 1.5,
    ("Flower averaging", "train"): 1.5,  # the stricter reading: its evaluation left out
    ("Flower SecAgg+", "round"): None,
}
"""Contender and what of it was timed, to the largest multiple that meets the goal."""

SIM_GOALS: dict[tuple[str, str], dict[str | None, float]] = {
    ("vectorised, site by site", "10k"): {None: 40},
    ("vectorised, site by site", "1M"): {None: 5},
    ("vectorised, a row a site", "10k"): {None: 300, "pfl 0.6": 2.5, "Flower on Ray": 15},
    ("vectorised, a row a site", "1M"): {"pfl 0.6": 2.5, "Flower on Ray": 15},
    ("vectorised, the step of the sum", "10k"): {None: 300, "pfl 0.6": 2.5, "Flower on Ray": 15},
    ("vectorised, the step of the sum", "1M"): {"pfl 0.6": 2.5, "Flower on Ray": 15},
}
"""Contender and case to the least rounds per CPU-second, or the least multiple of a peer's."""

SECAGG_CASE = "11,700,000 parameters, 20 sites"
SECAGG_FEW_SITES = "11,700,000 parameters, 5 sites"
SECAGG_GOALS = {
    "all CPU": ("at most a fifth of Flower's", 0.2),
    "bytes a parameter, 32 bits": ("at most 4", 4.0),
    "bytes a parameter, 24 bits": ("at most 4", 4.0),
    "bytes a parameter, 20 bits": ("at most 3", 3.0),
    "coordinator memory, 20 sites by 5": ("does not grow with the sites", 1.1),
}
"""Figure to its goal and to the largest value that meets it; one accumulator is 46.8 MB."""

# contender to the least share of the best figure without privacy, and the cases that are judged
PRIVACY_GOALS = {
    "distributed, epsilon 8": 0.98,
    "distributed, epsilon 3": 0.96,
    "distributed, epsilon 1": 0.94,
    "site, epsilon 8": 0.95,
}
