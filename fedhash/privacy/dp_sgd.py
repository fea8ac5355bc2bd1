"""DP-SGD with the patient as the unit (Abadi et al. 2016, arXiv 1607.00133), through Opacus.

Two data sets are neighbours if one patient, with all studies and modalities, is added or removed.
Each of a round's steps is one Poisson-sampled Gaussian mechanism between such neighbours:

1. Every patient takes part with probability q, independently; of each that does, one study is drawn
   evenly. Both draws come from the noise source and are told to nobody.
2. A patient's gradient over **all** towers together is clipped to L2 norm C: two towers clipped
   apart would cost sqrt(2) C. A tower whose modality the study lacks gives zero.
3. The clipped gradients are summed, N(0, (sigma C)^2) is added to each coordinate in float64, and
   only this noised sum is used. A batch without a patient is a step like any other: noise alone.
4. The sum is divided by q N, the expected batch, never by the batch's own size. N is the number of
   the site's patients as `published_patients` rounds it, and is treated as public.
5. The round's steps are reserved before the first patient is looked at: a crash counts too much.
6. Floats round: gradients are clipped a thousandth below C, which leaves room for it. At most 64
   gradients are summed in float32, the rest in float64; 20,000 equal ones round by less (a test).
7. Values that are not finite count as zero, so that a patient cannot make a round fail.
8. Models that are mostly linear layers are clipped by their norms alone, without a gradient of each
   patient in memory (ghost clipping, Li et al., arXiv 2110.05679): two passes backwards, and 10 to
   20 times as fast there. Convolutions are quicker with the gradients themselves.

Noise and clipping are Opacus's `DPOptimizer` with `add_noise` replaced: its own secure mode needs
torchcsprng, which does not go with this torch.

Shape suffix: d parameters of the whole model.

    >>> source = SiteDpSgd(settings.privacy, SecureNoise(), reserve=ledger_entry_of)
    >>> result = train_locally(..., source=source)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64

from fedhash.learning.gradients import rows_by_patient
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy._opacus import (
    DPOptimizer,
    GradSampleHooks,
    GradSampleHooksFastGradientClipping,
)
from fedhash.privacy.noise import NoiseSource, one_of_each, poisson_sample
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.public_count import published_patients
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.privacy.soundness import check_sound

__all__ = ["SiteDpSgd", "clipped_sum"]

_ROUNDING = 1e-3
_ROWS_AT_ONCE = 64  # see rule 6
_BYTES_AT_ONCE = 1 << 28  # of patients' gradients; large models come in smaller parts


class SiteDpSgd:
    """A `fedhash.learning.gradients.GradientSource` that protects each patient.

    Args:
        settings: C, sigma and q.
        noise: Of samples and noise.
        reserve: Called once a round before any data is read; raises to refuse the steps.
    """

    def __init__(
        self,
        settings: SitePrivacySettings,
        noise: NoiseSource,
        reserve: Callable[[PrivateSteps], object],
    ) -> None:
        self._settings = settings
        self._noise = noise
        self._reserve = reserve

    def gradients(
        self,
        model: HashModel,
        studies: PreparedStudies,
        loss: Loss,
        settings: LearningSettings,
        *,
        margins: Margins,
        steps: int,
        generator: torch.Generator,  # noqa: ARG002 - what a seed decides is no secret
    ) -> Generator[float | None, None, None]:
        """See :class:`fedhash.learning.gradients.GradientSource`; never tells a loss.

        Raises:
            PrivacyError: Clipping would not bound a patient's influence; nothing was reserved.
            FedhashError: What `reserve` raises.
        """
        privacy = self._settings
        check_sound(model, loss, settings)
        self._reserve(PrivateSteps(privacy.noise_multiplier, privacy.sampling_rate, steps))
        patients = rows_by_patient(studies)
        sums = _NoisedSum(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            clip_norm=privacy.clip_norm * (1 - _ROUNDING),
            noise_sd=privacy.noise_multiplier * privacy.clip_norm,
            divisor=privacy.sampling_rate * published_patients(len(patients)),
            noise=self._noise,
        )
        with sums.watching(model, loss):
            for _ in range(steps):
                taken = [
                    patients[place]
                    for place in poisson_sample(self._noise, len(patients), privacy.sampling_rate)
                ]
                places = one_of_each(self._noise, np.array([len(rows) for rows in taken], np.int64))
                rows = [rows[place] for rows, place in zip(taken, places, strict=True)]
                sums.fill(model, studies, rows, loss, margins)
                yield None


def clipped_sum(
    model: HashModel,
    studies: PreparedStudies,
    loss: Loss,
    margins: Margins,
    clip_norm: float,
    rows: Sequence[int] | None = None,
) -> Float64[np.ndarray, " d"]:
    """The sum of the patients' clipped gradients, one study each, as a step of DP-SGD forms it.

    Without noise: never to be released as it is. Any loss is taken, for the audit shows what is
    wrong with those that private steps refuse.

    Args:
        model: At which the gradients are taken; it is left in training mode.
        studies: Of the site.
        loss: Against the agreement's anchors.
        margins: The round's.
        clip_norm: C; gradients are clipped a thousandth below.
        rows: One of each patient; all studies without it.
    """
    model.train()
    sums = _NoisedSum(
        list(model.parameters()),
        clip_norm=clip_norm * (1 - _ROUNDING),
        noise_sd=0.0,
        divisor=1.0,
        noise=None,
    )
    with sums.watching(model, loss):
        sums.fill(model, studies, range(len(studies)) if rows is None else rows, loss, margins)
        return torch.cat([each.summed_grad.reshape(-1) for each in sums.params]).numpy()


class _NoisedSum(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Clips, sums, adds noise and divides; the step itself is its caller's."""

    _ghost: GradSampleHooksFastGradientClipping | None = None

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        *,
        clip_norm: float,
        noise_sd: float,
        divisor: float,
        noise: NoiseSource | None,
    ) -> None:
        super().__init__(
            torch.optim.SGD(parameters, lr=1.0),  # only names the parameters
            noise_multiplier=0.0,  # Opacus's own noise
            max_grad_norm=clip_norm,
            expected_batch_size=divisor,
        )
        self._noise_sd = noise_sd
        self._noise = noise

    @contextmanager
    def watching(self, model: HashModel, loss: Loss) -> Iterator[None]:
        """Let Opacus keep each patient's gradient, or its norm alone where that is quicker."""
        Layout.of(model)  # refuses what Opacus would refuse without a word of advice
        # on the way back a norm weighs the patient's loss, which is all of it in a sum alone
        if loss.sum_of_patient_terms and _is_mostly_linear(model):
            hooks = self._ghost = GradSampleHooksFastGradientClipping(
                model, loss_reduction="sum", max_grad_norm=self.max_grad_norm
            )
        else:
            hooks = GradSampleHooks(model, loss_reduction="sum")
        try:
            yield
        finally:
            hooks.cleanup()
            for parameter in model.parameters():
                for name in ("summed_grad", "_norm_sample"):  # nothing without noise outlives this
                    if hasattr(parameter, name):
                        delattr(parameter, name)

    def clip_and_accumulate(self) -> None:
        """Opacus's hook before the noise; by their norms gradients are clipped on their way."""
        if self._ghost is None:
            super().clip_and_accumulate()
            return
        for parameter in self.params:
            before = parameter.summed_grad
            parameter.summed_grad = parameter.grad if before is None else before + parameter.grad

    def add_noise(self) -> None:
        """Opacus's hook between the sum and the division."""
        sizes = [parameter.numel() for parameter in self.params]
        noise = np.zeros(sum(sizes)) if self._noise is None else self._noise.gaussians(sum(sizes))
        parts = torch.split(torch.from_numpy(noise).mul_(self._noise_sd), sizes)
        for parameter, part in zip(self.params, parts, strict=True):
            noised = parameter.summed_grad + part.view_as(parameter)  # float64, rounded only then
            parameter.grad = noised.to(parameter.dtype)

    def fill(
        self,
        model: HashModel,
        studies: PreparedStudies,
        rows: Sequence[int],
        loss: Loss,
        margins: Margins,
    ) -> None:
        """Set `.grad` of the parameters from one study of each patient taken."""
        whole = [(rows, True)]  # only patients who do not see each other can be taken in parts
        for part, is_last in self._parts(rows) if loss.sum_of_patient_terms else whole:
            self.zero_grad()
            if part:
                with warnings.catch_warnings():
                    # Opacus's hooks on the first layers, whose inputs need no gradient
                    warnings.filterwarnings("ignore", "Full backward hook is firing")
                    self._backward(model, studies, part, loss, margins)
            for parameter in self.params:
                if self._ghost is not None:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    parameter.grad_sample = parameter.grad[None]  # Opacus looks for one
                elif not part:
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
                if not parameter.grad_sample.sum().isfinite():  # no value that is not finite hides
                    parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            self.signal_skip_step(do_skip=not is_last)
            self.pre_step()
            for parameter in self.params:
                parameter.summed_grad = parameter.summed_grad.double()

    def _backward(
        self,
        model: HashModel,
        studies: PreparedStudies,
        rows: Sequence[int],
        loss: Loss,
        margins: Margins,
    ) -> None:
        """Leave the patients' gradients beside the parameters, or their clipped sum in `.grad`."""
        batch = studies.select(rows)
        outputs = {name: model.encode(name, x) for name, x in batch.inputs.items()}
        losses = loss(outputs, batch.present, batch.labels, margins)
        hooks = self._ghost
        if hooks is None:
            losses.sum().backward()  # type: ignore[no-untyped-call]
            return
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        finite = hooks.get_norm_sample().isfinite().tolist()
        self.original_optimizer.zero_grad()
        if not all(finite):
            kept = [row for row, is_finite in zip(rows, finite, strict=True) if is_finite]
            if kept:
                self._backward(model, studies, kept, loss, margins)
            return
        factors = hooks.get_clipping_coef().detach()
        hooks.disable_hooks()
        try:
            (losses * factors).sum().backward()
        finally:
            hooks.enable_hooks()

    def _parts(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], bool]]:
        """The rows cut so that their gradients fit the memory, and whether a part is the last."""
        parameters = sum(parameter.numel() for parameter in self.params)
        fitting = _ROWS_AT_ONCE if self._ghost else _BYTES_AT_ONCE // (4 * parameters)
        at_once = min(_ROWS_AT_ONCE, max(1, fitting))
        for start in range(0, max(1, len(rows)), at_once):
            yield rows[start : start + at_once], start + at_once >= len(rows)


def _is_mostly_linear(model: HashModel) -> bool:
    linear = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        for parameter in module.parameters()
    )
    return 2 * linear > sum(parameter.numel() for parameter in model.parameters())
