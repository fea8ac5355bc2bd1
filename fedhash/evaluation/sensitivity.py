"""Does clipping bound a patient's influence? One patient is removed and the clipped sum compared.

The sums are those of a step of DP-SGD (`fedhash.privacy.dp_sgd.clipped_sum`, through Opacus) over
a batch that an adversary chose. For a sum of patient terms the change is the patient's own clipped
gradient, at most C. With negatives from the batch it is up to (2 n - 1) C for n patients: the noise
is made for C and then hides much less than it claims.

Both ways of clipping are measured (`fedhash.privacy.dp_sgd`, rule 8), and the larger change told.

The search is a lower bound: a loss that stays below C here is not proved to, but one above is
refuted. Batches start at random ones, at batches whose other patients are all but equal, and at
such whose modalities contradict each other, and are then moved by gradient ascent so that the other
patients' gradients turn together when the one leaves.

Shape suffixes: B batch, F features, b bits.

    >>> audit_sensitivity("contrastive", patients=64, seed=0)
    Sensitivity(loss='contrastive', accepted=False, patients=64, change_in_c=..., start='equal')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from fedhash.agreement import Agreement
from fedhash.evaluation._linear_tower import LinearTower
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.losses import LOSSES, build_loss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy.dp_sgd import clipped_sum
from fedhash.randomness import numpy_stream

__all__ = ["AUDITED_LOSSES", "Sensitivity", "audit_sensitivity"]

# all but one that is refused for what it trains, and not for what a patient's gradient depends on
AUDITED_LOSSES = tuple(name for name in LOSSES if name != "learned_prototypes")

_BITS = 16
_FINDINGS = ("no_finding", "one", "two", "three")
_MODALITIES = ("image", "report")
_STARTS = ("random", "equal", "opposed")
_CLIP_NORM = 0.1  # below nearly all gradients: where directions alone count, least is enough
_ASCENT_STEPS = 60
_JITTER = 1e-2
_TOLERANCE = 1e-6

_Inputs = Mapping[str, Float[torch.Tensor, "B F"]]


@dataclass(frozen=True)
class Sensitivity:
    """The largest change of a clipped sum that was found.

    Attributes:
        loss: Name of the loss.
        accepted: Whether DP accepts it, being a sum of patient terms.
        patients: Patients in the batch, with the one who is removed.
        change_in_c: L2 norm of the change, in units of the clipping norm C.
        start: Which kind of batch the search started from.
    """

    loss: str
    accepted: bool
    patients: int
    change_in_c: float
    start: str

    @property
    def holds(self) -> bool:
        """Whether no change above C was found."""
        return self.change_in_c <= 1 + _TOLERANCE


def audit_sensitivity(name: str, *, patients: int, seed: int) -> Sensitivity:
    """Search for a batch in which one patient changes the clipped sum the most.

    Args:
        name: One of `AUDITED_LOSSES`.
        patients: In the batch, at least 2.
        seed: Of the batches that the search starts from.
    """
    agreement = Agreement(name="audit", findings=_FINDINGS, code_bits=_BITS, modalities=_MODALITIES)
    loss = build_loss(LossSettings.model_validate({"name": name}), Anchors.build(agreement))
    found = {}
    for start in _STARTS:
        rng = numpy_stream(seed, "sensitivity", name, patients, start)
        labels = np.zeros((patients, len(_FINDINGS)), np.int8)
        labels[np.arange(patients), rng.integers(len(_FINDINGS), size=patients)] = 1
        inputs = _start(start, patients, rng)
        batch = _batch(inputs, labels)
        moved = _batch(_ascended(inputs, batch, loss), labels)
        found[start] = max(_change(batch, loss), _change(moved, loss))
    best = max(found, key=lambda start: found[start])
    return Sensitivity(name, LOSSES[name].sum_of_patient_terms, patients, found[best], best)


def _start(kind: str, patients: int, rng: np.random.Generator) -> _Inputs:
    """Inputs of a batch; the patient who will be removed comes first."""
    image, report = rng.normal(size=(2, patients, _BITS))
    if kind != "random":
        common = rng.normal(size=_BITS)
        image[1:] = common + _JITTER * image[1:]
        report[1:] = (common if kind == "equal" else -common) + _JITTER * report[1:]
    return {
        name: torch.from_numpy(values.astype(np.float32))
        for name, values in zip(_MODALITIES, (image, report), strict=True)
    }


def _batch(inputs: _Inputs, labels: np.ndarray) -> PreparedStudies:
    names = tuple(str(row) for row in range(len(labels)))
    return PreparedStudies(
        study_ids=names,
        patient_ids=names,
        labels=torch.from_numpy(labels),
        inputs=inputs,
        present={name: torch.ones(len(labels), dtype=torch.bool) for name in inputs},
        attributes=({},) * len(labels),
    )


def _change(batch: PreparedStudies, loss: Loss) -> float:
    """The most that the first patient changes on either way, through Opacus, in units of C."""
    # towers that start as the identity: the adversary chooses their outputs
    model = HashModel({name: LinearTower(torch.eye(_BITS)) for name in batch.inputs}, _BITS)
    margins = Margins.constant(len(_FINDINGS), 0.3)
    rest = batch.select(range(1, len(batch)))
    changes = []
    for unformed in (False, True):
        whole, others = (
            clipped_sum(model, each, loss, margins, _CLIP_NORM, unformed=unformed)
            for each in (batch, rest)
        )
        changes.append(float(np.linalg.norm(whole - others)) / _CLIP_NORM)
    return max(changes)


def _ascended(inputs: _Inputs, batch: PreparedStudies, loss: Loss) -> _Inputs:
    """The inputs after gradient ascent on the change, by a formula for linear towers."""
    moved = {name: values.clone().requires_grad_() for name, values in inputs.items()}
    optimiser = torch.optim.Adam(moved.values(), lr=0.05, maximize=True)
    for _ in range(_ASCENT_STEPS):
        everyone = _formula(moved, batch, loss)
        rest = batch.select(range(1, len(batch)))
        others = _formula({name: values[1:] for name, values in moved.items()}, rest, loss)
        change = (everyone - others).norm()
        optimiser.zero_grad()
        change.backward()
        for values in moved.values():
            if values.grad is not None:
                values.grad.nan_to_num_()
        optimiser.step()
    return {name: values.detach() for name, values in moved.items()}


def _formula(inputs: _Inputs, batch: PreparedStudies, loss: Loss) -> Float[torch.Tensor, " d"]:
    """The clipped sum where a patient's gradient is the product of slope and input."""
    outputs = {name: values + 0 for name, values in inputs.items()}
    margins = Margins.constant(len(_FINDINGS), 0.3)
    total = loss(outputs, batch.present, batch.labels, margins).sum()
    slopes = torch.autograd.grad(total, list(outputs.values()), create_graph=True)
    pairs = list(zip(slopes, inputs.values(), strict=True))
    squares = [s.square().sum(dim=1) * x.square().sum(dim=1) for s, x in pairs]
    norms = (torch.stack(squares).sum(dim=0) + 1e-12).sqrt()
    factors = (_CLIP_NORM / norms).clamp(max=1)
    return torch.cat([((factors[:, None] * s).T @ x).reshape(-1) for s, x in pairs])
