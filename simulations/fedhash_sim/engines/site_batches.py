"""The studies of all sites side by side, and the batches that each site draws of its own.

Batches come from each site's own stream, as its agent would draw them (`fedhash.rounds.trainer`).
Sites of unequal batches share a step: the shorter ones are filled up with studies of weight 0.

Shape suffixes: S sites of a step, B patients of a step, N rows.

    >>> batches = SiteBatches(plan, model, studies, seed=7)
    >>> for rows, weights in batches.steps(batches.sites, round_number=1, steps=20, patients=32):
    ...     inputs = batches.inputs["image"][rows]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float32, Int64

from fedhash.learning.gradients import batches_of, check_labelled, check_modalities, rows_by_patient
from fedhash.learning.loss import Loss, Margins
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import PreparedStudies
from fedhash.randomness import torch_stream
from fedhash.rounds.site import weight_of
from fedhash.rounds.training_messages import RunPlan

__all__ = ["BatchedSite", "SiteBatches"]


@dataclass(frozen=True)
class BatchedSite:
    """One site.

    Attributes:
        name: Of the site.
        patients: Each patient's rows among the studies of all sites.
        weight: How much the site counts in a round.
    """

    name: str
    patients: list[list[int]]
    weight: float


class SiteBatches:
    """What all sites train on.

    Attributes:
        sites: In the order of the plan.
        inputs: Modality to the prepared studies of all sites.

    Raises:
        ModelError: A site's studies are prepared for another model.
        DataError: A site has no study, or one without a positive finding.
    """

    def __init__(
        self, plan: RunPlan, model: HashModel, studies: Mapping[str, PreparedStudies], seed: int
    ) -> None:
        self._run_id, self._seed = plan.run_id, seed
        self.sites: list[BatchedSite] = []
        start = 0
        for name in plan.sites:
            check_modalities(model, studies[name])
            check_labelled(studies[name])
            patients = [[start + row for row in rows] for rows in rows_by_patient(studies[name])]
            weight = weight_of(plan.settings, len(patients))
            self.sites.append(BatchedSite(name, patients, weight))
            start += len(studies[name])
        ordered = [studies[name] for name in plan.sites]
        self._labels = torch.cat([each.labels for each in ordered])
        self.inputs = {
            name: torch.cat([each.inputs[name] for each in ordered]) for name in model.modalities
        }
        self._present = {
            name: torch.cat([each.present[name] for each in ordered]) for name in model.modalities
        }

    def steps(
        self, sites: Sequence[BatchedSite], *, round_number: int, steps: int, patients: int
    ) -> Iterator[tuple[Int64[torch.Tensor, "S B"], Float32[torch.Tensor, "S B"]]]:
        """Rows of each step, and how much each counts in its site's mean."""
        draws = []
        for site in sites:
            generator = torch_stream(self._seed, "training", self._run_id, site.name, round_number)
            torch.randint(2**62, (), generator=generator)  # what a site seeds random layers with
            draws.append(islice(batches_of(site.patients, patients, generator), steps))
        for batches in zip(*draws, strict=True):
            longest = max(map(len, batches))
            yield (
                torch.tensor([rows + [rows[0]] * (longest - len(rows)) for rows in batches]),
                torch.tensor(
                    [
                        [1 / len(rows)] * len(rows) + [0.0] * (longest - len(rows))
                        for rows in batches
                    ]
                ),
            )

    def whole_step(self, patients: int) -> Float32[torch.Tensor, " N"] | None:
        """How much each study counts in the sum of all sites' first steps.

        None where that has to be drawn: not every step takes all of a site's patients, or a patient
        has several studies.
        """
        if any(
            len(site.patients) > patients or any(len(rows) > 1 for rows in site.patients)
            for site in self.sites
        ):
            return None
        counts = torch.tensor([len(site.patients) for site in self.sites])
        return (torch.tensor([site.weight for site in self.sites]) / counts).repeat_interleave(
            counts
        )

    def losses(
        self,
        loss: Loss,
        outputs: Mapping[str, Float32[torch.Tensor, "N b"]],
        rows: Int64[torch.Tensor, " N"] | slice,
        margins: Margins,
    ) -> Float32[torch.Tensor, " N"]:
        """The loss of each row, of its outputs."""
        present = {modality: each[rows] for modality, each in self._present.items()}
        return loss(outputs, present, self._labels[rows], margins)
