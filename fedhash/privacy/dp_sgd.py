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
   Before it the model and the settings are checked, which are no patient's.
6. Floats round: gradients are clipped a thousandth below C, which leaves room for it. At most 64
   gradients are summed in float32, the rest in float64; 20,000 equal ones round by less (a test).
7. What is not finite counts as zero, so that a patient cannot make a round fail: of a gradient that
   was formed, each such value; where it was not formed (rule 8), all of the patient's gradient.
8. In large models that are mostly linear layers gradients of linear layers are not formed. Such a
   gradient is the product of two vectors, the slopes of the outputs and the inputs; its norm and
   the clipped sum come from these (Goodfellow, arXiv 1510.01799; "book-keeping" in Bu et al., arXiv
   2210.00038). That is several times as fast (make bench-privacy). Opacus's own ghost clipping (two
   passes backwards) is not used: it squares in float32, where a tiny slope beside a huge input
   counts as nothing, and a patient who has both moved a sum by several C (a test).
9. A model always sees as many rows: a product of matrices may round a row otherwise where there are
   fewer, and a coordinator can choose a model that makes much of that. So one patient less changes
   no bit of another's gradient.

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
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from fedhash.learning.gradients import check_labelled, rows_by_patient
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.settings import LearningSettings
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy._opacus import DPOptimizer, GradSampleHooks
from fedhash.privacy.noise import NoiseSource, one_of_each, poisson_sample
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.public_count import published_patients
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.privacy.soundness import check_sound

__all__ = ["SiteDpSgd", "clipped_sum"]

_ROUNDING = 1e-3
_ROWS_AT_ONCE = 64  # see rule 6
_BYTES_AT_ONCE = 1 << 28  # of patients' gradients; large models come in smaller parts
# of a linear layer's weight: slopes of the outputs and inputs, a row a patient
_FACTORS = "factors"
_FEWEST_PARAMETERS = 10_000  # below, rule 8 hardly pays (make bench-privacy)


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
            DataError: There is no study, or one without a positive finding.
            FedhashError: What `reserve` raises.
        """
        privacy = self._settings
        check_sound(model, loss, settings)
        self._reserve(PrivateSteps(privacy.noise_multiplier, privacy.sampling_rate, steps))
        check_labelled(studies)
        patients = rows_by_patient(studies)
        sums = _NoisedSum(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            clip_norm=privacy.clip_norm * (1 - _ROUNDING),
            noise_sd=privacy.noise_multiplier * privacy.clip_norm,
            divisor=privacy.sampling_rate * published_patients(len(patients)),
            noise=self._noise,
        )
        with sums.watching(model):
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
    *,
    unformed: bool | None = None,
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
        unformed: Whether gradients of linear layers are left unformed (rule 8), for audits; None:
            as a step would.
    """
    model.train()
    sums = _NoisedSum(
        list(model.parameters()),
        clip_norm=clip_norm * (1 - _ROUNDING),
        noise_sd=0.0,
        divisor=1.0,
        noise=None,
    )
    with sums.watching(model, unformed):
        sums.fill(model, studies, range(len(studies)) if rows is None else rows, loss, margins)
        return torch.cat([each.summed_grad.reshape(-1) for each in sums.params]).numpy()


class _NoisedSum(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Clips, sums, adds noise and divides; the step itself is its caller's."""

    _unformed = False  # whether gradients are left as their two vectors

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
    def watching(self, model: HashModel, unformed: bool | None = None) -> Iterator[None]:
        """Let Opacus keep each patient's gradient, or in linear layers the two vectors it is of."""
        Layout.of(model)  # refuses what Opacus would refuse without a word of advice
        self._unformed = _pays_unformed(model) if unformed is None else unformed
        hooks = (_UnformedHooks if self._unformed else GradSampleHooks)(model, loss_reduction="sum")
        try:
            yield
        finally:
            hooks.cleanup()
            for parameter in model.parameters():
                if hasattr(parameter, "summed_grad"):  # nothing without noise outlives this
                    del parameter.summed_grad
            self._forget_factors()

    def clip_and_accumulate(self) -> None:
        """Opacus's hook before the noise."""
        if not self._unformed or not len(self.grad_samples[0]):
            super().clip_and_accumulate()
            return
        vectors = [_vectors(parameter) for parameter in self.params]
        norms = torch.stack([_squared_norms(each) for each in vectors]).sum(dim=0).sqrt()
        finite = norms.isfinite()
        factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1)[finite, None]
        for parameter, (slopes, *inputs) in zip(self.params, vectors, strict=True):
            clipped = slopes[finite] * factors
            total = clipped.T @ inputs[0][finite] if inputs else clipped.sum(dim=0)
            before = parameter.summed_grad
            total = total.view_as(parameter)
            parameter.summed_grad = total if before is None else before + total

    def _forget_factors(self) -> None:
        for parameter in self.params:
            if hasattr(parameter, _FACTORS):
                delattr(parameter, _FACTORS)

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
        at_once = self._rows_at_once()
        if not loss.sum_of_patient_terms:  # patients who see each other cannot be taken in parts
            at_once = max(1, len(rows))
        for start in range(0, max(1, len(rows)), at_once):
            part = rows[start : start + at_once]
            self.zero_grad()
            self._forget_factors()
            if part:
                with warnings.catch_warnings():
                    # Opacus's hooks on the first layers, whose inputs need no gradient
                    warnings.filterwarnings("ignore", "Full backward hook is firing")
                    # rule 9: others stand in for those who are missing, and count for nothing
                    batch = studies.select([*part, *list(part[-1:]) * (at_once - len(part))])
                    outputs = {name: model.encode(name, x) for name, x in batch.inputs.items()}
                    losses = loss(outputs, batch.present, batch.labels, margins)
                    losses[: len(part)].sum().backward()  # type: ignore[no-untyped-call]
            for parameter in self.params:
                if not part:
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
                elif not self._unformed and not parameter.grad_sample.sum().isfinite():
                    parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            self.signal_skip_step(do_skip=start + at_once < len(rows))
            self.pre_step()
            for parameter in self.params:
                parameter.summed_grad = parameter.summed_grad.double()

    def _rows_at_once(self) -> int:
        """As many as rule 6 allows and whose gradients fit the memory."""
        parameters = sum(parameter.numel() for parameter in self.params)
        fitting = _ROWS_AT_ONCE if self._unformed else _BYTES_AT_ONCE // (4 * parameters)
        return min(_ROWS_AT_ONCE, max(1, fitting))


def _two_vectors(
    layer: torch.nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """Opacus's sampler for linear layers, which leaves a weight's gradient as its two vectors."""
    weight = layer.weight
    # both are Opacus's, and tell of a layer that is used twice
    again = getattr(weight, "_forward_counter", 1) > 1 or hasattr(weight, "_current_grad_sample")
    if again or backprops.dim() > 2 or not weight.requires_grad:  # no single product
        formed = GradSampleHooks.GRAD_SAMPLERS[torch.nn.Linear](layer, activations, backprops)
        return dict(formed)
    setattr(weight, _FACTORS, (backprops, activations[0]))
    left: dict[torch.Tensor, torch.Tensor] = {
        weight: backprops.new_empty(len(backprops), 0)
    }  # Opacus looks for one
    return left if layer.bias is None else left | {layer.bias: backprops}


class _UnformedHooks(GradSampleHooks):  # type: ignore[misc]  # Opacus has no types
    """Opacus's hooks with `_two_vectors` in linear layers; see rule 8."""

    GRAD_SAMPLERS: ClassVar[dict[type, object]] = {
        **GradSampleHooks.GRAD_SAMPLERS,
        torch.nn.Linear: _two_vectors,
    }


def _vectors(parameter: torch.Tensor) -> list[Float64[torch.Tensor, "n _"]]:
    """A row a patient: of the gradient, or of the two vectors whose product it is."""
    kept = getattr(parameter, _FACTORS, None) or (getattr(parameter, "grad_sample"),)  # noqa: B009
    return [each.reshape(len(each), -1).double() for each in kept]


def _squared_norms(vectors: list[Float64[torch.Tensor, "n _"]]) -> Float64[torch.Tensor, " n"]:
    """Of each patient's gradient; squares of float32 neither vanish nor overflow in float64."""
    return torch.stack([each.square().sum(dim=1) for each in vectors]).prod(dim=0)


def _pays_unformed(model: HashModel) -> bool:
    """Whether rule 8 pays: the model is large, and mostly linear layers."""
    linear = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        for parameter in module.parameters()
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters >= _FEWEST_PARAMETERS and 2 * linear > parameters
