"""What a researcher writes: one YAML file that describes a whole comparison.

A study file names an agreement and a round file and says which data, which partition into sites,
which methods and which seeds. `--set` reaches into all three: `--set seeds=[0]`,
`--set round.learning.learning_rate=1e-3`, `--set agreement.code_bits=32`.

    >>> study = read_study(Path("configs/study/demo.yaml"), ["seeds=[0]"])
    >>> study.round.rounds
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedhash.agreement import Agreement
from fedhash.configuration import (
    KeyPath,
    Settings,
    did_you_mean,
    gathered,
    problem_at,
    read_settings,
)
from fedhash.data.phantom import PhantomSettings
from fedhash.data.recipes import RECIPES
from fedhash.errors import ConfigurationError, ModelError, Problem
from fedhash.models.anchors import Anchors
from fedhash.models.frozen_features import FeatureLayer
from fedhash.models.hash_model import HashModel, build_model, frozen_modalities
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.rounds.settings import RoundSettings, check_roster, check_round
from fedhash_sim.engines.vectorised import unfit
from fedhash_sim.evaluation_settings import Direction, EvaluationSettings
from fedhash_sim.heterogeneity.feature_shift import shift_faults
from fedhash_sim.heterogeneity.missing_modalities import missing_faults
from fedhash_sim.heterogeneity.settings import FeatureShift, MissingModalities
from fedhash_sim.partition_settings import Partition

__all__ = [
    "Direction",
    "EvaluationSettings",
    "ManifestSource",
    "Method",
    "Partition",
    "PhantomSource",
    "PublicPatients",
    "RecipeSource",
    "ResolvedStudy",
    "SplitFractions",
    "StudySettings",
    "read_study",
]

Method = Literal["local", "federated", "central", "public", "start"]


class PhantomSource(PhantomSettings):
    """Procedural studies, drawn anew for each seed."""

    kind: Literal["phantom"]


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class RecipeSource(Settings):
    """A public data set through its recipe."""

    kind: Literal["recipe"]
    recipe: str
    folder: Path | None = Field(
        default=None, description="the set's folder; default: $FEDHASH_DATA/<recipe>"
    )

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe not in RECIPES:
            raise ValueError(
                f"there is no recipe {recipe!r}; {did_you_mean(recipe, sorted(RECIPES))}"
            )
        return recipe


class ManifestSource(Settings):
    """A manifest of the researcher's own."""

    kind: Literal["manifest"]
    manifest: Path


class SplitFractions(Settings):
    """Shares of the patients; what is left over trains."""

    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1, validate_default=True)

    @field_validator("test")
    @classmethod
    def _something_is_left_to_train(cls, test: float, info: Any) -> float:
        # `info` is a ValidationInfo, a protocol that beartype cannot check
        if info.data.get("val", 0) + test >= 1:
            raise ValueError("val + test must leave patients to train on; lower one of them")
        return test


class PublicPatients(Settings):
    """Training patients whose data anyone may know: what is fitted to them leaks nothing.

    They are drawn by the seed before the others are dealt to sites. What the towers named
    frozen_... read is made of them, and their heads' first weights. The method `start` is that
    model before any round; the method `public` trains on the public patients alone.

    Attributes:
        share: Of the training patients.
        takes_part: Whether they are a site of the federation as well, named `public`.
        round: A round file whose towers the frozen ones are made of; null without frozen towers.
        layer: prepared: the fixed front end of those towers; last: what their last layer reads,
            after that round file has trained them on the public patients.
    """

    share: float = Field(gt=0, lt=1)
    takes_part: bool = True
    round: Path | None = None
    layer: FeatureLayer = "prepared"


class StudySettings(Settings):
    """One comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")  # also a folder's name
    agreement: Path
    round: Path
    data: Annotated[PhantomSource | RecipeSource | ManifestSource, Field(discriminator="kind")]
    partition: Partition = Partition()
    missing_modalities: MissingModalities | None = None
    feature_shift: FeatureShift | None = None
    public: PublicPatients | None = None
    splits: Literal["published"] | SplitFractions = SplitFractions()
    methods: tuple[Method, ...] = ("local", "federated", "central")
    seeds: tuple[Seed, ...] = (0,)
    engine: Literal["inprocess", "vectorised", "flower"] = "inprocess"
    evaluation: EvaluationSettings = EvaluationSettings()
    method_settings: dict[Method, dict[str, bool | int | float | str | None]] = Field(
        default={},
        description="round settings that one method has otherwise, such as "
        "{central: {learning.local_steps: 240}}",
    )

    @field_validator("seeds", "methods")
    @classmethod
    def _nothing_twice(cls, values: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if not values or len(set(values)) != len(values):
            raise ValueError("must hold at least one entry and none twice")
        return values


class _NamedFiles(Settings, extra="ignore"):
    """The two files that a study names, which are checked whatever else of it is wrong."""

    agreement: Path
    round: Path


@dataclass(frozen=True)
class ResolvedStudy:
    """A study with the two files that it names, all overrides applied.

    Attributes:
        settings: The study file.
        agreement: The agreement file.
        round: The round file.
        round_of: The round file as each method runs it (`method_settings`).
        public_round: The round file of the public patients.
        file: Where the settings were read, with `overrides`.
        overrides: Of the study file's own keys.
    """

    settings: StudySettings
    agreement: Agreement
    round: RoundSettings
    round_of: Mapping[str, RoundSettings]
    public_round: RoundSettings | None = None
    file: Path | None = None
    overrides: tuple[str, ...] = ()

    def build_model(self, seed: int) -> HashModel:
        """The study's model before its first round, without what frozen towers read."""
        anchors = Anchors.build(self.agreement)
        return build_model(self.round.model, self.agreement.code_bits, seed, anchors=anchors)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions to evaluate."""
        modalities = tuple(self.round.model.towers)
        return self.settings.evaluation.directions or tuple(
            Direction(query=query, target=target) for query in modalities for target in modalities
        )


def read_study(path: Path, overrides: Sequence[str] = ()) -> ResolvedStudy:
    """Read a study file and the agreement and round files that it names.

    Args:
        path: The study file.
        overrides: `key=value`; keys that start with `agreement.` or `round.` reach into those
            files.

    Raises:
        ConfigurationError: One of the three files, or an override, is wrong; holds what is wrong
            with all of them.
    """
    inner: dict[str, list[str]] = {"agreement": [], "round": []}
    own = []
    for override in overrides:
        head, _, rest = override.partition(".")
        if head in inner and "=" not in head:
            inner[head].append(rest)
        else:
            own.append(override)
    problems: list[Problem] = []
    with gathered(problems):
        settings = read_settings(path, StudySettings, own)
    names = [each for each in own if each.partition("=")[0] in inner]
    try:
        named = read_settings(path, _NamedFiles, names)
    except ConfigurationError as error:  # the same as the study's, or fewer
        raise ConfigurationError(problems or list(error.problems)) from error
    with gathered(problems):
        agreement = read_settings(named.agreement, Agreement, inner["agreement"])
    with gathered(problems):
        base = read_settings(named.round, RoundSettings, inner["round"])
    if problems:
        raise ConfigurationError(problems)
    refused = check_round(base, agreement)
    problems = [problem_at(settings.round, *each, inner["round"]) for each in refused]
    round_of: dict[str, RoundSettings] = {}
    for method in dict.fromkeys((*settings.methods, *settings.method_settings)):
        changes = settings.method_settings.get(method, {})
        wrong: list[Problem] = []
        with gathered(wrong):
            of_method = read_settings(
                settings.round,
                RoundSettings,
                [*inner["round"], *(f"{k}={json.dumps(v)}" for k, v in changes.items())],
            )
        messages = [each.message for each in wrong]
        if not wrong and method in settings.methods:  # of others the keys and types alone
            round_of[method] = of_method
            if settings.engine == "vectorised" and (fault := _unfit(method, of_method)):
                problems.append(problem_at(path, ("engine",), f"{method}: {fault}", own))
            others = check_round(of_method, agreement)
            messages += [message for key, message in others if (key, message) not in refused]
            messages += _faults_of(method, of_method, base)
        for message in messages:
            # the message names the key that is wrong, if it is one of the changes
            key = [each for each in changes if each in message][:1]
            problems.append(
                problem_at(
                    path,
                    ("method_settings", method, *key),
                    f"method_settings.{method}: {message}",
                    own,
                )
            )
    public_round, public_problems = _public_round(path, settings, base, agreement, own)
    problems += public_problems
    if (no_anchors := _anchors_fault(agreement)) is not None:
        problems.append(problem_at(settings.agreement, *no_anchors, inner["agreement"]))
    faults = [
        *_partition_faults(settings.partition, agreement, round_of),
        *_faults_beside_the_model(settings, tuple(base.model.towers)),
    ]
    problems += [problem_at(path, *each, own) for each in faults]
    if problems:
        raise ConfigurationError(problems)
    return ResolvedStudy(settings, agreement, base, round_of, public_round, path, tuple(own))


def _public_round(
    path: Path,
    settings: StudySettings,
    base: RoundSettings,
    agreement: Agreement,
    overrides: Sequence[str],
) -> tuple[RoundSettings | None, list[Problem]]:
    """The round file of the public patients, and what is wrong with it or missing."""
    frozen = frozen_modalities(base.model)
    needs = [f"the frozen tower of {modality!r}" for modality in frozen]
    needs += [f"the method {each}" for each in ("public", "start") if each in settings.methods]
    if settings.public is None:
        message = f"{' and '.join(needs)} need public patients; add public: {{share: 0.2, ...}}"
        return None, [problem_at(path, ("methods",), message, overrides)] if needs else []
    if settings.public.round is None:
        message = (
            f"{', '.join(needs[: len(frozen)])} is made of a tower that public.round names; "
            "add public.round"
        )
        return None, [problem_at(path, ("public",), message, overrides)] if frozen else []
    problems: list[Problem] = []
    with gathered(problems):
        public_round = read_settings(settings.public.round, RoundSettings)
        towers = public_round.model.towers
        for modality in frozen:
            if modality not in towers or modality in frozen_modalities(public_round.model):
                message = (
                    f"public.round has no tower for {modality!r} of which a frozen one could be "
                    "made; add one under its model.towers"
                )
                problems.append(problem_at(path, ("public", "round"), message, overrides))
        if not isinstance(public_round.privacy, NoPrivacySettings):
            message = (
                f"public.round has privacy.mode {public_round.privacy.mode}, and there is nobody to"
                " protect: what is made of public patients is known to all; remove privacy there"
            )
            problems.append(problem_at(path, ("public", "round"), message, overrides))
        if public_round.learning.normalisation_layers == "own":
            message = (
                "public.round has learning.normalisation_layers own, and one party alone trains "
                "there; set it to averaged there"
            )
            problems.append(problem_at(path, ("public", "round"), message, overrides))
        if own := [each for each in frozen_modalities(public_round.model) if each not in frozen]:
            message = (
                f"public.round has a frozen tower of its own, for {own[0]!r}, which nothing could "
                "be made of; name another tower there, or leave the modality out"
            )
            problems.append(problem_at(path, ("public", "round"), message, overrides))
        for key, message in check_round(public_round, agreement):
            problems.append(problem_at(settings.public.round, key, message, []))
        return public_round, problems
    return None, problems


def _unfit(method: str, settings: RoundSettings) -> str | None:
    """Why the vectorised engine cannot run a method; only `federated` sums as the file says."""
    plain = {} if method == "federated" else {"aggregation": "plain"}
    return unfit(settings.model_copy(update=plain))


def _anchors_fault(agreement: Agreement) -> tuple[KeyPath, str] | None:
    """Why there are no anchors of the agreement's findings in its bits: the key, and what to do."""
    try:
        Anchors.build(agreement)
    except ModelError as error:
        keys = ("anchors_version",) if agreement.anchors_version != 1 else ("code_bits", "findings")
        written = [each for each in keys if each in agreement.model_fields_set]
        return (written[0],), str(error)
    return None


def _partition_faults(
    partition: Partition, agreement: Agreement, round_of: Mapping[str, RoundSettings]
) -> list[tuple[KeyPath, str]]:
    """What is wrong before any data is read: the key, and what to do."""
    faults: list[tuple[KeyPath, str]] = []
    sites = partition.sites  # of a natural partition the data tells, later
    if sites is not None and "federated" in round_of:
        fault = check_roster(round_of["federated"], agreement, sites)
        faults += [(("partition", "sites"), f"partition.sites: {fault}")] if fault else []
    seen, findings = partition.findings_per_site, len(agreement.findings)
    if seen is not None and seen > findings:
        message = f"partition.findings_per_site: {seen}, of {findings} of the agreement; lower it"
        faults.append((("partition", "findings_per_site"), message))
    return faults


def _faults_beside_the_model(
    settings: StudySettings, modalities: Sequence[str]
) -> list[tuple[KeyPath, str]]:
    """What the study file asks for and the round's model has not."""
    no_tower = f"the round's model has no tower for it, only for {', '.join(modalities)}"
    faults: list[tuple[KeyPath, str]] = [
        (
            ("evaluation", "directions", number, role),
            f"evaluation.directions asks for {name!r}; {no_tower}",
        )
        for number, direction in enumerate(settings.evaluation.directions)
        for role, name in (("query", direction.query), ("target", direction.target))
        if name not in modalities
    ]
    if settings.methods == ("start",):
        message = "methods has start alone, which trains nothing; add the method to compare it with"
        faults.append((("methods",), message))
    if settings.missing_modalities is not None:
        sites = settings.partition.site_names
        faults += missing_faults(settings.missing_modalities, modalities, sites)
    if settings.feature_shift is not None:
        faults += shift_faults(settings.feature_shift, modalities)
    return faults


def _faults_of(method: str, settings: RoundSettings, base: RoundSettings) -> list[str]:
    """What no study can do with a method's round file, although the sites would train it."""
    faults = []
    if settings.model != base.model:
        faults.append("changes the model; all methods of a study share it, so write one of its own")
    if method in {"local", "central"} and settings.privacy.shares_noise:
        faults.append(
            "privacy.mode is distributed, which takes several sites; this method trains one party "
            "at a time: leave privacy out of the round file and give each method its own here, or "
            "leave this one out of methods"
        )
    return faults
