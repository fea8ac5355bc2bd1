"""What codes are still good for: macro AUROC of a linear probe on them.

For each finding a logistic regression (scikit-learn's, its defaults) is fitted to the training
patients' outputs and asked about unseen patients'. Studies in which a finding is uncertain (-1)
have no part in it. Findings that have one class only, on either side, are skipped and counted.

Shape suffixes: N training studies, Q unseen studies, b bits, K findings.

    >>> linear_probe(v_Nb, labels_NK, v_Qb, labels_QK)
    Probe(macro_auroc=0.81, findings=13, skipped=1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

__all__ = ["Probe", "linear_probe"]

_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """The figure of a probe.

    Attributes:
        macro_auroc: Mean over the findings; None where all are skipped.
        findings: How many it is a mean of.
        skipped: Findings of one class only.
    """

    macro_auroc: float | None
    findings: int
    skipped: int


def linear_probe(
    training_Nb: Float[np.ndarray, "N b"],
    training_labels_NK: Int8[np.ndarray, "N K"],
    unseen_Qb: Float[np.ndarray, "Q b"],
    unseen_labels_QK: Int8[np.ndarray, "Q K"],
) -> Probe:
    """Fit on the training studies, ask about the unseen ones."""
    from sklearn.linear_model import LogisticRegression  # a second of imports
    from sklearn.metrics import roc_auc_score

    areas, skipped = [], 0
    for finding in range(training_labels_NK.shape[1]):
        known, asked = (
            labels[:, finding] >= 0 for labels in (training_labels_NK, unseen_labels_QK)
        )
        fitted_to = training_labels_NK[known, finding]
        truth = unseen_labels_QK[asked, finding]
        if len(np.unique(fitted_to)) < 2 or len(np.unique(truth)) < 2:
            skipped += 1
            continue
        probe = LogisticRegression(max_iter=_MOST_ITERATIONS).fit(training_Nb[known], fitted_to)
        areas.append(roc_auc_score(truth, probe.decision_function(unseen_Qb[asked])))
    return Probe(float(np.mean(areas)) if areas else None, len(areas), skipped)
