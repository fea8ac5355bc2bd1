"""Margin statistics: what a site tells of how far its patients clear their margins.

Shape suffixes: N patients, K findings.

With c = A v / sqrt(b) as in `fedhash.learning.losses.anchor_margin`, the relative slack of a
patient i for a positive finding p, a mean over the modalities of one study, is

    r_ip = mean_m clip((c_p - max_n c_n) / max(.1, theta_p - max_n theta_n), -1, 1)

where n runs over the findings that are negative. A patient's row in R^(3K) is, at each of the
patient's positive findings P_i, |P_i|^(-1/2) [1, r_ip, r_ip^2], and zero elsewhere. A study without
a negative finding, or without a modality that the model reads, has no slack and a row of zeros.

1. **Sensitivity sqrt(3).** Since |r| <= 1, |z_i|^2 = 1/|P_i| sum_p (1 + r_ip^2 + r_ip^4) <= 3. A
   row depends on its patient, the released model and published anchors alone, so adding or removing
   a patient, with all studies and modalities, changes the sum of the rows by exactly that row: by
   at most sqrt(3) in L2. Averaging the modalities and drawing one study keep |r| <= 1.
2. Each patient is encoded alone: in a batch the rounding of a row goes by the number of rows, so a
   patient more would move the others' by some 1e-7. Rows are cut towards zero to multiples of
   2^-32. Up to a million of them are then summed without any rounding, in whatever order, so rule 1
   holds for the floats that are added. Outputs of the model that are not finite count as zero.
3. Under privacy N(0, (sigma sqrt(3))^2) is added to each of the 3K sums, always by the site itself.
4. What follows reads the noised sums alone: a fourth sum n_k r_k^2 = (s_k^2 - sd^2) / max(n_k, 1)
   for the variance between sites, where s_k is the sum of slacks and sd^2 is what the noise adds to
   s_k^2 on average; and if one of a finding's four sums is larger than `largest`, all four are
   scaled down together, so that a large site counts for less and tells the same means.

    >>> block = margin_statistics(model, studies, anchors, kappa=0.1, noise=noise,
    ...                           noise_multiplier=4.0, largest=10_000.0)
    >>> MarginSums.of_block(block).patients       # n_k: noised, weighted by |P_i|^(-1/2)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from fedhash.learning.gradients import rows_by_patient
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel
from fedhash.models.prepared import PreparedStudies
from fedhash.models.relaxed import normalised
from fedhash.privacy.noise import NoiseSource, one_of_each

__all__ = ["SENSITIVITY", "MarginSums", "margin_statistics", "patient_rows", "sums_block"]

SENSITIVITY = sqrt(3)
_SMALLEST_DIFFERENCE = 0.1  # of theta: findings as near as this to a negative one ask for no margin
_GRID = 2.0**-32


@dataclass(frozen=True, eq=False)
class MarginSums:
    """The four sums of each finding, of one site or of several.

    Attributes:
        patients: n, patients with the finding, each weighted by |P_i|^(-1/2).
        slack: Sum of the slacks, weighted likewise.
        squared_slack: Sum of their squares.
        site_means: Sum over the sites of n times the square of the site's mean slack.
    """

    patients: Float64[np.ndarray, " K"]
    slack: Float64[np.ndarray, " K"]
    squared_slack: Float64[np.ndarray, " K"]
    site_means: Float64[np.ndarray, " K"]

    @classmethod
    def of_block(cls, block: np.ndarray) -> MarginSums:
        """The sums of a block of 4K numbers, in the order of the attributes."""
        return cls(*np.asarray(block, np.float64).reshape(4, -1))


def margin_statistics(
    model: HashModel,
    studies: PreparedStudies,
    anchors: Anchors,
    kappa: float,
    *,
    noise: NoiseSource,
    noise_multiplier: float | None,
    largest: float,
) -> Float32[np.ndarray, " four_K"]:
    """A site's block of 4K numbers.

    Args:
        model: Holds the model of the round's request.
        studies: The site's own; of each patient one is drawn evenly.
        anchors: The agreement's.
        kappa: Of the loss.
        noise: Draws studies and noise.
        noise_multiplier: sigma over the sensitivity; None adds no noise.
        largest: Most that a number may be in size.
    """
    patients = rows_by_patient(studies)
    places = one_of_each(noise, np.array([len(rows) for rows in patients], np.int64))
    drawn = [rows[place] for rows, place in zip(patients, places, strict=True)]
    sums = np.zeros(3 * len(anchors.findings))
    for row in drawn:
        sums += patient_rows(model, studies.select([row]), anchors, kappa)[0]
    noise_sd = 0.0 if noise_multiplier is None else noise_multiplier * SENSITIVITY
    if noise_sd:
        sums += noise_sd * noise.gaussians(len(sums))
    return sums_block(sums, noise_sd, largest)


@torch.no_grad()
def patient_rows(
    model: HashModel, studies: PreparedStudies, anchors: Anchors, kappa: float
) -> Float64[np.ndarray, "N three_K"]:
    """The rows z_i of N patients, one study each."""
    model.eval()
    labels = studies.labels.numpy()
    theta = anchors.theta(labels).astype(np.float64)
    wanted = np.maximum(_SMALLEST_DIFFERENCE, _above_negatives(theta, labels == 0))
    slack, modalities = np.zeros(labels.shape), np.zeros((len(labels), 1))
    for name, inputs in studies.inputs.items():
        relaxed = normalised(model.encode(name, inputs), kappa).nan_to_num(0).numpy()
        cosines = relaxed.astype(np.float64) @ anchors.matrix.T / sqrt(anchors.matrix.shape[1])
        reached = _above_negatives(cosines, labels == 0) / wanted
        present = studies.present[name].numpy()[:, None]
        slack += np.where(present, np.clip(reached, -1, 1), 0)
        modalities += present
    slack /= np.maximum(modalities, 1)
    has_slack = (modalities > 0) & (labels == 0).any(axis=1, keepdims=True)
    counts = (labels == 1) & has_slack
    weights = counts / np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), 1))
    rows = np.concatenate([weights, weights * slack, weights * slack**2], axis=1)
    return np.asarray(np.trunc(rows / _GRID) * _GRID)


def _above_negatives(
    values: Float64[np.ndarray, "N K"], negative: Bool[np.ndarray, "N K"]
) -> Float64[np.ndarray, "N K"]:
    """Each value less the largest of a negative finding; of no use where there is none."""
    highest = np.where(negative, values, -np.inf).max(axis=1, keepdims=True)
    return values - np.where(negative.any(axis=1, keepdims=True), highest, 0)


def sums_block(
    sums: Float64[np.ndarray, " three_K"], noise_sd: float, largest: float
) -> Float32[np.ndarray, " four_K"]:
    """The block of noised sums: rule 4."""
    patients, slack, squared = sums.reshape(3, -1)
    site_means = (slack**2 - noise_sd**2) / np.maximum(patients, 1)
    block = np.stack([patients, slack, squared, site_means])
    block *= largest / np.maximum(np.abs(block).max(axis=0), largest)
    return block.reshape(-1).astype(np.float32)
