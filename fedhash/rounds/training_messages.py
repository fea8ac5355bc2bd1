"""The typed messages of a training round, validated field by field.

What travels, and in which message:

- coordinator -> site, `TrainRequest`: the run's plan (the whole round file, so a site needs no
  memory between rounds), the model vector, the margins of this round, and with control variates
  the coordinator's variate.
- site -> coordinator, `TrainReply`: one vector and one weight, nothing else. The vector is
  ``[update | control delta | statistics | mean loss]`` (`reply_blocks`), and what the coordinator
  needs is linear in it, so secure aggregation can mask the reply without touching the training. In
  a private round the loss, which has no noise, is zero. Margin statistics come in the rounds of the
  margin schedule alone; they are summed as they are (`PLAIN_SUMS`), all else by weight.
- site -> coordinator, `Refusal`: which rule forbade the request.

Every `from_message` checks kind, header fields, array names, dtypes, shapes and finiteness, and
raises MessageError for what a peer got wrong.

Shape suffixes: d model parameters, K findings, D length of the reply's vector.

    >>> request = TrainRequest.from_message(message)
    >>> reply = TrainReply(request.plan.run_id, request.round_number, vector, weight=120.0)
    >>> reply.to_message()
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from jaxtyping import Float32
from pydantic import Field, ValidationError, field_validator

from fedhash.agreement import SiteName
from fedhash.configuration import Settings
from fedhash.errors import MessageError
from fedhash.learning.loss import Margins
from fedhash.rounds.margin_schedule import LARGEST_DRIFT
from fedhash.rounds.messages import Message, canonical_json
from fedhash.rounds.settings import RoundSettings

__all__ = [
    "PLAIN_SUMS",
    "Refusal",
    "RunId",
    "RunPlan",
    "TrainReply",
    "TrainRequest",
    "largest_message_bytes",
    "read_header",
    "reply_blocks",
    "slices",
]

PLAIN_SUMS = frozenset({"statistics"})  # blocks that no weight multiplies

RunId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]  # also a folder's name
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_H = TypeVar("_H", bound=Settings)
_LONGEST_TEXT = 500
_MOST_FAULTS = 20


class RunPlan(Settings):
    """What stays the same over a run and what every site checks before it works.

    Attributes:
        run_id: Names the run; also a folder at the site, hence the narrow pattern.
        agreement_digest: `Agreement.digest()`.
        layout_digest: `Layout.digest()` of the model.
        sites: The run's roster, sorted.
        settings: The round file.
    """

    run_id: RunId
    agreement_digest: _Digest
    layout_digest: _Digest
    sites: tuple[SiteName, ...] = Field(min_length=1, max_length=1000)
    settings: RoundSettings

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hex digits; equal for equal plans only."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    @field_validator("sites")
    @classmethod
    def _sorted_and_unique(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        if list(sites) != sorted(set(sites)):
            raise ValueError("sites must be sorted and each named once")
        return sites


class _RequestHeader(Settings):
    plan: RunPlan
    round_number: int = Field(ge=1)
    cohort: tuple[SiteName, ...]
    counted: dict[SiteName, Annotated[int, Field(ge=1)]]
    drift: float = Field(ge=0, le=LARGEST_DRIFT)


class _ReplyHeader(Settings):
    run_id: RunId
    round_number: int = Field(ge=1)


class _RefusalHeader(Settings):
    reason: str = Field(pattern=r"^[a-z_]{1,64}$")
    detail: str = Field(
        pattern=r"^[^\x00-\x1f\x7f]*$", max_length=_LONGEST_TEXT
    )  # it ends up in logs and terminals


@dataclass(frozen=True, slots=True, eq=False)
class TrainRequest:
    """The coordinator asks sites to train; every site of a round gets the same request.

    Attributes:
        plan: The run.
        round_number: From 1 to `plan.settings.rounds`.
        cohort: The sites that are asked in this round, sorted.
        counted: Site to the last round whose aggregate holds its reply. A site goes on from what
            it carried after that round, drops what was not counted, and starts anew when it is not
            named.
        model: Released model vector.
        margins: mu and w of each finding.
        control: The coordinator's control variate, present exactly when the plan uses them.
        drift: g of the margin schedule, 0 without one; less local work and more pull.
    """

    plan: RunPlan
    round_number: int
    cohort: tuple[str, ...]
    counted: Mapping[str, int]
    model: Float32[np.ndarray, " d"]
    margins: Margins
    control: Float32[np.ndarray, " d"] | None
    drift: float = 0.0

    @property
    def blocks(self) -> dict[str, int]:
        """`reply_blocks` of the replies to this request."""
        return reply_blocks(self.plan, self.round_number, self.model.size, self.margins.mu.size)

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _RequestHeader(
            plan=self.plan,
            round_number=self.round_number,
            cohort=self.cohort,
            counted=dict(self.counted),
            drift=self.drift,
        )
        arrays = {
            "model": self.model,
            "margin": self.margins.mu,
            "margin_weight": self.margins.w,
        }
        if self.control is not None:
            arrays["control"] = self.control
        return Message("train", header.model_dump(mode="json"), arrays)

    @classmethod
    def from_message(cls, message: Message) -> TrainRequest:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed train request.
        """
        header = read_header(message, "train", _RequestHeader)
        names = {"model", "margin", "margin_weight"}
        if header.plan.settings.learning.control_variates:
            names.add("control")
        arrays = _read_vectors(message, names)
        for one, other in (("margin", "margin_weight"), ("model", "control")):
            if other in arrays and arrays[one].shape != arrays[other].shape:
                raise MessageError(
                    f"'{one}' has {arrays[one].size} entries and '{other}' has "
                    f"{arrays[other].size}; they must have the same length"
                )
        return cls(
            header.plan,
            header.round_number,
            header.cohort,
            header.counted,
            arrays["model"],
            Margins(arrays["margin"], arrays["margin_weight"]),
            arrays.get("control"),
            header.drift,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TrainReply:
    """A site's contribution to one round.

    Attributes:
        run_id: The run that was asked for.
        round_number: The round that was asked for.
        vector: The blocks of `reply_blocks`, one behind the other, not yet weighted.
        weight: How much the vector counts, at least 1.
    """

    run_id: str
    round_number: int
    vector: Float32[np.ndarray, " D"]
    weight: float

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _ReplyHeader(run_id=self.run_id, round_number=self.round_number)
        weight = np.array([self.weight], dtype=np.float32)
        arrays = {"vector": self.vector, "weight": weight}
        return Message("train_reply", header.model_dump(mode="json"), arrays)

    @classmethod
    def from_message(cls, message: Message, request: TrainRequest) -> TrainReply:
        """Validate a message as the reply to `request`.

        Raises:
            MessageError: It is not a well-formed reply to this very request.
        """
        header = read_header(message, "train_reply", _ReplyHeader)
        asked = (request.plan.run_id, request.round_number)
        if (header.run_id, header.round_number) != asked:
            raise MessageError(
                f"the reply is for run {header.run_id!r} round {header.round_number}, "
                f"asked was run {asked[0]!r} round {asked[1]}"
            )
        arrays = _read_vectors(message, {"vector", "weight"})
        vector, weight = arrays["vector"], arrays["weight"]
        expected = sum(request.blocks.values())
        if vector.size != expected or weight.size != 1:
            raise MessageError(
                f"the reply has a vector of {vector.size} and a weight of {weight.size} numbers, "
                f"expected {expected} and 1"
            )
        weight_fits = weight[0] == 1 if request.plan.settings.weighting == "uniform" else True
        if weight[0] < 1 or not weight_fits:
            raise MessageError(
                f"the weight is {weight[0]}, which the weighting "
                f"{request.plan.settings.weighting!r} does not allow"
            )
        return cls(header.run_id, header.round_number, vector, float(weight[0]))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site's answer to a request that its rules forbid.

    Attributes:
        reason: A short machine-readable name of the rule, such as ``bad_cohort``.
        detail: What was found and what was expected, never anything about a study.
    """

    reason: str
    detail: str

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _RefusalHeader(reason=self.reason, detail=_one_line(self.detail))
        return Message("refusal", header.model_dump(mode="json"), {})

    @classmethod
    def from_message(cls, message: Message) -> Refusal:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed refusal.
        """
        header = read_header(message, "refusal", _RefusalHeader)
        _read_vectors(message, set())
        return cls(header.reason, header.detail)


def reply_blocks(
    plan: RunPlan, round_number: int, model_size: int, findings: int
) -> dict[str, int]:
    """Names and lengths of the blocks of a reply's vector, in their order."""
    blocks = {"update": model_size}
    if plan.settings.learning.control_variates:
        blocks["control"] = model_size
    if plan.settings.carries_statistics(round_number):
        blocks["statistics"] = 4 * findings
    return blocks | {"loss": 1}


def slices(blocks: Mapping[str, int]) -> dict[str, slice]:
    """The place of each block in the vector."""
    ends = np.cumsum(list(blocks.values())).tolist()
    starts = [0, *ends[:-1]]
    return {name: slice(*each) for name, *each in zip(blocks, starts, ends, strict=True)}


def largest_message_bytes(model_size: int) -> int:
    """No message of a round over a model of `model_size` parameters is longer."""
    # two float32 vectors, or a masked vector of their length; the rest is header, margins and the
    # sealed shares (92 bytes) that a thousand sites with at most 255 neighbours send each other
    return 2 * model_size * 4 + 1000 * 255 * 92 + (4 << 20)


def read_header(message: Message, kind: str, header: type[_H]) -> _H:
    """The typed header of a message that a peer sent.

    Raises:
        MessageError: It is of another kind, or its header does not fit.
    """
    if message.kind != kind:
        raise MessageError(f"expected a message of kind {kind!r}, found {message.kind!r}")
    try:
        return header.model_validate_json(canonical_json(message.header))
    except ValidationError as error:
        count = error.error_count()
        if count > _MOST_FAULTS:  # a peer can make half a million, and each is a thousand bytes
            raise MessageError(f"the header of a {kind!r} message has {count} faults") from None
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise MessageError(_one_line(f"the header of a {kind!r} message: {problems}")) from error


def _read_vectors(message: Message, names: set[str]) -> dict[str, np.ndarray]:
    """Exactly the named arrays, each a finite float32 vector."""
    if set(message.arrays) != names:
        found = _one_line(", ".join(sorted(message.arrays)) or "none")
        raise MessageError(
            f"a {message.kind!r} message must have the arrays {sorted(names)}, found: {found}"
        )
    for name, array in message.arrays.items():
        if array.dtype != np.float32 or array.ndim != 1:
            raise MessageError(
                f"the array {name!r} is {array.dtype} of shape {array.shape}, "
                f"expected a float32 vector"
            )
        if not np.isfinite(array).all():
            raise MessageError(f"the array {name!r} holds values that are not finite")
    return message.arrays


def _one_line(text: str) -> str:
    """Peers' text that is safe to print and to log."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST_TEXT])
