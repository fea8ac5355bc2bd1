"""Making frozen features from public studies: mean, projection and a first head.

Everything here is fitted to studies that anyone may know. Nothing of a site's own patients belongs
in it, for no noise protects what it learns.

Shape suffixes: N public studies, F features of the base tower, d dimensions, e = d + 1, K findings.

1. Mean and principal components come from the standardised features of the public studies. A
   component of variance s^2 is divided by sqrt(s^2 + m), m the mean variance of the kept ones:
   nearly whitened, so that steps of equal size learn along all of them, and the faint ones, which
   are mostly noise, stay small. Then all is scaled to a mean square norm of 1, in whose units a
   clipping norm can be chosen without looking at anyone's gradient.
2. The head minimises the logistic loss over the public studies with a ridge penalty. Training
   under privacy starts from it, so that its noise is spent on what the public data did not know.

    >>> frozen = freeze("image", settings, tower, "prepared", studies, anchors, dimensions=100)
    >>> Path("frozen-image.safetensors").write_bytes(frozen.to_bytes())
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int8

from fedhash.errors import ModelError
from fedhash.learning.loss import Margins
from fedhash.learning.losses.logistic import LogisticLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FeatureLayer, FrozenFeatures, base_features, projected
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import TowerSettings
from fedhash.models.tower import Tower

__all__ = ["freeze"]

_RIDGE = 1 / 3  # of the summed loss, in units of the features; chosen on kermany_cxr's val split
_LBFGS_ITERATIONS = 200
_LEAST_SHARE = 1e-10  # of the features' squares: what varies by less is rounding in float32


def freeze(
    modality: str,
    tower_settings: TowerSettings,
    tower: Tower,
    layer: FeatureLayer,
    public: PreparedStudies,
    anchors: Anchors,
    *,
    dimensions: int,
) -> FrozenFeatures:
    """Fit projection and head to public studies.

    Args:
        modality: That the tower reads.
        tower_settings: Of the base tower.
        tower: The base tower, trained on public data or by others, or new where its fixed front
            end is used.
        layer: Where its features are taken.
        public: Prepared by the base tower; studies without the modality are left out.
        anchors: The agreement's.
        dimensions: d.

    Raises:
        ModelError: The public studies are too few, or too much alike, for so many dimensions, or
            the base tower's features are not finite.
    """
    rows = public.present[modality]
    labels = public.labels[rows]
    with torch.no_grad():
        base = base_features(tower.eval(), public.inputs[modality][rows], layer)
    most = min(len(base) - 1, base.shape[1])
    if dimensions > most:
        raise ModelError(
            f"{len(base)} public studies with {base.shape[1]} features of {modality!r} give at most"
            f" {max(0, most)} dimensions, {dimensions} were asked for; lower the tower's option "
            "dimensions, or use more public studies"
        )
    mean = base.mean(dim=0)
    projection = _projection(base, mean, dimensions)
    head = _head(projected(base, mean, projection), labels, anchors)
    return FrozenFeatures.make(
        modality=modality,
        tower_settings=tower_settings,
        tower=tower,
        layer=layer,
        mean=mean,
        projection=projection,
        head=head,
    )


def _projection(
    base_NF: Float32[torch.Tensor, "N F"], mean_F: Float32[torch.Tensor, " F"], dimensions: int
) -> Float32[torch.Tensor, "F d"]:
    centred_NF = base_NF - mean_F
    _, singular, directions = torch.linalg.svd(centred_NF, full_matrices=False)
    varied = int((singular.square() > _LEAST_SHARE * base_NF.square().sum()).sum())
    if dimensions > varied:
        raise ModelError(
            f"the features of {len(base_NF)} public studies vary in {varied} dimensions, "
            f"{dimensions} were asked for and would be rounding errors; lower the tower's option "
            "dimensions, use public studies that differ, or parameters that tell them apart"
        )
    variance = singular[:dimensions].square() / len(centred_NF)
    directions_Fd = directions[:dimensions].T
    # the sign of a singular vector is the library's choice, and would change with it
    largest = directions_Fd.abs().argmax(dim=0)
    directions_Fd = directions_Fd * torch.sign(directions_Fd[largest, torch.arange(dimensions)])
    weighted_Fd = directions_Fd / torch.sqrt(variance + variance.mean())
    norms = (centred_NF @ weighted_Fd).square().sum(dim=1)
    scaled: torch.Tensor = weighted_Fd / torch.sqrt(norms.mean())
    return scaled


def _head(
    features: Float32[torch.Tensor, "N e"], labels: Int8[torch.Tensor, "N K"], anchors: Anchors
) -> Float32[torch.Tensor, "K e"]:
    loss = LogisticLoss(anchors, LossSettings(name="logistic"))
    margins = Margins.constant(len(anchors.findings), 0.0)
    weights = torch.zeros(len(anchors.findings), features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=_LBFGS_ITERATIONS, line_search_fn="strong_wolfe"
    )
    present = {"": torch.ones(len(features), dtype=torch.bool)}
    matrix = torch.from_numpy(anchors.matrix.astype(np.float32))

    def objective() -> torch.Tensor:
        optimiser.zero_grad()
        raw = {"": features @ weights.T @ matrix}
        total = loss(raw, present, labels, margins).sum() + _RIDGE / 2 * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(objective)  # type: ignore[no-untyped-call]
    return weights.detach()
