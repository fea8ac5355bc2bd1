"""All sites of a round in one batched computation: no messages, no agents, the same mathematics.

1. Every site starts from the round's model and draws its own batches from its own stream, as its
   agent would (`fedhash.rounds.trainer`, `fedhash.learning.local_training`), so the sum equals the
   in-process engine's within floating error.
2. The sites' parameters stand in one tensor with a row a site. A tower runs over the rows by
   `torch.func.vmap`; the loss, which treats each study by itself, runs over all studies as one
   batch; one backward pass then fills in each row's own gradient.
3. So many sites at a time that their parameters stay below `parameters_at_once`; of a large model
   that is one, and the computation is a plain loop.
4. Sites of unequal batches share a step: the shorter ones are filled up with studies of weight 0.
   Sites of unequal numbers of steps do not, so they go in groups.
5. What a site carries from round to round is kept for all in one file a round, written before the
   round counts.
6. Where every site takes one plain step of SGD from the same model, the sum of the steps is the
   step of the sum: one ordinary backward pass, without a row of parameters for each site.
7. What needs a site's own half is refused by `unfit`: privacy, secure sums, margin statistics, and
   losses that look beyond one study; and towers that draw at random in training.

Shape suffixes: S sites of a group, B patients of a step, d parameters.

    >>> sites = VectorisedSites(plan, agreement, studies, seed=7, folder=work / "sites")
    >>> coordinator = RoundCoordinator(plan, agreement, state, sites)
    >>> run_rounds(coordinator, sites)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import nn
from torch.func import functional_call, vmap

from fedhash.agreement import Agreement
from fedhash.errors import CheckpointError, ModelError, ProtocolError
from fedhash.learning.gradients import batches_of, check_labelled, check_modalities, rows_by_patient
from fedhash.learning.local_training import (
    CONTROL,
    FIRST_MOMENT,
    MOMENT_STEPS,
    SECOND_MOMENT,
    carried_names,
    learning_rate_of,
    local_optimiser,
    planned_steps,
)
from fedhash.learning.losses import LOSSES, build_loss
from fedhash.learning.settings import LearningSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings
from fedhash.models.towers import build_tower, tower_problems
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.randomness import torch_stream
from fedhash.rounds.aggregation import Aggregate, Answers, Stage, SumRecord
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.site import weight_of
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import RunPlan, TrainRequest

__all__ = ["VectorisedSites", "unfit"]

_SITES_A_BATCH = 256  # of one step


def unfit(settings: RoundSettings) -> str | None:
    """Why rounds of these settings need each site's own half, with what to do; None if not."""
    if not isinstance(settings.privacy, NoPrivacySettings):
        what = f"privacy.mode {settings.privacy.mode}"
    elif settings.aggregation != "plain":
        what = f"aggregation: {settings.aggregation}"
    elif settings.margin_schedule is not None:
        what = "a margin_schedule"
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


@dataclass(frozen=True)
class _Site:
    """Place of a site's studies among all, its patients' rows in there, and its weight."""

    name: str
    patients: list[list[int]]
    weight: float


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
        self._plan, self._seed = plan, seed
        self._most_steps = agreement.largest_local_steps
        anchors = Anchors.build(agreement)
        self._model = build_model(settings.model, agreement.code_bits, seed=0, anchors=anchors)
        self._model.train()
        self._encoder = _Encoder(self._model)
        self._layout = Layout.of(self._model)
        self._loss = build_loss(settings.loss, anchors)
        self._sites_at_once = max(1, parameters_at_once // self._layout.size)
        self._buffers: dict[int, list[nn.Parameter]] = {}
        self._state = FileSiteState(folder)
        self._carried: tuple[int, Mapping[str, np.ndarray]] | None = None
        self._sites = []
        start = 0
        for name in plan.sites:
            check_modalities(self._model, studies[name])
            check_labelled(studies[name])
            patients = [[start + row for row in rows] for rows in rows_by_patient(studies[name])]
            self._sites.append(_Site(name, patients, weight_of(settings, len(patients))))
            start += len(studies[name])
        ordered = [studies[name] for name in plan.sites]
        self._labels = torch.cat([each.labels for each in ordered])
        self._inputs = {
            name: torch.cat([each.inputs[name] for each in ordered])
            for name in self._model.modalities
        }
        self._present = {
            name: torch.cat([each.present[name] for each in ordered])
            for name in self._model.modalities
        }

    @property
    def sites(self) -> tuple[str, ...]:
        """See :class:`fedhash.rounds.engine.Engine`."""
        return self._plan.sites

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
        counted = request.counted.get(self._sites[0].name, 0)  # no site counts without the others
        carried = self._carried_after(counted)
        learning = self._plan.settings.learning
        steps_of = [
            min(planned_steps(len(site.patients), learning), self._most_steps)
            for site in self._sites
        ]
        if _is_one_step(learning) and set(steps_of) == {1}:
            return Aggregate(self._one_step(request), sum(site.weight for site in self._sites))
        first = self._layout.split(request.model)
        sums = {name: torch.zeros(length) for name, length in request.blocks.items()}
        following = {name: np.empty_like(array) for name, array in carried.items()}
        for rows in _alike(steps_of, self._sites_at_once):
            group = _Group(
                [self._sites[row] for row in rows],
                steps_of[rows[0]],
                {name: array[rows] for name, array in carried.items()},
            )
            for name, array in self._train(request, first, group, sums).items():
                following[name][rows] = array
        total = _finite(torch.cat([sums[name] for name in request.blocks]), request)
        if following:
            self._state.keep(
                self._plan.run_id, request.round_number, following, counted_round=counted
            )
            self._carried = (request.round_number, following)
        return Aggregate(total, sum(site.weight for site in self._sites))

    def _one_step(self, request: TrainRequest) -> Float64[np.ndarray, " D"]:
        """The sum of replies whose updates are one step of SGD each: that of one weighted batch."""
        settings = self._plan.settings
        rate = learning_rate_of(settings.learning, request.round_number, settings.rounds)
        self._layout.load(self._model, request.model)
        self._model.zero_grad()
        loss, weight = torch.zeros(()), sum(site.weight for site in self._sites)
        for start in range(0, len(self._sites), _SITES_A_BATCH):
            sites = self._sites[start : start + _SITES_A_BATCH]
            group = _Group(sites, 1, {})
            ((rows, row_weights),) = self._batches(request, group, settings.learning.batch_patients)
            batch, of_sites = rows.reshape(-1), torch.tensor([site.weight for site in sites])
            outputs = {
                modality: self._model.encode(modality, inputs[batch])
                for modality, inputs in self._inputs.items()
            }
            terms = self._terms(outputs, batch, request)
            mean_losses = (terms.reshape(rows.shape) * row_weights).sum(dim=1)
            weighted = of_sites @ mean_losses
            weighted.backward()  # type: ignore[no-untyped-call]
            loss += weighted.detach()
        gradients = [
            torch.zeros_like(each) if each.grad is None else each.grad
            for each in self._model.parameters()
        ]
        update = torch.cat([each.reshape(-1) for each in gradients])
        update += settings.learning.weight_decay * weight * torch.from_numpy(request.model)
        return _finite(torch.cat([-rate * update, loss[None]]), request)

    def _carried_after(self, counted: int) -> Mapping[str, np.ndarray]:
        """What all sites carry after a round, a row a site; zeros before the first."""
        names = carried_names(self._plan.settings.learning)
        if self._carried is not None and self._carried[0] == counted:
            return self._carried[1]
        if counted == 0 or not names:
            tensors = len(self._layout.entries)
            sizes = {name: tensors if name == MOMENT_STEPS else self._layout.size for name in names}
            rows = len(self._sites)
            return {name: np.zeros((rows, size), np.float32) for name, size in sizes.items()}
        kept = self._state.carried(self._plan.run_id, counted)
        if kept is None:
            raise CheckpointError(
                f"what the sites carried after round {counted} of {self._plan.run_id!r} is gone; "
                "remove the run's folder, or choose another --out"
            )
        return kept

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
        parameters = self._started(first, count)
        named = {
            entry.name: parameter
            for entry, parameter in zip(self._layout.entries, parameters, strict=True)
        }
        optimiser = local_optimiser(parameters, learning, request.round_number, settings.rounds)
        self._restore_moments(optimiser, parameters, group.carried)
        gradient_sums, corrections = [], []
        if request.control is not None:
            gradient_sums = [torch.zeros_like(each) for each in parameters]
            corrections = self._split(request.control - group.carried[CONTROL])
        losses = torch.zeros(count)
        for rows, row_weights in self._batches(request, group, learning.batch_patients):
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
                    gradient += learning.proximal_weight * (parameter.detach() - first[place])
            optimiser.step()
        carried: dict[str, np.ndarray] = {}
        if FIRST_MOMENT in group.carried:
            carried |= self._moments(optimiser, parameters)
        weights = torch.tensor([site.weight for site in group.sites])
        place = 0
        for parameter, start in zip(parameters, first, strict=True):
            updates = parameter.detach().sub_(start).flatten(1)
            sums["update"][place : place + start.numel()].addmv_(updates.T, weights)
            place += start.numel()
        sums["loss"].add_(weights @ losses / group.steps)
        if request.control is not None:
            carried[CONTROL] = _joined(gradient_sums) / np.float32(group.steps)
            deltas = torch.from_numpy(carried[CONTROL] - group.carried[CONTROL])
            sums["control"].addmv_(deltas.T, weights)
        return carried

    def _started(self, first: Sequence[torch.Tensor], count: int) -> list[nn.Parameter]:
        """The round's model, a row a site, in memory that rounds use again."""
        if count not in self._buffers:
            self._buffers[count] = [nn.Parameter(torch.empty(count, *each.shape)) for each in first]
        parameters = self._buffers[count]
        for parameter, start in zip(parameters, first, strict=True):
            parameter.detach().copy_(start.expand_as(parameter))
            parameter.grad = None
        return parameters

    def _batches(
        self, request: TrainRequest, group: _Group, batch_patients: int
    ) -> Iterator[tuple[Int64[torch.Tensor, "S B"], Float32[torch.Tensor, "S B"]]]:
        """Rows of each step, and how much each counts in its site's mean."""
        draws = []
        for site in group.sites:
            generator = torch_stream(
                self._seed, "training", self._plan.run_id, site.name, request.round_number
            )
            torch.randint(2**62, (), generator=generator)  # what a site seeds random layers with
            draws.append(islice(batches_of(site.patients, batch_patients, generator), group.steps))
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

    def _losses(
        self,
        parameters: Mapping[str, nn.Parameter],
        rows: Int64[torch.Tensor, "S B"],
        weights: Float32[torch.Tensor, "S B"],
        request: TrainRequest,
    ) -> Float32[torch.Tensor, " S"]:
        """Each site's mean loss of a step."""
        every = rows.reshape(-1)
        outputs = {}
        for modality, inputs in self._inputs.items():
            batch = inputs[every].reshape(*rows.shape, *inputs.shape[1:])
            outputs[modality] = self._encoded(modality, parameters, batch).flatten(0, 1)
        terms = self._terms(outputs, every, request)
        return (terms.reshape(rows.shape) * weights).sum(dim=1)

    def _terms(
        self,
        outputs: Mapping[str, Float32[torch.Tensor, "N b"]],
        rows: Int64[torch.Tensor, " N"],
        request: TrainRequest,
    ) -> Float32[torch.Tensor, " N"]:
        """Each row's own loss."""
        present = {modality: each[rows] for modality, each in self._present.items()}
        return self._loss(outputs, present, self._labels[rows], request.margins)

    def _encoded(
        self,
        modality: str,
        parameters: Mapping[str, nn.Parameter],
        batch: Float32[torch.Tensor, "S B ..."],
    ) -> Float32[torch.Tensor, "S B b"]:
        """Raw outputs of each site's own tower."""

        def encode(
            own: dict[str, torch.Tensor], prepared: Float32[torch.Tensor, "B ..."]
        ) -> Float32[torch.Tensor, "B b"]:
            encoded: torch.Tensor = functional_call(self._encoder, own, (modality, prepared))
            return encoded

        if len(batch) == 1:
            alone = {f"model.{name}": each[0] for name, each in parameters.items()}
            return encode(alone, batch[0])[None]
        own: dict[str, torch.Tensor] = {f"model.{name}": each for name, each in parameters.items()}
        stacked: torch.Tensor = vmap(encode, in_dims=(0, 0))(own, batch)
        return stacked

    def _split(self, matrix: Float32[np.ndarray, "S d"]) -> list[torch.Tensor]:
        """A tensor a parameter, a row a site."""
        whole = torch.from_numpy(matrix)
        return [
            whole[:, offset : offset + prod(shape)].reshape(-1, *shape)
            for _, shape, offset in self._layout.entries
        ]

    def _restore_moments(
        self,
        optimiser: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        carried: Mapping[str, np.ndarray],
    ) -> None:
        if FIRST_MOMENT not in carried or not carried[MOMENT_STEPS].any():
            return
        first, second = (self._split(carried[name]) for name in (FIRST_MOMENT, SECOND_MOMENT))
        for place, parameter in enumerate(parameters):
            optimiser.state[parameter] = {
                "step": torch.tensor(carried[MOMENT_STEPS][0, place]),  # a group has made the same
                "exp_avg": first[place].contiguous(),
                "exp_avg_sq": second[place].contiguous(),
            }

    def _moments(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> dict[str, np.ndarray]:
        states = [optimiser.state[parameter] for parameter in parameters]
        steps = np.array([float(each["step"]) for each in states], np.float32)
        return {
            FIRST_MOMENT: _joined([each["exp_avg"] for each in states]),
            SECOND_MOMENT: _joined([each["exp_avg_sq"] for each in states]),
            MOMENT_STEPS: np.tile(steps, (len(parameters[0]), 1)),
        }


@dataclass(frozen=True)
class _Group:
    """Sites that take equally many steps in every round, with what they carry, a row a site."""

    sites: Sequence[_Site]
    steps: int
    carried: Mapping[str, np.ndarray]


class _Encoder(nn.Module):
    """A hash model whose `forward` is `encode`: `functional_call` calls nothing else."""

    def __init__(self, model: HashModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, modality: str, prepared: Float32[torch.Tensor, "B ..."]
    ) -> Float32[torch.Tensor, "B b"]:
        return self.model.encode(modality, prepared)


def _alike(steps_of: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of equal steps, at most so many at a time."""
    by_steps = sorted(range(len(steps_of)), key=lambda place: (steps_of[place], place))
    for _, same in groupby(by_steps, key=steps_of.__getitem__):
        while rows := list(islice(same, most)):
            yield rows


def _is_one_step(learning: LearningSettings) -> bool:
    """Whether an update is linear in the gradient, and nothing needs a site's own gradient."""
    return (
        learning.optimiser == "sgd"
        and learning.momentum == 0
        and learning.gradient_clip_norm is None
        and not learning.control_variates
    )


def _finite(total: Float32[torch.Tensor, " D"], request: TrainRequest) -> Float64[np.ndarray, " D"]:
    if not torch.isfinite(total).all():
        raise ProtocolError(
            f"the training of round {request.round_number} left the finite numbers; lower "
            "learning_rate or set gradient_clip_norm"
        )
    return total.double().numpy()


def _joined(tensors: Sequence[torch.Tensor]) -> Float32[np.ndarray, "S d"]:
    return torch.cat([each.detach().flatten(1) for each in tensors], dim=1).numpy()


def _clip_each(parameters: Sequence[nn.Parameter], largest_norm: float) -> None:
    """Clip each site's gradient by its own norm, as `torch.nn.utils.clip_grad_norm_` would."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    squares = torch.stack([each.flatten(1).square().sum(dim=1) for each in gradients]).sum(dim=0)
    factors = (largest_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
