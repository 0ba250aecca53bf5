# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import json
import math

import pytest
import torch
from reference_cases import FOLDER
from safetensors.torch import load_file
from torch.nn import functional as F

from segtransformers.conversion.losses import read_losses
from segtransformers.conversion.mapping import ConversionError
from segtransformers.models.losses import LOSSES, build_losses, check_losses, total_loss
from segtransformers.models.losses.base import PixelLoss

RECORDED = json.loads((FOLDER / "losses" / "cases.json").read_text())
TENSORS = load_file(FOLDER / "losses" / "tensors.safetensors")
INPUTS = {name: TENSORS[entry["tensor"]] for name, entry in RECORDED["inputs"].items()}
CASES = {case["name"]: case for case in RECORDED["cases"]}
WEIGHTS = RECORDED["class_weights_used"]["five"]

# cases whose definition is not offered, each for the reason given
CALLERS_ARGUMENT = "a weight for each pixel or a divisor that the caller of the original passes"
NOT_OFFERED = {
    "mmseg0.30.0.ce.pixel_weight": CALLERS_ARGUMENT,
    "mmseg0.30.0.ce.pixel_weight_avg_non_ignore": CALLERS_ARGUMENT,
    "mmseg0.30.0.ce.avg_factor": CALLERS_ARGUMENT,
    "mmseg0.30.0.focal.avg_factor": CALLERS_ARGUMENT,
    "mmseg0.30.0.dice.avg_factor": CALLERS_ARGUMENT,
    "mmseg0.20.2.ce.avg_factor": CALLERS_ARGUMENT,
    "mmseg0.20.2.focal.avg_factor": CALLERS_ARGUMENT,
    "mmseg0.20.2.dice.avg_factor": CALLERS_ARGUMENT,
    "mmseg1.2.2.ce.pixel_weight": CALLERS_ARGUMENT,
    "mmseg0.30.0.focal.soft_target_ignore": "the original takes 255 for the target of a class",
    "mmseg0.30.0.dice.call_ignore_index_0": "the original does not use the index that it is called with",
    "mmseg0.30.0.dice.binary": "the original is constant for one channel",
    "mmseg0.30.0.tversky.void_smooth_0": "the original is NaN",
    "mmseg0.30.0.lovasz.void_per_image": "the original is NaN",
    "mmseg0.30.0.head.lovasz_void": "the original is NaN",
    "mmseg1.2.2.ohem_ce.one_pixel": "the original is NaN",
    "mmseg0.30.0.head.ce_resized_align_corners": "align_corners is not supported",
    "mmseg1.2.2.ce.class_weight_ignore_0": "ignored pixels keep their weight in the original's divisor",
    "mmseg1.2.2.dice.ignore_index_0": "ignoring class 0 removes a channel in the original",
    "mmseg1.2.2.dice.binary": "the original inverts the target of one channel",
}


def recorded(prefix: str) -> list[str]:
    """Return the names of the recorded cases that have a number as their value."""
    return [name for name, case in CASES.items() if name.startswith(prefix) and case.get("value") is not None]


def compute(losses, case: dict, labels=None, factor: float = 1.0) -> tuple[float, torch.Tensor]:
    dtype = torch.float32 if case["dtype"] == "float32" else torch.float64
    logits = INPUTS[case["logits"]].to(dtype).clone().requires_grad_()
    labels = INPUTS[case["labels"]].long() if labels is None else labels
    call = case["definition"].get("call")
    ignored = call.get("ignore_index", 255) if isinstance(call, dict) else 255
    loss = factor * total_loss(losses, logits, labels, ignored)
    loss.backward()
    return loss.item(), logits.grad


def assert_recorded(value: float, gradient: torch.Tensor, case: dict) -> None:
    tolerance = 1e-6 if case["dtype"] == "float32" else 1e-9  # the originals add 2^-23 to some divisors
    assert value == pytest.approx(float(case["value"]), rel=tolerance, abs=1e-12)
    if case["gradient"] == "zero":
        assert gradient.abs().max() == 0
    elif case["gradient"] is not None:
        expected = TENSORS[case["gradient"]].to(gradient)  # stored in float32
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item() + 1e-12)


def translated(case: dict) -> list[PixelLoss]:
    """Build the losses of a recorded case of MMSegmentation as the conversion of a checkpoint does."""
    definition, version = case["definition"], int(case["name"].removeprefix("mmseg")[0])
    if definition["class"] == "BaseDecodeHead.losses":
        return build_losses(read_losses(definition["loss_decode"], definition["sampler"], version))
    return build_losses(read_losses({"type": definition["class"], **definition["arguments"]}, None, version))


@pytest.mark.parametrize("name", [name for name in recorded("mmseg") if name not in NOT_OFFERED])
def test_mmsegmentation(name):
    case = CASES[name]
    try:
        losses = translated(case)
    except ConversionError as error:
        known = (
            "reduction='sum'",
            "BoundaryLoss",
            "HuasdorffDisstanceLoss",
            "ignore_index=0, which leaves out a class",
        )
        assert any(reason in str(error) for reason in known)
    else:
        assert_recorded(*compute(losses, case), case)


def test_cases_that_are_not_offered_are_few_and_differ():
    assert len(NOT_OFFERED) <= 20
    for name in NOT_OFFERED:
        case = CASES[name]
        try:
            value, _ = compute(translated(case), case)
        except ValueError as error:
            assert "two classes" in str(error)
        else:
            assert value != pytest.approx(float(case["value"]), rel=1e-6) and math.isfinite(value)


OWN = {
    "torch.cross_entropy.mean": {"name": "cross_entropy"},
    "torch.cross_entropy.weight": {"name": "cross_entropy", "class_weights": WEIGHTS},
    "torch.cross_entropy.label_smoothing_0.1": {"name": "cross_entropy", "label_smoothing": 0.1},
    "torch.cross_entropy.label_smoothing_0.1_weight": {
        "name": "cross_entropy",
        "label_smoothing": 0.1,
        "class_weights": WEIGHTS,
    },
    "torch.cross_entropy.one_image_void": {"name": "cross_entropy"},
    "transformers.segformer.five_labels": {"name": "cross_entropy"},
    "transformers.segformer.five_labels_resized": {"name": "cross_entropy"},
    "transformers.segformer.one_label": {"name": "binary_cross_entropy", "average_over": "all_pixels"},
    "smp.soft_ce.smooth_0": {"name": "cross_entropy", "average_over": "all_pixels"},
    "smp.soft_ce.smooth_0.1": {"name": "cross_entropy", "average_over": "all_pixels", "label_smoothing": 0.1},
    "smp.soft_ce.void": {"name": "cross_entropy", "average_over": "all_pixels", "label_smoothing": 0.1},
    "smp.soft_bce.mean": {"name": "binary_cross_entropy", "average_over": "all_pixels"},
    "smp.soft_bce.clean": {"name": "binary_cross_entropy"},
    "torch.bce_valid_only.mean": {"name": "binary_cross_entropy"},
    "torch.bce_valid_only.pos_weight": {"name": "binary_cross_entropy", "positive_weights": [2.0]},
    "torchvision.sigmoid_focal.mean": {"name": "focal"},
    "torchvision.sigmoid_focal.mean_alpha_off": {"name": "focal", "alpha": None},
    "smp.focal.multiclass": {"name": "focal", "alpha": None},
    "smp.focal.multiclass_alpha_0.25": {"name": "focal"},
    "smp.focal.multiclass_alpha_0.25_gamma_0": {"name": "focal", "gamma": 0},
    "smp.focal.multiclass_clean": {"name": "focal"},
    "smp.focal.binary": {"name": "focal"},
    "smp.focal.multilabel": {"name": "focal"},
    "monai.focal.sigmoid": {"name": "focal", "alpha": None},
    "monai.focal.sigmoid_alpha": {"name": "focal"},
    "smp.dice.multiclass_all_classes": {"name": "dice", "smooth": 0},
    "smp.dice.binary": {"name": "dice", "smooth": 0},
    "smp.dice.binary_smooth_1": {"name": "dice", "smooth": 1},
    "smp.dice.binary_empty": {"name": "dice", "smooth": 0},
    "smp.dice.multiclass_void": {"name": "dice", "smooth": 0},
    "smp.jaccard.multiclass_all_classes": {"name": "jaccard", "smooth": 0},
    "smp.jaccard.binary": {"name": "jaccard", "smooth": 0},
    "smp.jaccard.binary_smooth_1": {"name": "jaccard", "smooth": 1},
    "smp.tversky.multiclass_all_classes": {"name": "tversky", "smooth": 0},
    "smp.tversky.binary": {"name": "tversky", "smooth": 0},
    "smp.lovasz.multiclass": {"name": "lovasz"},
    "smp.lovasz.multiclass_per_image": {"name": "lovasz", "per_image": True},
    "smp.lovasz.multiclass_clean": {"name": "lovasz"},
    "smp.lovasz.multiclass_one_pixel": {"name": "lovasz"},
    "smp.lovasz.binary": {"name": "lovasz"},
    "smp.lovasz.binary_per_image": {"name": "lovasz", "per_image": True},
    "smp.lovasz.multilabel": {"name": "lovasz"},
}


@pytest.mark.parametrize("name", OWN)
def test_other_libraries(name):
    case = CASES[name]
    assert_recorded(*compute(build_losses([OWN[name]]), case), case)


@pytest.mark.parametrize("kind", ["dice", "jaccard", "tversky"])
def test_smp_counts_absent_classes_as_found_and_the_standard_definition_leaves_them_out(kind):
    present = 4  # of five classes
    for suffix, smooth in (("", 0), ("_smooth_1", 1), ("_clean", 0)):
        case = CASES[f"smp.{kind}.multiclass{suffix}"]
        losses = build_losses([{"name": kind, "smooth": smooth}])
        assert_recorded(*compute(losses, case, factor=present / 5), case)
    for suffix, smooth in (("", 0), ("_smooth_1", 1), ("_ignore", 0)):
        case = CASES[f"smp.{kind}.multilabel{suffix}"]  # class 3 has no pixel
        losses = build_losses([{"name": kind, "smooth": smooth}])
        assert_recorded(*compute(losses, case, factor=present / 5), case)
    case = CASES[f"smp.{kind}.multiclass_class_weights"]
    losses = build_losses([{"name": kind, "smooth": 0, "class_weights": WEIGHTS}])
    assert_recorded(*compute(losses, case, factor=1 - WEIGHTS[3] / sum(WEIGHTS)), case)


ALL_LOSSES = [
    *LOSSES,
    {"name": "cross_entropy", "class_weights": WEIGHTS},
    {"name": "ohem_cross_entropy", "threshold": None, "min_kept": 10},
    {"name": "dice", "per_image": True},
    {"name": "lovasz", "per_image": True},
]


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=str)
def test_without_a_valid_pixel_the_loss_is_zero_with_a_zero_gradient(loss):
    for logits, labels in (
        (torch.randn(2, 5, 6, 7), torch.full((2, 6, 7), 255)),
        (torch.randn(2, 1, 6, 7), torch.full((2, 6, 7), 255)),
        (torch.randn(2, 5, 6, 7), torch.full((2, 5, 6, 7), 255)),
    ):
        settings = loss if isinstance(loss, dict) else {"name": loss}
        if ("cross_entropy" in settings["name"] and "binary" not in settings["name"]) and labels.dim() == 4:
            continue  # a softmax has one class for each pixel
        logits.requires_grad_()
        value = total_loss(build_losses([settings if logits.shape[1] == 5 else settings["name"]]), logits, labels, 255)
        value.backward()
        assert value == 0 and logits.grad.abs().max() == 0


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=str)
def test_half_precision_logits_are_summed_in_float32(loss):
    logits, labels = torch.randn(2, 5, 32, 32) * 4, torch.randint(5, (2, 32, 32))
    logits = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = total_loss(build_losses([loss]), logits, labels, 255)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, total_loss(build_losses([loss]), logits.float(), labels, 255))


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=str)
def test_a_compiled_loss_is_one_graph(loss):
    logits, labels = torch.randn(2, 5, 8, 8, requires_grad=True), torch.randint(5, (2, 8, 8))
    labels[0, :4] = 255
    losses = build_losses([loss])
    torch.compiler.reset()  # a graph for each loss is more than are kept for one function
    compiled = torch.compile(total_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(losses, logits, labels, 255), total_loss(losses, logits, labels, 255), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=str)
def test_gradients(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 3, 4))
    labels[0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: total_loss(build_losses([loss]), x, labels, 255), logits)


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        {"name": "cross_entropy", "class_weights": WEIGHTS},
        {"name": "cross_entropy", "average_over": "all_pixels"},
        {"name": "cross_entropy", "label_smoothing": 0.1},
        "binary_cross_entropy",
        "focal",
        {"name": "dice", "per_image": True},
        {"name": "jaccard", "per_image": True},
        {"name": "lovasz", "per_image": True},
        {"name": "dice", "definition": "mmseg"},
        # the threshold alone decides which pixels are kept
        {"name": "ohem_cross_entropy", "definition": "mmseg", "threshold": 0.1, "min_kept": 1},
    ],
    ids=str,
)
def test_parts_of_a_batch_average_to_the_whole(loss):
    logits, labels = torch.randn(4, 5, 16, 16).double(), torch.randint(5, (4, 16, 16))
    labels[0, :12] = 255
    labels[1:3, :3] = 255
    losses = build_losses([loss])
    counts = [torch.bincount(part[part != 255], minlength=5) for part in labels]
    mean = torch.stack(counts).double().mean(0)
    parts = [total_loss(losses, x[None], y[None], 255, mean) for x, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), total_loss(losses, logits, labels, 255))


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "binary_cross_entropy", "positive_weights": WEIGHTS},
        {"name": "focal", "class_weights": WEIGHTS},
        {"name": "dice", "per_image": True},
    ],
    ids=str,
)
def test_parts_of_a_batch_of_masks_average_to_the_whole(loss):
    logits, masks = torch.randn(4, 5, 16, 16).double(), torch.randint(2, (4, 5, 16, 16))
    masks[0, :2, :12] = 255
    masks[1:3, 4, :3] = 255
    losses = build_losses([loss])
    mean = (masks != 255).sum((2, 3)).double().mean(0)
    parts = [total_loss(losses, x[None], y[None], 255, mean) for x, y in zip(logits, masks, strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), total_loss(losses, logits, masks, 255))


def test_hard_pixels_are_kept():
    logits, labels = torch.randn(2, 5, 16, 16), torch.randint(5, (2, 16, 16))
    labels[1] = 255
    every = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[0].flatten()
    for settings, kept in (
        ({"threshold": None, "min_kept": 10}, 20),  # for each of the two images
        ({"threshold": 0.0, "min_kept": 10}, 20),
        ({"threshold": 0.0, "min_kept": 1000}, 256),
        ({"threshold": None, "min_kept": 1000}, 256),
    ):
        loss = build_losses([{"name": "ohem_cross_entropy", **settings}])
        expected = every.topk(kept).values.mean()
        torch.testing.assert_close(total_loss(loss, logits, labels, 255), expected)
    loss = build_losses([{"name": "ohem_cross_entropy", "threshold": 0.3, "min_kept": 1}])
    torch.testing.assert_close(total_loss(loss, logits, labels, 255), every[(-every).exp() < 0.3].mean())


def test_settings_round_trip():
    settings = [
        {"name": "cross_entropy", "class_weights": [1.0, 2.0], "weight": 0.5},
        {"name": "dice", "definition": "mmseg"},
        {"name": "focal", "alpha": None},
    ]
    assert [loss.to_dict() for loss in build_losses(settings)] == settings
    assert build_losses(["dice"]) == build_losses([{"name": "dice"}]) == build_losses(build_losses(["dice"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "1 to 16 losses"),
        ("dice", "must be a list"),
        ({"name": "dice"}, "must be a list"),
        (["dize"], "name of cross_entropy"),
        ([{"weight": 1}], "name of cross_entropy"),
        ([3], "name of cross_entropy"),
        ([{"name": "dice", "gamma": 2}], "dice has no setting 'gamma'; it has weight, smooth"),
        ([{"name": "dice", "weight": -1}], "dice: weight must be a number at least 0, got -1"),
        ([{"name": "dice", "weight": float("nan")}], "weight must be a number"),
        ([{"name": "dice", "definition": "mmseg2"}], "standard, mmseg, mmseg1"),
        ([{"name": "cross_entropy", "class_weights": [0, 0]}], "not all of them 0"),
        ([{"name": "cross_entropy", "class_weights": 3}], "a list with a number for each class"),
        ([{"name": "cross_entropy", "class_weights": "auto"}], "a list with a number for each class"),
        ([{"name": "cross_entropy", "label_smoothing": 1}], "from 0 to 0.999"),
        ([{"name": "ohem_cross_entropy", "min_kept": 0}], "whole number of at least 1"),
        ([{"name": "ohem_cross_entropy", "min_kept": 1.5}], "whole number of at least 1"),
        ([{"name": "focal", "alpha": 2}], "from 0 to 1"),
        ([{"name": "jaccard", "alpha": 0.5}], "use tversky"),
        ([{"name": "tversky", "alpha": 0, "beta": 0}], "not both be 0"),
        ([{"name": "lovasz", "classes": "some"}], "'present', 'all' or a list"),
        (["dice"] * 17, "1 to 16 losses"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_losses(settings)


def test_weights_of_another_length_are_named():
    losses = build_losses([{"name": "cross_entropy", "class_weights": [1.0, 2.0]}])
    check_losses(losses, 2)
    with pytest.raises(ValueError, match="class_weights has 2 numbers, but the model has 3 classes"):
        check_losses(losses, 3)
    with pytest.raises(ValueError, match="not all below the 3 of the model"):
        check_losses(build_losses([{"name": "lovasz", "classes": [1, 3]}]), 3)


SIZES = [((4, 4), (16, 16)), ((3, 5), (11, 18)), ((9, 6), (4, 6)), ((1, 1), (2, 3))]


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        {"name": "cross_entropy", "class_weights": WEIGHTS},
        {"name": "cross_entropy", "class_weights": WEIGHTS, "label_smoothing": 0.1, "average_over": "valid_pixels"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "size, label_size", [((4, 4), (16, 16)), ((3, 5), (11, 18)), ((9, 6), (4, 6)), ((1, 1), (2, 3))]
)
def test_loss_of_small_logits_is_that_of_resized_ones(monkeypatch, loss, size, label_size):
    monkeypatch.setattr("segtransformers.models.losses.resized_cross_entropy.BAND_BYTES", 2 * 18 * 5 * 8)
    logits, labels = torch.randn(2, 5, *size).double().requires_grad_(), torch.randint(5, (2, *label_size))
    labels[0, 0] = 255
    losses = build_losses([loss])
    value = total_loss(losses, logits, labels, 255)
    resized = F.interpolate(logits, size=label_size, mode="bilinear")
    expected = total_loss(losses, resized, labels, 255)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, logits, 3 * torch.ones_like(value))
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0] * 3, rtol=1e-12, atol=1e-12)


def test_loss_of_small_logits_has_second_derivatives_and_transforms():
    losses, labels = build_losses(["cross_entropy"]), torch.randint(3, (2, 4, 6))
    labels[0, 0] = 255
    logits = torch.randn(2, 3, 2, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: total_loss(losses, x, labels, 255), logits)
    of_one = torch.func.grad(lambda x, y: total_loss(losses, x[None], y[None], 255))
    expected = [of_one(x.detach(), y) for x, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(torch.func.vmap(of_one)(logits.detach(), labels), torch.stack(expected))
    assert expected[0].abs().max() > 0
