"""DP-SGD against a loop by hand, at its edges, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn

from fedhash.agreement import Agreement
from fedhash.configuration import Settings
from fedhash.errors import DataError, PrivacyError
from fedhash.learning.local_training import LocalResult, train_locally
from fedhash.learning.loss import Margins
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash.learning.losses.logistic import LogisticLoss
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.models.tower import TOWERS, Tower
from fedhash.privacy import dp_sgd
from fedhash.privacy.dp_sgd import SiteDpSgd, clipped_sum
from fedhash.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.public_count import published_patients
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.privacy.soundness import check_sound

AGREEMENT = Agreement(
    name="test",
    findings=("no_finding", "effusion", "nodule", "fracture"),
    code_bits=16,
    modalities=("image", "report"),
)
LOSS = AnchorMarginLoss(Anchors.build(AGREEMENT), LossSettings())
MARGINS = Margins.constant(4, 0.3)
PLAIN = LearningSettings(control_variates=False, local_steps=3)
ALL = SitePrivacySettings(mode="site", clip_norm=0.5, noise_multiplier=1.0, sampling_rate=1.0)


class Silence:
    """A source whose noise is zero and whose samples hold the first half, so sums can be seen."""

    secure = False

    def gaussians(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def uniforms(self, count: int) -> np.ndarray:
        return np.linspace(0, 1, count, endpoint=False)


@pytest.fixture(params=["formed", "unformed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way of clipping, whatever the model's size; named by rule 8."""
    unformed = request.param == "unformed"
    monkeypatch.setattr(dp_sgd, "_pays_unformed", lambda _: unformed)
    return str(request.param)


def two_towers(dropout: float = 0.0) -> HashModel:
    image = {"image_size_px": 16, "orientations": 4, "hidden": 6, "dropout": dropout}
    report = {"word_features": 12, "character_features": 12, "hidden": 6}
    towers = {
        "image": TowerSettings(name="image_hog", options=image),
        "report": TowerSettings(name="report_ngrams", options=report),
    }
    return build_model(ModelSettings(towers=towers), code_bits=16, seed=1)


def studies_of(patients: int, each: int = 1, seed: int = 0) -> PreparedStudies:
    """Random studies; every third lacks its report."""
    rng = np.random.default_rng(seed)
    model, rows = two_towers(), patients * each
    labels = np.zeros((rows, 4), np.int8)
    labels[np.arange(rows), rng.integers(4, size=rows)] = 1
    present = {"image": torch.ones(rows, dtype=torch.bool)}
    present["report"] = torch.arange(rows) % 3 != 2
    inputs = {
        name: torch.from_numpy(
            rng.normal(size=(rows, *model.tower(name).prepared_shape)).astype(np.float32)
        )
        * present[name][:, None]
        for name in model.modalities
    }
    return PreparedStudies(
        study_ids=tuple(f"study-{row}" for row in range(rows)),
        patient_ids=tuple(f"patient-{row // each}" for row in range(rows)),
        labels=torch.from_numpy(labels),
        inputs=inputs,
        present=present,
        attributes=({},) * rows,
    )


def filled(
    model: HashModel,
    studies: PreparedStudies,
    privacy: SitePrivacySettings = ALL,
    noise: NoiseSource | None = None,
    *,
    steps: int = 1,
    settings: LearningSettings = PLAIN,
    loss: AnchorMarginLoss | ContrastiveLoss = LOSS,
) -> Iterator[np.ndarray]:
    """The gradient that each step would use."""
    source = SiteDpSgd(privacy, Silence() if noise is None else noise, lambda _: None)
    model.train()
    for told in source.gradients(
        model,
        studies,
        loss,
        settings,
        margins=MARGINS,
        steps=steps,
        generator=torch.Generator(),
    ):
        assert told is None
        yield torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()


def gradient_of(model: HashModel, studies: PreparedStudies, row: int) -> np.ndarray:
    """One study's gradient by plain autograd, over both towers."""
    model.zero_grad()
    one = studies.select([row])
    outputs = {name: model.encode(name, x) for name, x in one.inputs.items()}
    LOSS(outputs, one.present, one.labels, MARGINS).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    return torch.cat([each.reshape(-1) for each in gradients]).numpy().astype(float)


def clipped(gradient: np.ndarray, clip_norm: float) -> np.ndarray:
    return gradient * min(1.0, clip_norm * 0.999 / (np.linalg.norm(gradient) + 1e-6))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_step_equals_a_loop_by_hand(rate: float) -> None:
    model, studies = two_towers(), studies_of(14, each=3)
    privacy = SitePrivacySettings(
        mode="site", clip_norm=0.8, noise_multiplier=0.7, sampling_rate=rate
    )
    found = list(filled(model, studies, privacy, SimulatedNoise(5), steps=4))
    draws = SimulatedNoise(5)
    for gradient in found:
        taken = np.flatnonzero(draws.uniforms(14) < rate)
        places = (draws.uniforms(len(taken)) * 3).astype(int)
        total = sum(
            (
                clipped(gradient_of(model, studies, row), 0.8)
                for row in (3 * taken + places).tolist()
            ),
            start=np.zeros(len(gradient)),
        )
        noised = total + 0.8 * 0.7 * draws.gaussians(len(gradient))
        np.testing.assert_allclose(gradient, noised / (rate * 10), atol=2e-6)
    assert len(found) == 4


@pytest.mark.usefixtures("way")
def test_both_towers_are_clipped_together() -> None:
    model, studies = two_towers(), studies_of(2)
    (gradient,) = filled(model, studies.select([0]))
    assert np.linalg.norm(gradient_of(model, studies, 0)) > 0.5
    assert np.linalg.norm(gradient) * 10 == pytest.approx(0.5 * 0.999, rel=1e-4)
    image = sum(p.numel() for p in model.tower("image").parameters())
    assert np.abs(gradient[:image]).max() > 0
    assert np.abs(gradient[image:]).max() > 0


@pytest.mark.usefixtures("way")
def test_a_missing_modality_gives_its_tower_nothing() -> None:
    model, studies = two_towers(), studies_of(3)
    (gradient,) = filled(model, studies.select([2]))
    image = sum(p.numel() for p in model.tower("image").parameters())
    assert np.linalg.norm(gradient) > 0
    assert not gradient[image:].any()


@pytest.mark.usefixtures("way")
def test_an_empty_batch_is_noise_and_a_step_like_any_other() -> None:
    rare = ALL.model_copy(update={"sampling_rate": 1e-9})
    found = list(filled(two_towers(), studies_of(5), rare, SimulatedNoise(3), steps=3))
    draws = SimulatedNoise(3)
    for gradient in found:
        draws.uniforms(5)
        draws.uniforms(0)
        noise = 0.5 * draws.gaussians(len(gradient))
        np.testing.assert_allclose(gradient, noise / (1e-9 * 10), rtol=1e-6)


@pytest.mark.usefixtures("way")
def test_noise_has_the_standard_deviation_that_the_ledger_is_told() -> None:
    privacy = SitePrivacySettings(
        mode="site", clip_norm=0.25, noise_multiplier=3.0, sampling_rate=1.0
    )
    model, studies = two_towers(), studies_of(6)
    exact = clipped_sum(model, studies, LOSS, MARGINS, 0.25)
    found = np.stack(list(filled(model, studies, privacy, SecureNoise(), steps=20)))
    scaled = (found * 10 - exact) / 0.75
    total = float((scaled**2).sum())
    assert chi2.ppf(1e-10, scaled.size) < total < chi2.isf(1e-10, scaled.size)


@pytest.mark.parametrize("patients", [12, 14])
def test_the_divisor_is_public_and_not_the_batch(patients: int) -> None:
    model, studies = two_towers(), studies_of(patients)
    half = ALL.model_copy(update={"sampling_rate": 0.5})
    (gradient,) = filled(model, studies, half)
    taken = studies.select(range(patients // 2))
    by_hand = clipped_sum(model, taken, LOSS, MARGINS, 0.5) / (0.5 * 10)
    np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


@given(st.integers(1, 10**6))
def test_the_published_number_is_near_and_rounded(patients: int) -> None:
    published = published_patients(patients)
    assert published % 10 == 0
    assert published == 10 or abs(published - patients) <= max(5, patients / 20)
    assert len(str(published).rstrip("0")) <= 2 or published < 1000


@pytest.mark.usefixtures("way")
def test_parts_of_a_batch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, studies = two_towers(), studies_of(9)
    whole = clipped_sum(model, studies, LOSS, MARGINS, 0.5)
    monkeypatch.setattr(dp_sgd, "_ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(clipped_sum(model, studies, LOSS, MARGINS, 0.5), whole, atol=1e-6)
    monkeypatch.setattr(dp_sgd, "_BYTES_AT_ONCE", 1)
    np.testing.assert_allclose(clipped_sum(model, studies, LOSS, MARGINS, 0.5), whole, atol=1e-6)


@pytest.mark.usefixtures("way")
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(1e-3, 10), st.floats(0.01, 100))
def test_one_patient_changes_the_sum_by_at_most_c(
    seed: int, patients: int, clip_norm: float, scale: float
) -> None:
    model, studies = two_towers(), studies_of(patients, seed=seed)
    for name in studies.inputs:
        studies.inputs[name].mul_(scale)
    gone = seed % patients
    rest = studies.select([row for row in range(patients) if row != gone])
    change = clipped_sum(model, studies, LOSS, MARGINS, clip_norm) - clipped_sum(
        model, rest, LOSS, MARGINS, clip_norm
    )
    assert np.linalg.norm(change) <= clip_norm


@pytest.mark.usefixtures("way")
def test_rounding_of_many_equal_gradients_stays_below_c() -> None:
    model = two_towers()
    many = studies_of(1).select([0] * 20_000)
    fewer = many.select(range(19_999))
    whole, rest = (clipped_sum(model, each, LOSS, MARGINS, 0.5) for each in (many, fewer))
    assert np.linalg.norm(whole) > 0.99 * 20_000 * 0.5
    assert np.linalg.norm(whole - rest) <= 0.5


def test_values_that_are_not_finite_count_as_zero(way: str) -> None:
    model, studies = two_towers(), studies_of(4)
    broken = studies.select([0, 1, 3])
    broken.inputs["image"][1] = torch.nan
    rest = studies.select([0, 3])
    found = clipped_sum(model, broken, LOSS, MARGINS, 0.5)
    difference = found - clipped_sum(model, rest, LOSS, MARGINS, 0.5)
    assert np.isfinite(found).all()
    assert np.linalg.norm(difference) <= 0.5
    if way == "unformed":  # then all of the patient counts as zero
        assert np.linalg.norm(difference) < 1e-6


SMALL = {
    "frozen_image": {"dimensions": 6},
    "frozen_report": {"dimensions": 6},
    "frozen_signal": {"dimensions": 6},
    "image_convnet": {"image_size_px": 32, "width": 8},
    "image_hog": {"image_size_px": 16},
    "image_resnet18": {"image_size_px": 32, "width": 8},
    "report_ngrams": {"word_features": 16, "character_features": 16},
    "signal_convnet": {"samples": 64, "width": 8},
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", sorted(SMALL))
def test_opacus_finds_the_gradient_of_every_tower(name: str) -> None:
    """Without clipping, the sum over patients is the gradient of the sum of their losses."""
    modality = TOWERS[name].modality
    towers = {modality: TowerSettings(name=name, options=SMALL[name])}
    model = build_model(ModelSettings(towers=towers), code_bits=16, seed=1)
    studies = studies_of(6)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, *model.tower(modality).prepared_shape, generator=generator)
    present = {modality: torch.arange(6) != 4}
    studies = replace(studies, inputs={modality: inputs}, present=present)
    check_sound(model, LOSS, PLAIN)
    found = clipped_sum(model, studies, LOSS, MARGINS, 1e6)
    model.zero_grad()
    outputs = {modality: model.encode(modality, inputs)}
    LOSS(outputs, present, studies.labels, MARGINS).sum().backward()
    exact = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    np.testing.assert_allclose(found, exact, atol=2e-5 * float(exact.abs().max()))


def test_every_tower_was_tried() -> None:
    assert set(SMALL) == set(TOWERS)


class RecordingLoss(AnchorMarginLoss):
    def __init__(self, calls: list[object]) -> None:
        super().__init__(Anchors.build(AGREEMENT), LossSettings())
        self.calls = calls

    def __call__(self, *arguments: object) -> torch.Tensor:
        self.calls.append("data")
        return super().__call__(*arguments)


def train(
    source: SiteDpSgd, loss: AnchorMarginLoss = LOSS, settings: LearningSettings = PLAIN
) -> LocalResult:
    return train_locally(
        two_towers(),
        studies_of(12, each=2),
        loss,
        settings,
        margins=MARGINS,
        round_number=1,
        rounds_total=3,
        shared_control=np.zeros(SIZE, np.float32) if settings.control_variates else None,
        carried={},
        most_steps=1000,
        generator=torch.Generator().manual_seed(0),
        source=source,
    )


SIZE = Layout.of(two_towers()).size


def test_steps_are_reserved_before_any_data_is_read() -> None:
    calls: list[object] = []
    half = ALL.model_copy(update={"sampling_rate": 0.5})
    train(SiteDpSgd(half, SimulatedNoise(1), calls.append), RecordingLoss(calls))
    assert calls == [PrivateSteps(1.0, 0.5, 3), "data", "data", "data"]


def test_studies_are_checked_after_the_steps_are_reserved() -> None:
    """Whether a patient has a label is read of the patient."""
    calls: list[object] = []
    studies = studies_of(3)
    studies.labels[1] = 0
    source = SiteDpSgd(ALL, SimulatedNoise(1), calls.append)
    arguments = (two_towers(), studies, LOSS, PLAIN)
    steps = source.gradients(*arguments, margins=MARGINS, steps=2, generator=torch.Generator())
    with pytest.raises(DataError, match="study-1 has no positive finding"):
        next(steps)
    assert calls == [PrivateSteps(1.0, 1.0, 2)]


def test_refused_steps_read_nothing() -> None:
    calls: list[object] = []

    def refuse(steps: PrivateSteps) -> None:
        raise PrivacyError("spent")

    with pytest.raises(PrivacyError, match="spent"):
        train(SiteDpSgd(ALL, SimulatedNoise(1), refuse), RecordingLoss(calls))
    assert calls == []


def test_the_loss_stays_and_the_control_variate_is_the_mean_of_noised_gradients() -> None:
    settings = LearningSettings(
        optimiser="sgd", learning_rate=0.05, weight_decay=0.0, local_steps=3, schedule="constant"
    )
    result = train(SiteDpSgd(ALL, SimulatedNoise(4), lambda _: None), settings=settings)
    assert result.mean_loss is None
    assert result.control_delta is not None
    # with plain SGD and zero variates, the update is the sum of the gradients that were used
    np.testing.assert_allclose(result.control_delta, -result.update / (3 * 0.05), atol=2e-5)
    quiet = train(SiteDpSgd(ALL, Silence(), lambda _: None), settings=settings)
    assert quiet.control_delta is not None
    noise = np.linalg.norm(result.control_delta - quiet.control_delta)
    assert noise > 0.5 * 0.5 * np.sqrt(SIZE / 3) / 10


def test_noise_and_samples_come_from_the_source_alone() -> None:
    def update(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return train(SiteDpSgd(ALL, SimulatedNoise(4), lambda _: None)).update

    before = update(0)
    state = torch.get_rng_state()
    assert (update(1) == before).all()
    torch.set_rng_state(state)
    other = train(SiteDpSgd(ALL, SimulatedNoise(5), lambda _: None)).update
    assert torch.equal(torch.get_rng_state(), state)
    assert (other != before).any()
    secure = [train(SiteDpSgd(ALL, SecureNoise(), lambda _: None)).update for _ in range(2)]
    assert (secure[0] != secure[1]).any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_of_opacus_stays_on_the_model(fail: bool) -> None:
    model = two_towers()
    studies = studies_of(4)
    source = filled(model, studies, steps=2)
    next(source)
    if fail:
        source.close()
    else:
        assert len(list(source)) == 1
    for name in ("grad_sample", "summed_grad", "factors"):
        assert not any(hasattr(parameter, name) for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    gradient_of(model, studies, 0)


class ToyOptions(Settings):
    """No options."""


class ToyTower(Tower):
    name, modality, Options = "toy", "image", ToyOptions

    def __init__(self, extra: nn.Module, *, mixes: bool = False) -> None:
        super().__init__(ToyOptions(), 16)
        self.prepared_shape = (5,)
        self.body = nn.Sequential(nn.Linear(5, 16), extra)
        self.mixes = mixes

    def prepare(self, contents: object) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(each, np.float32) for each in contents]))

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        outputs = self.body(prepared)
        return outputs - outputs.mean(dim=0) if self.mixes else outputs


class Remembering(nn.Module):
    """Parameters beside a buffer that torch does not save."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.register_buffer("seen", torch.zeros(16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.mark.parametrize(
    ("tower", "problem"),
    [
        (ToyTower(nn.BatchNorm1d(16)), "BatchNorm1d: a patient's output .* use GroupNorm"),
        (ToyTower(nn.Dropout(0.2)), r"Dropout of 0\.2: its masks .* set the tower's option"),
        (ToyTower(Remembering()), "Remembering with a buffer beside .* without buffers"),
        (ToyTower(nn.ReLU(), mixes=True), "'image' lets a patient's output depend on other"),
    ],
)
def test_towers_that_break_the_bound_are_refused(tower: ToyTower, problem: str) -> None:
    model = HashModel({"image": tower}, 16)
    reserved: list[PrivateSteps] = []
    source = SiteDpSgd(ALL, Silence(), reserved.append)
    model.train()
    with pytest.raises(PrivacyError, match=problem):
        next(
            source.gradients(
                model,
                studies_of(2),
                LOSS,
                PLAIN,
                margins=MARGINS,
                steps=1,
                generator=torch.Generator(),
            )
        )
    assert reserved == []


def test_dropout_of_nothing_is_no_dropout() -> None:
    assert len(list(filled(two_towers(dropout=0.0), studies_of(2)))) == 1
    with pytest.raises(PrivacyError, match=r"option dropout to 0"):
        next(filled(two_towers(dropout=0.1), studies_of(2)))


def test_other_choices_that_tell_about_patients_are_refused_together() -> None:
    loss = ContrastiveLoss(Anchors.build(AGREEMENT), LossSettings(name="contrastive"))
    settings = LearningSettings(local_steps=None, local_epochs=2, gradient_clip_norm=1.0)
    with pytest.raises(PrivacyError) as refused:
        next(filled(two_towers(), studies_of(2), loss=loss, settings=settings))
    message = str(refused.value)
    assert "the loss ContrastiveLoss takes a patient's gradient from other patients" in message
    assert "use a sum of patient terms: anchor_margin" in message
    assert "set local_steps and local_epochs: null" in message
    assert "gradient_clip_norm is 1.0 and clips a whole batch" in message


def test_opacus_leaves_a_program_s_logging_alone() -> None:
    code = "import logging, fedhash.privacy.dp_sgd; print(logging.root.handlers)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"
    assert done.stderr == ""


@pytest.mark.parametrize("broken", [None, 0, 5])
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 1e6])
def test_unformed_gradients_have_the_sum_of_formed_ones(
    monkeypatch: pytest.MonkeyPatch, clip_norm: float, broken: int | None
) -> None:
    towers = {"image": TowerSettings(name="image_hog", options={})}
    model = build_model(ModelSettings(towers=towers), code_bits=16, seed=1)
    assert dp_sgd._pays_unformed(model)
    inputs = torch.randn(70, *model.tower("image").prepared_shape)
    if broken is not None:
        inputs[broken] = torch.nan
    present = {"image": torch.arange(70) != 4}
    studies = replace(studies_of(70), inputs={"image": inputs}, present=present)
    unformed = clipped_sum(model, studies, LOSS, MARGINS, clip_norm)
    monkeypatch.setattr(dp_sgd, "_pays_unformed", lambda _: False)
    formed = clipped_sum(model, studies, LOSS, MARGINS, clip_norm)
    np.testing.assert_allclose(unformed, formed, rtol=1e-4, atol=1e-6 * clip_norm)
    assert np.linalg.norm(unformed) > 0


def test_small_heads_and_convolutions_have_their_gradients_formed() -> None:
    for name, options, pays in (
        ("image_convnet", {}, False),
        ("frozen_image", {"dimensions": 20}, False),
        ("frozen_image", {"dimensions": 2000}, True),
    ):
        towers = {"image": TowerSettings(name=name, options=options)}
        model = build_model(ModelSettings(towers=towers), code_bits=16, seed=1)
        assert dp_sgd._pays_unformed(model) == pays


def toy_model(*layers: nn.Module) -> HashModel:
    tower = ToyTower(nn.Identity())
    tower.body = nn.Sequential(*layers)
    return HashModel({"image": tower}, 16)


def toy_studies(rows: list[list[float]], labels: list[int]) -> PreparedStudies:
    one_hot = torch.zeros(len(rows), 4, dtype=torch.int8)
    one_hot[torch.arange(len(rows)), torch.tensor(labels)] = 1
    return replace(
        studies_of(len(rows)),
        labels=one_hot,
        inputs={"image": torch.tensor(rows)},
        present={"image": torch.ones(len(rows), dtype=torch.bool)},
    )


LOGISTIC = LogisticLoss(Anchors.build(AGREEMENT), LossSettings(name="logistic"))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("clip_norm", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("gap", [44.0, 48.0, 50.0, 52.0])
def test_a_tiny_slope_beside_a_huge_input_is_clipped(clip_norm: float, gap: float) -> None:
    """Squared in float32 the slope is nothing, and the gradient is many times C."""
    layer = nn.Linear(5, 16, bias=False)
    anchors = torch.from_numpy(Anchors.build(AGREEMENT).matrix).float()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 0] = gap * anchors[0]  # the huge input meets weights of zero
    studies = toy_studies([[1.0, 1.7e19, 0, 0, 0]], [0])
    total = clipped_sum(toy_model(layer), studies, LOGISTIC, MARGINS, clip_norm)
    assert 0 < np.linalg.norm(total) <= clip_norm


class Repeating(nn.Module):
    """A layer that sees its patient twice, and one that sees several vectors of a patient."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.rows = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(torch.tanh(self.twice(x)))
        rows = torch.stack([y, y.square(), x, x.square()], dim=1)
        outputs: torch.Tensor = self.rows(rows).reshape(len(x), 16)
        return outputs


def test_layers_without_a_single_product_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = toy_model(Repeating(), nn.Linear(16, 16))
    studies = toy_studies(torch.randn(6, 5).tolist(), [0, 1, 2, 3, 0, 1])
    sums = []
    for unformed in (True, False):
        monkeypatch.setattr(dp_sgd, "_pays_unformed", lambda _, chosen=unformed: chosen)
        sums.append(clipped_sum(model, studies, LOGISTIC, MARGINS, 0.1))
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4, atol=1e-7)
    assert np.linalg.norm(sums[0]) > 0.1


@pytest.mark.parametrize("unformed", [True, False])
def test_a_model_sees_as_many_rows_whoever_takes_part(
    monkeypatch: pytest.MonkeyPatch, unformed: bool
) -> None:
    """Products of one to three rows are rounded otherwise than of more; see rule 9."""
    towers = {"image": TowerSettings(name="image_hog", options=SMALL["image_hog"])}
    model = build_model(ModelSettings(towers=towers), code_bits=16, seed=1)
    inputs = torch.randn(70, *model.tower("image").prepared_shape)
    present = {"image": torch.ones(70, dtype=torch.bool)}
    studies = replace(studies_of(70), inputs={"image": inputs}, present=present)
    seen: list[int] = []
    encode = HashModel.encode

    def counted(self: HashModel, modality: str, rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return encode(self, modality, rows)

    monkeypatch.setattr(HashModel, "encode", counted)
    sums = {
        count: clipped_sum(model, studies, LOSS, MARGINS, 1.0, range(count), unformed=unformed)
        for count in (0, 1, 3, 4, 63, 64, 65, 70)
    }
    assert set(seen) == {64}
    assert len(seen) == 5 + 2 * 2
    assert not sums[0].any()
    alone = clipped_sum(model, studies, LOSS, MARGINS, 1.0, [69], unformed=unformed)
    rest = clipped_sum(model, studies, LOSS, MARGINS, 1.0, range(69), unformed=unformed)
    np.testing.assert_allclose(sums[70], rest + alone, atol=1e-6)
