"""Privacy of patients in a training run: a section of the round file.

>>> SitePrivacySettings(mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.05)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["NoPrivacySettings", "PrivacySettings", "SitePrivacySettings"]


class NoPrivacySettings(Settings):
    """No bound on what a patient's data leaks.

    Attributes:
        mode: none.
        tells_loss: Whether sites report their training loss.
    """

    tells_loss: ClassVar[bool] = True
    mode: Literal["none"] = "none"


class SitePrivacySettings(Settings):
    """Each site adds its own noise to every step (`fedhash.privacy.dp_sgd`).

    Attributes:
        mode: site.
        tells_loss: Whether sites report their training loss; it has no noise.
        clip_norm: C, the largest L2 norm of one patient's gradient over all towers together.
        noise_multiplier: sigma; each step's sum gets noise of standard deviation sigma C.
        sampling_rate: q, the probability of each patient to take part in a step.
    """

    tells_loss: ClassVar[bool] = False
    mode: Literal["site"]
    clip_norm: float = Field(ge=1e-6, le=1e6)
    # the bounds of `fedhash.privacy.events`, far outside of what anyone uses
    noise_multiplier: float = Field(ge=1e-6, le=1e6)
    sampling_rate: float = Field(ge=1e-9, le=1)


PrivacySettings: TypeAlias = Annotated[
    NoPrivacySettings | SitePrivacySettings, Field(discriminator="mode")
]
