"""All sites of a round in one batched computation: no messages, no agents, the same mathematics.

1. Every site starts from the round's model and draws its own batches from its own stream, as its
   agent would (`fedhash.rounds.trainer`, `fedhash.learning.local_training`), so the sum equals the
   in-process engine's within floating error.
2. The sites' parameters stand in one tensor with a row a site. A tower runs over the rows
   (`fedhash_sim.engines.stacked_towers`); the loss, which treats each study by itself, runs over
   all studies as one batch; one backward pass then fills in each row's own gradient.
3. So many sites at a time that their parameters stay below `parameters_at_once`; of a large model
   that is one, and the computation is a plain loop.
4. Sites of unequal batches share a step (`fedhash_sim.engines.site_batches`). Sites of unequal
   numbers of steps do not, so they go in groups.
5. What a site carries from round to round is kept for all in one file a round, written before the
   round counts (`fedhash_sim.engines.carried_rows`).
6. Where every site takes one plain step of SGD from the same model, the sum of the steps is the
   step of the sum (`fedhash_sim.engines.summed_step`), without a row of parameters for each site.
7. Layers that stay at their site (`fedhash.learning.own_layers`) start from a row a site and add
   nothing to the sum.
8. What needs a site's own half is refused by `unfit`: privacy, secure sums, margin statistics,
   losses that look beyond one study, one that trains prototypes, of which each site has its own,
   and towers that draw at random in training.

Shape suffixes: S sites of a group, B patients of a step, d parameters.

    >>> sites = VectorisedSites(plan, agreement, studies, seed=7, folder=work / "sites")
    >>> coordinator = RoundCoordinator(plan, agreement, state, sites)
    >>> run_rounds(coordinator, sites)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from fedhash.agreement import Agreement
from fedhash.errors import ModelError, ProtocolError
from fedhash.learning.local_training import (
    CONTROL,
    FIRST_MOMENT,
    local_optimiser,
    planned_steps,
)
from fedhash.learning.losses import LOSSES, build_loss
from fedhash.learning.own_layers import OWN_LAYERS, own_places
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings
from fedhash.models.towers import build_tower, tower_problems
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.rounds.aggregation import Aggregate, Answers, Stage, SumRecord
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.training_messages import RunPlan, TrainRequest
from fedhash_sim.engines.carried_rows import (
    CarriedRows,
    joined_rows,
    moments,
    restore_moments,
    split_rows,
)
from fedhash_sim.engines.site_batches import BatchedSite, SiteBatches
from fedhash_sim.engines.stacked_towers import StackedTowers
from fedhash_sim.engines.summed_step import SummedStep, finite_total, is_one_step

__all__ = ["VectorisedSites", "unfit"]


def unfit(settings: RoundSettings) -> str | None:
    """Why rounds of these settings need each site's own half, with what to do; None if not."""
    if not isinstance(settings.privacy, NoPrivacySettings):
        what = f"privacy.mode {settings.privacy.mode}"
    elif settings.aggregation != "plain":
        what = f"aggregation: {settings.aggregation}"
    elif settings.margin_schedule is not None:
        what = "a margin_schedule"
    elif settings.loss.trains_prototypes:
        what = f"loss.name {settings.loss.name}, whose prototypes differ from site to site"
    elif not LOSSES[settings.loss.name].sum_of_patient_terms:
        what = f"loss.name {settings.loss.name}, which looks at a whole batch"
    elif (name := _random_tower(settings.model)) is not None:
        what = f"towers with dropout or other random layers, and {name} has some as it is set"
    else:
        return None
    return f"the engine vectorised has no {what}; set engine: inprocess"


def _random_tower(settings: ModelSettings) -> str | None:
    """A tower that draws from torch's generator in training; wrong settings are told elsewhere."""
    for modality, each in settings.towers.items():
        if tower_problems(modality, each):
            continue
        with torch.random.fork_rng(devices=[]):
            tower = build_tower(modality, each, outputs=1).train()
            before = torch.get_rng_state()
            tower(torch.zeros(1, *tower.prepared_shape))
            if not torch.equal(before, torch.get_rng_state()):
                return each.name
    return None


class VectorisedSites:
    """The sites of one run: both what reaches them and what adds them up.

    Args:
        plan: Of the run.
        agreement: Of the consortium.
        studies: Site to its studies.
        seed: Of the sites' batches.
        folder: Where what the sites carry is kept.
        parameters_at_once: The most that stand in memory beside each other; 1 is a site at a time.

    Raises:
        ModelError: The settings are `unfit`.
        DataError: A site has no study, or one without a positive finding.
    """

    name: ClassVar[str] = "plain"

    def __init__(
        self,
        plan: RunPlan,
        agreement: Agreement,
        studies: Mapping[str, PreparedStudies],
        seed: int,
        folder: Path,
        parameters_at_once: int = 1_500_000,  # 6 MB
    ) -> None:
        settings = plan.settings
        if (reason := unfit(settings)) is not None:
            raise ModelError(reason)
        self._plan = plan
        anchors = Anchors.build(agreement)
        self._model = build_model(settings.model, agreement.code_bits, seed=0, anchors=anchors)
        self._model.train()
        self._towers = StackedTowers(self._model)
        self._layout = Layout.of(self._model)
        self._loss = build_loss(settings.loss, anchors)
        self._sites_at_once = max(1, parameters_at_once // self._layout.size)
        self._buffers: dict[int, list[nn.Parameter]] = {}
        self._own = own_places(self._model, settings.learning)
        self._own_tensors = [
            place for place, each in enumerate(self._layout.entries) if self._own[each.offset]
        ]
        self._memory = CarriedRows(folder, plan, self._layout, self._own)
        self._batches = SiteBatches(plan, self._model, studies, seed)
        self._steps_of = [
            min(planned_steps(len(site.patients), settings.learning), agreement.largest_local_steps)
            for site in self._batches.sites
        ]
        self._summed_step = SummedStep(plan, self._model, self._loss, self._batches)

    @property
    def sites(self) -> tuple[str, ...]:
        """See :class:`fedhash.rounds.engine.Engine`."""
        return self._plan.sites

    def carried(
        self, site: str, counted: int, model: Float32[np.ndarray, " d"]
    ) -> dict[str, np.ndarray]:
        """What a site carries after the round that last counted, under the coordinator's model.

        Raises:
            CheckpointError: It is gone.
        """
        row = self._plan.sites.index(site)
        return {name: rows[row] for name, rows in self._memory.after(counted, model).items()}

    def ask(
        self,
        stage: str,
        requests: Mapping[str, Message],  # noqa: ARG002 - the port's signature
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Iterator[Answer]:
        """See :class:`fedhash.rounds.engine.Engine`; these sites take no messages."""
        raise ProtocolError(f"vectorised sites take no messages, and {stage!r} is one")

    def aggregate(
        self,
        request: TrainRequest,
        record: SumRecord,  # noqa: ARG002 - the port's signature: no site can be left out
    ) -> Generator[Stage, Answers, Aggregate]:
        """See :class:`fedhash.rounds.aggregation.Aggregation`."""
        yield from ()
        sites = self._batches.sites
        counted = request.counted.get(sites[0].name, 0)  # no site counts without the others
        carried = self._memory.after(counted, request.model)
        learning, weight = self._plan.settings.learning, sum(site.weight for site in sites)
        if is_one_step(learning) and set(self._steps_of) == {1}:
            return Aggregate(self._summed_step.total(request), weight)
        first = self._layout.split(request.model)
        sums = {name: torch.zeros(length) for name, length in request.blocks.items()}
        following = {name: np.empty_like(array) for name, array in carried.items()}
        for rows in _alike(self._steps_of, self._sites_at_once):
            group = _Group(
                [sites[row] for row in rows],
                self._steps_of[rows[0]],
                {name: array[rows] for name, array in carried.items()},
            )
            for name, array in self._train(request, first, group, sums).items():
                following[name][rows] = array
        total = finite_total(
            torch.cat([sums[name] for name in request.blocks]), request.round_number
        )
        self._memory.keep(request.round_number, following, counted)
        return Aggregate(total, weight)

    def _train(
        self,
        request: TrainRequest,
        first: Sequence[torch.Tensor],
        group: _Group,
        sums: Mapping[str, Float32[torch.Tensor, " _"]],
    ) -> dict[str, np.ndarray]:
        """Train the sites of a group from the round's model, and add up what they would reply.

        Returns:
            What they carry on, a row a site.
        """
        settings, count = self._plan.settings, len(group.sites)
        learning = settings.learning
        starts = self._starts(first, group)
        parameters = self._started(starts, count)
        named = {
            entry.name: parameter
            for entry, parameter in zip(self._layout.entries, parameters, strict=True)
        }
        optimiser = local_optimiser(parameters, learning, request.round_number, settings.rounds)
        restore_moments(optimiser, parameters, group.carried, self._layout)
        gradient_sums, corrections = [], []
        if request.control is not None:
            gradient_sums = [torch.zeros_like(each) for each in parameters]
            corrections = split_rows(request.control - group.carried[CONTROL], self._layout)
        losses = torch.zeros(count)
        for rows, row_weights in self._steps(request, group):
            optimiser.zero_grad()
            own_losses = self._losses(named, rows, row_weights, request)
            own_losses.sum().backward()  # type: ignore[no-untyped-call]
            losses += own_losses.detach()
            if learning.gradient_clip_norm is not None:
                _clip_each(parameters, learning.gradient_clip_norm)
            for place, parameter in enumerate(parameters):
                gradient = parameter.grad
                if gradient is None:
                    continue
                if request.control is not None:
                    gradient_sums[place] += gradient
                    gradient += corrections[place]
                if learning.proximal_weight:
                    gradient += learning.proximal_weight * (parameter.detach() - starts[place])
            optimiser.step()
        carried: dict[str, np.ndarray] = {}
        if FIRST_MOMENT in group.carried:
            carried |= moments(optimiser, parameters)
        if OWN_LAYERS in group.carried:
            carried[OWN_LAYERS] = joined_rows([parameters[place] for place in self._own_tensors])
        for place, (parameter, entry) in enumerate(
            zip(parameters, self._layout.entries, strict=True)
        ):
            if place not in self._own_tensors:
                updates = parameter.detach().sub_(first[place]).flatten(1)
                part = sums["update"][entry.offset : entry.offset + updates.shape[1]]
                part.addmv_(updates.T, group.weights)
        sums["loss"].add_(group.weights @ losses / group.steps)
        if request.control is not None:
            carried[CONTROL] = joined_rows(gradient_sums) / np.float32(group.steps)
            carried[CONTROL][:, self._own] = 0
            deltas = torch.from_numpy(carried[CONTROL] - group.carried[CONTROL])
            sums["control"].addmv_(deltas.T, group.weights)
        return carried

    def _starts(self, first: Sequence[torch.Tensor], group: _Group) -> list[torch.Tensor]:
        """The round's model; where layers stay at their site, a row a site."""
        starts, offset = list(first), 0
        for place in self._own_tensors:
            shape, size = first[place].shape, first[place].numel()
            rows = torch.from_numpy(group.carried[OWN_LAYERS][:, offset : offset + size])
            starts[place] = rows.reshape(-1, *shape)
            offset += size
        return starts

    def _started(self, starts: Sequence[torch.Tensor], count: int) -> list[nn.Parameter]:
        """Where each site starts, a row a site, in memory that rounds use again."""
        if count not in self._buffers:
            shapes = [entry.shape for entry in self._layout.entries]
            self._buffers[count] = [nn.Parameter(torch.empty(count, *each)) for each in shapes]
        parameters = self._buffers[count]
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.detach().copy_(start.expand_as(parameter))
            parameter.grad = None
        return parameters

    def _steps(
        self, request: TrainRequest, group: _Group
    ) -> Iterator[tuple[Int64[torch.Tensor, "S B"], Float32[torch.Tensor, "S B"]]]:
        """Rows of each of a group's steps, and how much each counts in its site's mean."""
        return self._batches.steps(
            group.sites,
            round_number=request.round_number,
            steps=group.steps,
            patients=self._plan.settings.learning.batch_patients,
        )

    def _losses(
        self,
        parameters: Mapping[str, nn.Parameter],
        rows: Int64[torch.Tensor, "S B"],
        weights: Float32[torch.Tensor, "S B"],
        request: TrainRequest,
    ) -> Float32[torch.Tensor, " S"]:
        """Each site's mean loss of a step."""
        outputs = {}
        for modality, inputs in self._batches.inputs.items():
            batch = inputs[rows.reshape(-1)].reshape(*rows.shape, *inputs.shape[1:])
            outputs[modality] = self._towers.encode(modality, parameters, batch).flatten(0, 1)
        losses = self._batches.losses(self._loss, outputs, rows.reshape(-1), request.margins)
        return (losses.reshape(rows.shape) * weights).sum(dim=1)


@dataclass(frozen=True)
class _Group:
    """Sites that take equally many steps in every round, with what they carry, a row a site."""

    sites: Sequence[BatchedSite]
    steps: int
    carried: Mapping[str, np.ndarray]

    @property
    def weights(self) -> Float32[torch.Tensor, " S"]:
        """How much each counts."""
        return torch.tensor([site.weight for site in self.sites])


def _alike(steps_of: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of equal steps, at most so many at a time."""
    by_steps = sorted(range(len(steps_of)), key=lambda place: (steps_of[place], place))
    for _, same in groupby(by_steps, key=steps_of.__getitem__):
        while rows := list(islice(same, most)):
            yield rows


def _clip_each(parameters: Sequence[nn.Parameter], largest_norm: float) -> None:
    """Clip each site's gradient by its own norm, as `torch.nn.utils.clip_grad_norm_` would."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients])
    factors = (largest_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
