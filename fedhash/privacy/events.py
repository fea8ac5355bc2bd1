"""What happened to the patients' data, in the words of the mechanisms: events, never epsilons.

1. **An event is never redefined.** A kind and its fields mean for ever what they mean here, for
   ledgers of all ages are read by the newest code. A mechanism that differs in anything that counts
   is a new kind; a new field has a default under which old entries keep their meaning.
   (So does google/differential-privacy, python/dp_accounting/dp_event.py.)
2. Two data sets are neighbours if **one patient, with all studies and modalities, is added or
   removed**. Every noise multiplier is the noise's standard deviation over the largest L2 change
   that such a patient makes to what is released.
3. An event is complete: an accountant needs nothing else to bound what it leaked.
4. Sampling rates, numbers of steps and noise are fixed before the data is looked at.

    >>> event = PoissonGaussianSteps(
    ...     data_fingerprint="0" * 64, code_version="0.1.0", run_id="run-7", round_number=1,
    ...     purpose="model update", noise_multiplier=1.1, sampling_rate=0.01, steps=24)
    >>> parse_event(canonical_json(event)) == event
    True
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, field_validator

from fedhash.configuration import Settings

__all__ = [
    "LARGEST_NOISE_MULTIPLIER",
    "LARGEST_STEPS",
    "ROUNDING_WIDTH_INTEGER_STEPS",
    "SMALLEST_NOISE_MULTIPLIER",
    "SMALLEST_SAMPLING_RATE",
    "SMALLEST_SHARE_INTEGER_STEPS",
    "DistributedGaussianStep",
    "FullBatchGaussianSteps",
    "GaussianRelease",
    "PoissonGaussianSteps",
    "PrivacyEvent",
    "canonical_json",
    "parse_event",
]

LARGEST_STEPS = 1_000_000  # up to here the accountant's Fourier transforms were held against others

# Bounds far outside what anyone uses; they keep the arithmetic finite.
SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER = 1e-6, 1e6
SMALLEST_SAMPLING_RATE = 1e-9

# Of shares of noise; `fedhash.privacy.accountant` has the reason for both, in its rule 4.
SMALLEST_SHARE_INTEGER_STEPS = 8.0
ROUNDING_WIDTH_INTEGER_STEPS = 2.0  # s

_NoiseMultiplier = Annotated[
    float, Field(ge=SMALLEST_NOISE_MULTIPLIER, le=LARGEST_NOISE_MULTIPLIER)
]
_SamplingRate = Annotated[float, Field(ge=SMALLEST_SAMPLING_RATE, le=1)]
_Steps = Annotated[int, Field(ge=1, le=LARGEST_STEPS)]
_Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


class _Event(Settings):
    """What all events say.

    Attributes:
        unit: Whose data is protected as a whole.
        data_fingerprint: SHA-256 of the data set, 64 hex digits. It informs and divides nothing:
            all events of a site count together, for a patient may be in several of its data sets.
        code_version: Version of the program that ran the mechanism.
        run_id: The training run, or the release.
        round_number: The round of the run; 0 outside of rounds.
        purpose: What was released, in a few words.
    """

    unit: Literal["patient"] = "patient"
    data_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    code_version: _Text
    run_id: _Text
    round_number: int = Field(ge=0)
    purpose: _Text


class PoissonGaussianSteps(_Event):
    """Steps that each take every patient independently with one probability, and add noise.

    Each step sums the clipped rows of the patients taken and adds Gaussian noise. That the sample
    is drawn anew and kept secret is part of the meaning: batches of a shuffled epoch are no such
    steps. The sum is divided by a constant, never by the number of patients taken.

    Attributes:
        noise_multiplier: sigma over the clipping norm.
        sampling_rate: q, of one patient in one step.
        steps: Steps, each of them released.
    """

    kind: Literal["poisson_gaussian_steps"] = "poisson_gaussian_steps"
    noise_multiplier: _NoiseMultiplier
    sampling_rate: _SamplingRate
    steps: _Steps


class FullBatchGaussianSteps(_Event):
    """Steps that each take every patient (q = 1), sum the clipped rows and add Gaussian noise.

    Attributes:
        noise_multiplier: sigma over the clipping norm.
        steps: Steps, each of them released.
    """

    kind: Literal["full_batch_gaussian_steps"] = "full_batch_gaussian_steps"
    noise_multiplier: _NoiseMultiplier
    steps: _Steps


class GaussianRelease(_Event):
    """One vector over all patients with Gaussian noise, such as a round's margin statistics.

    Attributes:
        noise_multiplier: sigma over the vector's L2 sensitivity.
    """

    kind: Literal["gaussian_release"] = "gaussian_release"
    noise_multiplier: _NoiseMultiplier


class DistributedGaussianStep(_Event):
    """One full-batch step whose noise the sites add together inside the secure sum.

    Each site adds a discrete Gaussian share to integers; what is released is the sum over the
    sites. The event holds under a **trust assumption**: the secure sum shows nothing but the sum,
    and no more than `colluding_sites` of its sites tell their share of the noise. The multipliers
    are relative to the sensitivity in integers, after rounding to them.

    Attributes:
        sum_noise_multiplier: sigma of all shares together.
        colluding_sites: How many sites' shares may be known to whoever sees the sum.
        guaranteed_noise_multiplier: sigma of the shares that are left without those of the
            colluding sites and without those of the most sites that may drop out.
        share_sigma_integer_steps: sigma of the smallest single share, in steps of the integers.
            From 8 on a sum of shares is as good as Gaussian (see `fedhash.privacy.accountant`).
    """

    kind: Literal["distributed_gaussian_step"] = "distributed_gaussian_step"
    sum_noise_multiplier: _NoiseMultiplier
    colluding_sites: int = Field(ge=0)
    guaranteed_noise_multiplier: _NoiseMultiplier
    share_sigma_integer_steps: float = Field(ge=SMALLEST_SHARE_INTEGER_STEPS)

    @field_validator("guaranteed_noise_multiplier")
    @classmethod
    def _guarantees_no_more_than_the_sum(cls, guaranteed: float, info: Any) -> float:
        # `info` is a ValidationInfo, a protocol that beartype cannot check; it lacks wrong values
        whole = info.data.get("sum_noise_multiplier", guaranteed)
        if guaranteed > whole:
            raise ValueError(
                f"{guaranteed} is guaranteed, the whole sum has {whole}; "
                "leave out the shares of colluding and missing sites"
            )
        return guaranteed


PrivacyEvent: TypeAlias = Annotated[
    PoissonGaussianSteps | FullBatchGaussianSteps | GaussianRelease | DistributedGaussianStep,
    Field(discriminator="kind"),
]
_ANY_EVENT: TypeAdapter[PrivacyEvent] = TypeAdapter(PrivacyEvent)


def canonical_json(event: PrivacyEvent) -> str:
    """The one JSON text of an event: keys sorted, no spaces, defaults written out."""
    return json.dumps(event.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def parse_event(text: str) -> PrivacyEvent:
    """Read an event back.

    Raises:
        pydantic.ValidationError: The text is no event of this version.
    """
    return _ANY_EVENT.validate_json(text)
