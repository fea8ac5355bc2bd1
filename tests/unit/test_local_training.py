from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.codes import hamming_distances, pack_signs
from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError, ModelError
from fedhash.learning.gradients import NoPrivacy, batches_of, rows_by_patient
from fedhash.learning.local_training import (
    LocalResult,
    carried_names,
    learning_rate_of,
    planned_steps,
    train_locally,
)
from fedhash.learning.loss import Margins
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model, encode_studies
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings, TowerSettings

AGREEMENT = Agreement(
    name="test",
    findings=("no_finding", "effusion", "nodule", "fracture"),
    code_bits=16,
    modalities=("report",),
)
ANCHORS = Anchors.build(AGREEMENT)
LOSS = AnchorMarginLoss(ANCHORS, LossSettings())
MARGINS = Margins.constant(4, 0.3)
PLAIN = LearningSettings(control_variates=False, local_steps=3)


def report_model(seed: int = 1) -> HashModel:
    options = {"word_features": 64, "character_features": 64, "hidden": 16}
    tower = TowerSettings(name="report_ngrams", options=options)
    return build_model(ModelSettings(towers={"report": tower}), code_bits=16, seed=seed)


MODEL = report_model()
LAYOUT = Layout.of(MODEL)
START = LAYOUT.flatten(MODEL)


def studies_of(patients: int, each: int = 1, findings: tuple[str, ...] = AGREEMENT.findings):
    studies = [
        Study(
            f"study-{p}-{s}",
            f"patient-{p}",
            {"report": InMemory(f"Patient {p}, exam {s}: {findings[p % len(findings)]}.")},
            frozenset({findings[p % len(findings)]}),
        )
        for p in range(patients)
        for s in range(each)
    ]
    return prepare_studies(MODEL, studies, AGREEMENT.findings)


@dataclass(frozen=True)
class Controls:
    """Both control variates of one site at the start of a round."""

    own: np.ndarray
    shared: np.ndarray

    def carried(self, settings: LearningSettings) -> dict[str, np.ndarray]:
        """The site's own, and moments as AdamW has them before its first step."""
        fresh = {
            "first_moment": np.zeros(LAYOUT.size, np.float32),
            "second_moment": np.zeros(LAYOUT.size, np.float32),
            "moment_steps": np.zeros(len(list(MODEL.parameters())), np.float32),
        }
        return {"control": self.own} | {
            name: fresh[name] for name in carried_names(settings) if name in fresh
        }


def train(
    settings: LearningSettings = PLAIN,
    studies: PreparedStudies | None = None,
    *,
    start: np.ndarray = START,
    controls: Controls | None = None,
    carried: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    round_number: int = 1,
    most_steps: int = 1000,
) -> LocalResult:
    LAYOUT.load(MODEL, start)
    return train_locally(
        MODEL,
        studies_of(8) if studies is None else studies,
        LOSS,
        settings,
        margins=MARGINS,
        round_number=round_number,
        rounds_total=10,
        shared_control=None if controls is None else controls.shared,
        carried=carried or ({} if controls is None else controls.carried(settings)),
        most_steps=most_steps,
        generator=torch.Generator().manual_seed(seed),
        source=NoPrivacy(),
    )


def random_controls(seed: int) -> Controls:
    rng = np.random.default_rng(seed)
    own, shared = rng.normal(scale=0.01, size=(2, LAYOUT.size)).astype(np.float32)
    return Controls(own, shared)


def test_training_overfits_a_tiny_set() -> None:
    studies = studies_of(8)
    settings = PLAIN.model_copy(update={"learning_rate": 0.01, "local_steps": 80})
    result = train(settings, studies)
    after = train(PLAIN, studies, start=START + result.update)
    assert after.mean_loss < 0.2 * train(PLAIN, studies).mean_loss
    LAYOUT.load(MODEL, START + result.update)
    codes = pack_signs(encode_studies(MODEL, studies, "report"))
    nearest = hamming_distances(codes, pack_signs(ANCHORS.matrix)).argmin(axis=1)
    assert nearest.tolist() == studies.labels.argmax(dim=1).tolist()


def test_the_update_is_the_difference_of_the_models() -> None:
    result = train()
    np.testing.assert_allclose(LAYOUT.flatten(MODEL), START + result.update, atol=1e-7)
    assert result.update.dtype == np.float32
    assert result.control_delta is None


def test_the_generator_alone_decides() -> None:
    studies = studies_of(40, each=2)
    settings = PLAIN.model_copy(update={"batch_patients": 8})
    first = train(settings, studies, seed=5)
    torch.manual_seed(99)
    again = train(settings, studies, seed=5)
    assert (first.update == again.update).all()
    assert first.mean_loss == again.mean_loss
    assert (train(settings, studies, seed=6).update != first.update).any()


def test_the_global_generators_are_left_alone() -> None:
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the very thing under test
    train()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    batch_patients=st.integers(1, 15),
    seed=st.integers(0, 1000),
)
def test_a_step_takes_one_study_of_each_of_its_patients(
    counts: list[int], batch_patients: int, seed: int
) -> None:
    patients = [f"p{p}" for p, count in enumerate(counts) for _ in range(count)]
    studies = PreparedStudies(
        study_ids=tuple(str(row) for row in range(len(patients))),
        patient_ids=tuple(patients),
        labels=torch.ones(len(patients), 1, dtype=torch.int8),
        inputs={},
        present={},
        attributes=({},) * len(patients),
    )
    generator = torch.Generator().manual_seed(seed)
    a_pass = ceil(len(counts) / batch_patients)
    batches = list(
        islice(batches_of(rows_by_patient(studies), batch_patients, generator), 3 * a_pass)
    )
    for start in range(0, len(batches), a_pass):
        whole = batches[start : start + a_pass]
        drawn = sorted(patients[row] for rows in whole for row in rows)
        assert drawn == sorted(set(patients))
        sizes = [len(rows) for rows in whole]
        assert max(sizes) <= batch_patients
        assert max(sizes) - min(sizes) <= 1


def test_every_study_of_a_patient_gets_its_turn() -> None:
    studies = studies_of(1, each=3)
    batches = islice(batches_of(rows_by_patient(studies), 32, torch.Generator().manual_seed(0)), 60)
    assert {row for rows in batches for row in rows} == {0, 1, 2}


def test_a_site_with_fewer_patients_than_a_batch_does_as_many_steps() -> None:
    small = train(PLAIN.model_copy(update={"local_steps": 7}), studies_of(3))
    large = train(PLAIN.model_copy(update={"local_steps": 7}), studies_of(50))
    assert small.steps == large.steps == 7


def test_epochs_are_passes_over_the_patients() -> None:
    settings = PLAIN.model_copy(
        update={"local_steps": None, "local_epochs": 2, "batch_patients": 4}
    )
    assert train(settings, studies_of(9, each=2)).steps == planned_steps(9, settings) == 6
    assert planned_steps(10**6, PLAIN) == 3
    assert train(settings, studies_of(9, each=2), most_steps=4).steps == 4


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize(("proximal_weight", "clip_norm"), [(0.0, None), (0.7, 0.05)])
def test_training_equals_a_loop_by_hand(
    optimiser: str, with_controls: bool, proximal_weight: float, clip_norm: float | None
) -> None:
    studies = studies_of(6)  # fewer than a batch: each step sees all of them
    settings = LearningSettings(
        optimiser=optimiser,
        learning_rate=0.01,
        weight_decay=0.1,
        momentum=0.5 if optimiser == "sgd" else 0.0,
        local_steps=4,
        proximal_weight=proximal_weight,
        gradient_clip_norm=clip_norm,
        control_variates=with_controls,
        schedule="constant",
    )
    controls = random_controls(1) if with_controls else None
    result = train(settings, studies, controls=controls)

    vector = torch.tensor(START, requires_grad=True)
    by_hand = (
        torch.optim.AdamW([vector], lr=0.01, weight_decay=0.1)
        if optimiser == "adamw"
        else torch.optim.SGD([vector], lr=0.01, momentum=0.5, weight_decay=0.1)
    )
    raw = []
    for _ in range(4):
        gradient = gradient_at(vector.detach().numpy(), studies)
        norm = np.linalg.norm(gradient)
        if clip_norm is not None and norm > clip_norm:
            gradient = gradient * clip_norm / norm
        raw.append(gradient)
        pull = proximal_weight * (vector.detach().numpy() - START)
        correction = controls.shared - controls.own if controls else 0.0
        vector.grad = torch.from_numpy((gradient + pull + correction).astype(np.float32))
        by_hand.step()
    np.testing.assert_allclose(result.update, vector.detach().numpy() - START, atol=3e-5)
    if controls is not None:
        assert result.control_delta is not None
        expected = np.mean(raw, axis=0) - controls.own
        np.testing.assert_allclose(result.control_delta, expected, atol=1e-5)


def gradient_at(vector: np.ndarray, studies: PreparedStudies) -> np.ndarray:
    """Gradient of the mean loss of all studies."""
    model = report_model()
    LAYOUT.load(model, vector)
    outputs = {"report": model.encode("report", studies.inputs["report"])}
    LOSS(outputs, studies.present, studies.labels, MARGINS).mean().backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()


def test_equal_controls_change_nothing() -> None:
    controls = random_controls(2)
    same = Controls(controls.own, controls.own)
    settings = PLAIN.model_copy(update={"control_variates": True})
    for optimiser in ("adamw", "sgd"):
        kind = {"optimiser": optimiser}
        with_controls = train(settings.model_copy(update=kind), controls=same)
        without = train(PLAIN.model_copy(update=kind))
        assert (with_controls.update == without.update).all()


def test_for_sgd_the_new_control_is_option_two_of_scaffold() -> None:
    settings = LearningSettings(
        optimiser="sgd", learning_rate=0.05, weight_decay=0.0, local_steps=5, batch_patients=4
    )
    controls = random_controls(3)
    result = train(settings, studies_of(20), controls=controls, round_number=4)
    rate = learning_rate_of(settings, 4, 10)
    option_two = controls.own - controls.shared - result.update / (5 * rate)
    assert result.control_delta is not None
    np.testing.assert_allclose(controls.own + result.control_delta, option_two, atol=2e-5)


def test_control_variates_reach_the_consortiums_optimum_that_drift_misses() -> None:
    """Two sites, each of which knows two of four findings."""
    sites = [studies_of(8, findings=AGREEMENT.findings[:2])]
    sites.append(studies_of(2, findings=AGREEMENT.findings[2:]))
    steps = {"optimiser": "sgd", "learning_rate": 0.8, "weight_decay": 0.0, "local_steps": 8}
    slopes = {}
    for with_controls in (False, True):
        settings = LearningSettings(**steps, schedule="constant", control_variates=with_controls)
        vector = START
        shared = np.zeros(LAYOUT.size, dtype=np.float32)
        own = [shared, shared]
        for _ in range(15):
            results = [
                train(
                    settings,
                    site,
                    start=vector,
                    controls=Controls(mine, shared) if with_controls else None,
                )
                for site, mine in zip(sites, own, strict=True)
            ]
            vector = vector + np.mean([result.update for result in results], axis=0)
            if with_controls:
                deltas = [result.control_delta for result in results]
                own = [mine + delta for mine, delta in zip(own, deltas, strict=True)]
                shared = shared + np.mean(deltas, axis=0)
        gradients = [gradient_at(vector, site) for site in sites]
        slopes[with_controls] = np.linalg.norm(np.mean(gradients, axis=0))
    assert slopes[True] < 0.4 * slopes[False]


def test_the_proximal_pull_keeps_the_model_near() -> None:
    settings = {"optimiser": "sgd", "learning_rate": 0.05, "local_steps": 10}
    free = train(PLAIN.model_copy(update=settings))
    held = train(PLAIN.model_copy(update={**settings, "proximal_weight": 10.0}))
    assert np.linalg.norm(held.update) < 0.5 * np.linalg.norm(free.update)


def test_the_cosine_falls_over_the_rounds_and_never_to_zero() -> None:
    cosine = LearningSettings(learning_rate=0.4, schedule="cosine")
    rates = [learning_rate_of(cosine, round_number, 4) for round_number in range(1, 5)]
    assert rates[0] == 0.4
    assert rates[2] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    constant = LearningSettings(learning_rate=0.4, schedule="constant")
    assert learning_rate_of(constant, 4, 4) == 0.4


@pytest.mark.parametrize("round_number", [0, 11])
def test_rounds_count_from_one(round_number: int) -> None:
    with pytest.raises(ModelError, match=rf"round {round_number} of 10 .* count from 1"):
        train(round_number=round_number)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    settings = PLAIN.model_copy(update={"optimiser": "sgd", "learning_rate": 1e38})
    with pytest.raises(ModelError, match=r"lower learning_rate or set gradient_clip_norm"):
        train(settings)


def test_a_last_step_into_infinity_is_an_error() -> None:
    settings = {"optimiser": "sgd", "learning_rate": 1e4, "weight_decay": 1e37, "local_steps": 1}
    with pytest.raises(ModelError, match="ended in values that are not finite"):
        train(PLAIN.model_copy(update=settings))


def test_no_study_is_an_error() -> None:
    with pytest.raises(DataError, match="no study to train on"):
        train(studies=studies_of(0))


def test_a_study_without_a_positive_finding_is_an_error() -> None:
    studies = studies_of(3)
    studies.labels[1:] = torch.tensor([0, 0, -1, 0])
    with pytest.raises(DataError, match=r"study-1-0 has no positive finding \(and 1 more\)"):
        train(studies=studies)


def test_studies_prepared_by_another_model_are_an_error() -> None:
    studies = studies_of(3)
    studies.inputs["image"] = studies.inputs.pop("report")
    with pytest.raises(ModelError, match=r"prepared for \['image'\], the model reads \['report'\]"):
        train(studies=studies)


def test_controls_come_exactly_with_their_setting() -> None:
    zeros = np.zeros(LAYOUT.size, np.float32)
    with pytest.raises(ModelError, match="control_variates is True, but no shared control"):
        train(PLAIN.model_copy(update={"control_variates": True}))
    with pytest.raises(ModelError, match="control_variates is False, but a shared control"):
        train(controls=Controls(zeros, zeros))


def test_kept_moments_make_two_rounds_one_run_of_adamw() -> None:
    studies = studies_of(6)  # fewer than a batch: each step sees all of them
    settings = LearningSettings(
        learning_rate=0.01, local_steps=3, control_variates=False, schedule="constant"
    )
    first = train(settings, studies)
    second = train(settings, studies, start=START + first.update, carried=first.carried)
    whole = train(settings.model_copy(update={"local_steps": 6}), studies)
    np.testing.assert_allclose(first.update + second.update, whole.update, atol=1e-6)
    reset = settings.model_copy(update={"moments": "reset"})
    anew = train(reset, studies, start=START + first.update)
    assert np.abs(anew.update - second.update).max() > 1e-3
    assert anew.carried == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_moment": np.zeros(3, np.float32)}, "of the sizes"),
        ({"surprise": np.zeros(LAYOUT.size, np.float32)}, "surprise"),
    ],
)
def test_carried_arrays_of_other_settings_are_an_error(
    change: dict[str, np.ndarray], message: str
) -> None:
    settings = LearningSettings(local_steps=1, control_variates=False)
    carried = train(settings).carried
    with pytest.raises(ModelError, match=message):
        train(settings, carried={**carried, **change})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 1}, "local_steps is 20 and local_epochs is 1; give exactly one"),
        ({"local_steps": None}, "local_steps is None and local_epochs is None"),
        ({"momentum": 0.9}, "momentum belongs to sgd"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LearningSettings(**settings)
