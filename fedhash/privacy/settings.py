"""Privacy of patients in a training run: a section of the round file.

>>> SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.05)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedhash.configuration import Settings

__all__ = [
    "DistributedPrivacySettings",
    "NoPrivacySettings",
    "PrivacySettings",
    "PrivateMode",
    "SitePrivacySettings",
]

PrivateMode: TypeAlias = Literal["site", "distributed"]
# the bounds of `fedhash.privacy.events`, far outside of what anyone uses
_ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6)]
_NoiseMultiplier = Annotated[float, Field(ge=1e-6, le=1e6)]


class NoPrivacySettings(Settings):
    """No bound on what a patient's data leaks.

    Attributes:
        mode: none.
        tells_loss: Whether sites report their training loss.
        shares_noise: Whether the sites add their noise together, inside the secure sum.
    """

    tells_loss: ClassVar[bool] = True
    shares_noise: ClassVar[bool] = False
    mode: Literal["none"] = "none"


class SitePrivacySettings(Settings):
    """Each site adds its own noise to every step (`fedhash.privacy.dp_sgd`).

    Attributes:
        mode: site.
        tells_loss: Whether sites report their training loss; it has no noise.
        shares_noise: Whether the sites add their noise together.
        clip_norm: C, the largest L2 norm of one patient's gradient over all towers together.
        noise_multiplier: sigma; each step's sum gets noise of standard deviation sigma C.
        sampling_rate: q, the probability of each patient to take part in a step.
    """

    tells_loss: ClassVar[bool] = False
    shares_noise: ClassVar[bool] = False
    mode: Literal["site"]
    clip_norm: _ClipNorm
    noise_multiplier: _NoiseMultiplier
    sampling_rate: float = Field(ge=1e-9, le=1)


class DistributedPrivacySettings(Settings):
    """The sites add their noise together, inside the secure sum (`fedhash.privacy.distributed`).

    One step over all patients a round. The guarantee rests on the other sites' noise, so on how
    many of them tell theirs to whoever sees the sum (docs/adr/0015).

    Attributes:
        mode: distributed.
        tells_loss: Whether sites report their training loss; it has no noise.
        shares_noise: Whether the sites add their noise together.
        clip_norm: C, the largest L2 norm of one patient's gradient over all towers together.
        noise_multiplier: z, the noise over the sensitivity that is left in the worst sum that can
            be opened, without the shares of colluding and of missing sites. All shares together
            are more.
        expected_patients: N, the consortium's patients as everyone may know them. The sum of the
            gradients is divided by it, so a missing site shortens the step.
    """

    tells_loss: ClassVar[bool] = False
    shares_noise: ClassVar[bool] = True
    mode: Literal["distributed"]
    clip_norm: _ClipNorm
    noise_multiplier: _NoiseMultiplier
    expected_patients: int = Field(ge=1, le=10**9)


PrivacySettings: TypeAlias = Annotated[
    NoPrivacySettings | SitePrivacySettings | DistributedPrivacySettings,
    Field(discriminator="mode"),
]
