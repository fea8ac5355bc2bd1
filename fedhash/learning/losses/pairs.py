"""The pairs of a batch, for losses that compare patients with each other.

Rows of all modalities that are present are stacked, so pairs within a modality and between two
count alike. With y the labels of two rows:

- **similar**: they share a positive finding, or are two modalities of one study;
- **dissimilar**: no finding could be shared, uncertain ones taken as positive;
- neither, and left out: what they share hangs on an uncertain finding; and a row with itself.

Shape suffixes: B batch, K findings, b bits, R rows of all modalities.

    >>> pairs = Pairs.of(outputs, present, labels)
    >>> theta_RR = pairs.outputs @ pairs.outputs.T / 2
    >>> loss_B = pairs.per_patient(torch.nn.functional.softplus(theta_RR))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8, Int64

__all__ = ["Pairs"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows and how each stands to each.

    Attributes:
        patients: B.
        patient: The place in the batch of each row's patient.
        outputs: Raw outputs u.
        positive: Whether a row has a finding.
        similar: See the module.
        dissimilar: See the module.
    """

    patients: int
    patient: Int64[torch.Tensor, " R"]
    outputs: Float[torch.Tensor, "R b"]
    positive: Bool[torch.Tensor, "R K"]
    similar: Bool[torch.Tensor, "R R"]
    dissimilar: Bool[torch.Tensor, "R R"]

    @classmethod
    def of(
        cls,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
    ) -> Pairs:
        """The pairs of a batch, as a loss is given it."""
        patient = torch.cat([torch.nonzero(present[name])[:, 0] for name in outputs])
        own_study = patient[:, None] == patient
        positive, possible = labels[patient] == 1, labels[patient] != 0
        itself = torch.eye(len(patient), dtype=torch.bool)
        return cls(
            patients=len(labels),
            patient=patient,
            outputs=torch.cat([raw[present[name]] for name, raw in outputs.items()]),
            positive=positive,
            similar=(own_study | _share(positive)) & ~itself,
            dissimilar=~(own_study | _share(possible)),
        )

    @property
    def known(self) -> Bool[torch.Tensor, "R R"]:
        """The pairs that count."""
        return self.similar | self.dissimilar

    def per_patient(self, losses: Float[torch.Tensor, "R R"]) -> Float[torch.Tensor, " B"]:
        """R times the mean over the pairs that count, each pair told under its first row's patient.

        So a patient has as many shares as modalities, as in a loss of patient terms.
        """
        count = self.known.sum().clamp(min=1)
        return self.summed(torch.where(self.known, losses, 0.0).sum(dim=1) * len(losses) / count)

    def summed(self, losses: Float[torch.Tensor, " R"]) -> Float[torch.Tensor, " B"]:
        """Losses of the rows, summed over each patient's modalities."""
        return torch.zeros(self.patients).index_add(0, self.patient, losses)


def _share(findings: Bool[torch.Tensor, "R K"]) -> Bool[torch.Tensor, "R R"]:
    """Whether two rows have a finding in common."""
    return findings.float() @ findings.float().T > 0
