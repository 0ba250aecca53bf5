# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Multi-label models: a sigmoid for each class, so that a pixel may have several classes or none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_command import options, run
from torch.nn import functional as F
from training_cases import SIDE, small_model
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    SegformerConfig,
    pipeline,
)
from typer.testing import CliRunner

from segtransformers import SegMask2FormerConfig, SegmentationImageProcessor, SegmenterConfig, SegUperNetConfig
from segtransformers.cli import app
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.class_counts import ClassCounts
from segtransformers.datasets.scenes import draw_scene
from segtransformers.evaluation import Calibration, evaluate_segmentation
from segtransformers.hub.model_card import model_card
from segtransformers.image_processing import decision_of, label_map_classes
from segtransformers.inference import (
    InferenceProtocol,
    SegmentationPipeline,
    image_scores,
    segment_bands,
    segment_image,
    segment_with_confidence,
    uncertainty_maps,
)
from segtransformers.metrics import MultiLabelIoU
from segtransformers.models.losses import build_losses, total_loss
from segtransformers.training import TrainingAugmentation, get_recipe
from segtransformers.training.loss_settings import apply_losses
from segtransformers.visualization import bit_plane_image, distinct_colours, draw_segmentation

MULTI_LABEL = "multi_label_classification"
NAMES = ["made", "moving", "red"]  # "moving" is always "made", too
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
PALETTE = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]


def masks_of(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the masks of the classes for a drawn scene, `(3, height, width)` bool."""
    return np.stack([labels >= 4, labels >= 8, image[..., 0].astype(int) > image[..., 2].astype(int) + 20])


def data_folder(folder, planes: bool, train: int = 4, validation: int = 2):
    """Write multi-label data of drawn scenes: bit planes, or a folder of masks for each class."""
    seed = 0
    for part, count in (("train", train), ("validation", validation)):
        for index in range(count):
            image, labels = draw_scene(seed, (96, 128))
            masks = masks_of(labels, image)
            files = {folder / "images" / part / f"{index}.png": image}
            if planes:
                files[folder / "masks" / part / f"{index}.png"] = sum(
                    mask.astype(np.uint8) << bit for bit, mask in enumerate(masks)
                )
            for name, mask in zip(() if planes else NAMES, masks, strict=False):
                files[folder / "masks" / part / name / f"{index}.png"] = mask.astype(np.uint8)
            for path, pixels in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            seed += 1
    if planes:
        (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder


@pytest.fixture(scope="module")
def model():
    return small_model("upernet", **CLASSES, palette=PALETTE, problem_type=MULTI_LABEL).eval()


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))


@pytest.fixture
def threshold(model, image):
    """A threshold in the range of an untrained model's scores, which lie close together."""
    scores = image_scores(model, SegmentationImageProcessor(do_resize=False), image)
    model.config.threshold = scores.quantile(0.6).item()
    yield model.config.threshold
    model.config.threshold = 0.5


def test_loss_of_masks(model):
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.randint(2, (2, 3, SIDE, SIDE))
    labels[0, 1, :9] = 255
    with torch.no_grad():
        outputs = model(images, labels=labels.byte())
    assert outputs.logits.shape == (2, 3, SIDE, SIDE)
    terms = F.binary_cross_entropy_with_logits(outputs.logits, labels.clamp(max=1).float(), reduction="none")
    torch.testing.assert_close(outputs.loss, (terms * (labels != 255)).sum() / labels.numel())
    for wrong, message in (
        (labels[:, 0], r"must be masks \(batch, num_labels, height, width\) = \(2, 3, 64, 64\), got \(2, 64, 64\)"),
        (labels.float(), "must hold the integers 0 and 1, got torch.float32"),
        (labels + 1, r"must be 0, 1 or 255 \(ignored\), got the values \[2, 256\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, labels=wrong)


# Lovász's hinge sorts the errors of all classes together, as in segmentation_models_pytorch
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "focal", "dice", "jaccard", "tversky"])
def test_the_gradient_of_a_class_does_not_depend_on_the_logits_of_others(loss):
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 16, 16).double(), torch.randint(2, (2, 3, 16, 16))
    masks[1, 0, :5] = 255
    losses = build_losses([{"name": loss}])
    gradients = []
    for shift in (0.0, 3.0):
        changed = logits.clone()
        changed[:, 1:] += shift
        changed.requires_grad_()
        total_loss(losses, changed, masks, 255).backward()
        gradients.append(changed.grad)
    torch.testing.assert_close(gradients[0][:, 0], gradients[1][:, 0])
    assert gradients[0][1, 0, :5].abs().max() == 0  # ignored
    assert (gradients[0][:, 1] != gradients[1][:, 1]).any()


def test_labels_follow_the_threshold(model, image, threshold):
    processor = SegmentationImageProcessor(do_resize=False)
    scores = image_scores(model, processor, image)
    expected = scores > threshold
    assert (expected.sum(0) > 1).any() and (expected.sum(0) == 0).any()
    found = segment_image(model, processor, image)
    assert found.dtype == torch.bool and torch.equal(found, expected)
    several = InferenceProtocol(scales=(0.75, 1.0), flip=True)
    views = image_scores(model, processor, image, several)
    assert not torch.equal(views > threshold, expected)
    assert torch.equal(segment_image(model, processor, image, several), views > threshold)
    labels, confidence = segment_with_confidence(model, processor, image, several)
    assert torch.equal(labels, views > threshold)
    torch.testing.assert_close(confidence, torch.where(labels, views, 1 - views))
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    for scored in (False, True):
        (masks,) = processor.post_process_semantic_segmentation(
            outputs, [(80, 100)], return_segmentation_scores=scored, threshold=threshold, multi_label=True
        )
        assert torch.equal(masks.segmentation if scored else masks, expected)
    with pytest.raises(ValueError, match="threshold must be a probability between 0 and 1"):
        processor.post_process_semantic_segmentation(outputs, threshold=1.0, multi_label=True)


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_pipelines_give_one_mask_for_each_class_that_occurs(model, image, threshold, kind):
    processor = SegmentationImageProcessor(do_resize=False)
    masks = segment_image(model, processor, image)
    present = [index for index in range(3) if masks[index].any()]
    assert present
    if kind == "ours":
        segmenter = SegmentationPipeline(model, image_processor=processor)
    else:
        segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    (segments,) = segmenter([image])
    assert [segment["label"] for segment in segments] == [NAMES[index] for index in present]
    for segment, index in zip(segments, present, strict=True):
        assert np.array_equal(np.asarray(segment["mask"]) > 0, masks[index])
        if kind == "ours":
            scores = image_scores(model, processor, image)[index]
            assert segment["score"] == pytest.approx(scores[masks[index]].mean().item(), abs=1e-5)
        else:
            assert segment["score"] is None


def test_uncertainty_of_each_mask(model, image, threshold):
    model.config.calibration_temperature = 2.0
    try:
        processor = SegmentationImageProcessor(do_resize=False)
        labels, maps = uncertainty_maps(model, processor, image)
        logits = torch.logit(image_scores(model, processor, image)) / 2
    finally:
        model.config.calibration_temperature = 1.0
    assert torch.equal(labels, segment_image(model, processor, image))
    present = logits.sigmoid()
    torch.testing.assert_close(maps["confidence"], torch.where(labels, present, 1 - present), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps["probability_margin"], (2 * present - 1).abs(), rtol=1e-4, atol=1e-4)
    entropy = (torch.special.entr(present) + torch.special.entr(1 - present)) / np.log(2)
    torch.testing.assert_close(maps["entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_the_temperature_is_that_of_all_masks(model, image):
    """Labels that the model itself draws at a temperature of 2 give this temperature back."""
    processor = SegmentationImageProcessor(do_resize=False)
    torch.manual_seed(0)
    scores = (torch.logit(image_scores(model, processor, image)) / 2).sigmoid()
    calibration = Calibration(decision_of(model.config))
    references = torch.bernoulli(scores).byte()
    references[:, :5] = 255
    labels = calibration.add_image(segment_bands(model, processor, image), references, 255)
    assert torch.equal(labels, segment_image(model, processor, image))
    results = calibration.results()
    assert results["pixels"] == references[:, 5:].numel() and results["temperature"] == pytest.approx(2, rel=0.4)


def test_configs(model, tmp_path):
    assert model.config.is_multi_label and not model.config.is_binary and model.config.num_labels == 3
    assert label_map_classes(model.config) == dict(enumerate(NAMES))
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config.is_multi_label and again.config.palette == PALETTE
    more = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert more.config.is_multi_label and more.decode_head.classifier.out_channels == 5
    one = SegUperNetConfig(num_labels=1, problem_type=MULTI_LABEL)
    assert one.is_multi_label and not one.is_binary and one.num_labels == 1 and len(one.id2label) == 1
    assert SegUperNetConfig.from_dict(one.to_dict()).to_dict() == one.to_dict()
    decision = decision_of(one)
    assert decision.multi_label and decision.threshold == 0.5 and label_map_classes(one) == {0: "LABEL_0"}
    assert not decision_of(SegformerConfig(num_labels=3)).multi_label

    ordinary = small_model("upernet")
    ordinary.set_losses([{"name": "cross_entropy", "weight": 2.0}, {"name": "dice", "definition": "mmseg"}])
    ordinary.save_pretrained(tmp_path / "ordinary")
    again = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "ordinary", num_labels=3, problem_type=MULTI_LABEL, ignore_mismatched_sizes=True
    )
    assert again.config.losses == [{"name": "binary_cross_entropy", "weight": 2.0}, {"name": "dice"}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SegUperNetConfig(num_labels=3, problem_type=MULTI_LABEL, losses=["cross_entropy"]),
            "cross_entropy compares classes, and classes of a multi-label model are independent: use "
            "binary_cross_entropy",
        ),
        (
            lambda: SegUperNetConfig(num_labels=3, problem_type=MULTI_LABEL, losses=["dice", "ohem_cross_entropy"]),
            "ohem_cross_entropy compares classes",
        ),
        (
            lambda: SegUperNetConfig(
                num_labels=3, problem_type=MULTI_LABEL, losses=[{"name": "dice", "definition": "mmseg"}]
            ),
            "use dice with the definition standard in its place",
        ),
        (
            lambda: SegUperNetConfig(id2label={0: "a", 1: "b"}, binary=True, problem_type=MULTI_LABEL),
            "not both binary and multi-label",
        ),
        (lambda: SegMask2FormerConfig(problem_type=MULTI_LABEL), "seg_mask2former cannot be multi-label"),
        (lambda: SegmenterConfig(num_labels=3, problem_type=MULTI_LABEL), "neither binary nor multi-label"),
        (lambda: SegmenterConfig(num_labels=1), "use decoder_type='linear', or another head"),
    ],
)
def test_models_that_cannot_be_multi_label_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_metric_counts_each_class_on_its_own():
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 2, (2, 4, 3, 20, 30))
    references[0, 0, :3] = 255
    references[:, 2] = 0
    predictions[:, 2] = 0  # a class that is nowhere
    metric = MultiLabelIoU(3)
    metric.add_batch(predictions=predictions[:3] > 0, references=torch.tensor(references[:3]))
    other = MultiLabelIoU(3)
    other.add(prediction=predictions[3], reference=references[3])
    metric.merge(other)
    found = metric.compute()
    known = references != 255
    right = 0
    for index in range(2):
        mask = known[:, index]
        label, predicted = references[:, index][mask] == 1, predictions[:, index][mask] == 1
        hits = (label & predicted).sum()
        expected = {
            "iou": hits / (label | predicted).sum(),
            "dice": 2 * hits / (label.sum() + predicted.sum()),
            "precision": hits / predicted.sum(),
            "recall": hits / label.sum(),
            "accuracy": hits / label.sum(),
        }
        for name, value in expected.items():
            assert found[f"per_category_{name}"][index] == pytest.approx(value)
        right += (label == predicted).sum()
    assert all(np.isnan(found[f"per_category_{name}"][2]) for name in ("iou", "dice", "precision", "recall"))
    assert found["mean_iou"] == pytest.approx(found["per_category_iou"][:2].mean())
    assert found["overall_accuracy"] == pytest.approx((right + known[:, 2].sum()) / known.sum())


def test_metric_as_compute_metrics_and_its_errors():
    logits = torch.tensor([[2.0, -1], [-3, 0.5]])[None, :, :, None].expand(1, 2, 2, 2)
    labels = torch.tensor([[[[1, 1], [0, 0]], [[0, 0], [1, 1]]]])
    assert MultiLabelIoU(2)(EvalPrediction(logits, labels))["mean_iou"] == 1
    assert MultiLabelIoU(2, threshold=0.7)(EvalPrediction(logits, labels))["mean_iou"] == 0.5
    metric = MultiLabelIoU(2)
    masks = np.zeros((2, 4, 4), np.uint8)
    for prediction, reference, message in (
        (masks[0], masks, r"must be masks \(2, height, width\), got the shape \(4, 4\)"),
        (masks + 2, masks, "predictions hold 2: masks hold 0 and 1"),
        (masks, masks + 3, "references hold 3: masks hold 0 and 1"),
        (masks + 0.5, masks, "compare probabilities with a threshold"),
        (masks[:, :2], masks, "must have the same size"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.add(prediction=prediction, reference=reference)
    assert metric.confusion.sum() == 0
    with pytest.raises(ValueError, match="is a value of the masks"):
        MultiLabelIoU(2, ignore_index=1)


def test_augmentation_moves_all_masks_with_the_image():
    """The masks are those of the grey levels of the image, which they follow through every step."""
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 2, (12, 16)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    masks = np.stack([grey, 1 - grey, np.zeros_like(grey)])
    masks[2, :20] = 255
    augment = TrainingAugmentation(
        shortest_edge=96, ratio_range=(1.0, 1.0), crop_size=(64, 160), photometric_distortion=None, multi_label=True
    )
    for seed in range(4):
        sample = augment(np.repeat(200 * grey[..., None], 3, 2), masks, seed=seed)
        labels, values = sample["labels"], sample["pixel_values"]
        assert labels.shape == (3, 64, 160) and labels.dtype == torch.uint8
        inside = slice(0, 128)
        assert torch.equal(labels[0, :, inside] == 1, values[0, :, inside] > 0)
        assert torch.equal(labels[1, :, inside], 1 - labels[0, :, inside])
        assert (labels[:, :, 128:] == 255).all()  # padding counts for no class
        assert set(labels[2, :, inside].unique().tolist()) <= {0, 255}
    with pytest.raises(ValueError, match=r"masks must be uint8 \(num_labels, height, width\)"):
        augment(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))


def test_crops_with_one_class_only_are_drawn_again():
    augment = TrainingAugmentation(crop_size=(8, 8), cat_max_ratio=0.75, multi_label=True)
    both = torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert not augment._is_varied(both)  # nothing but background
    both[0, :, :4] = 1
    assert augment._is_varied(both)
    both[1] = 1
    assert not augment._is_varied(both)
    both[:, :, 4:] = 255
    assert not augment._is_varied(both)


def test_positive_weights_from_the_data(model):
    valid = np.array([[100, 100, 100, 100]])
    counts = ClassCounts(np.array([[50, 20, 0, 100]]), valid)
    classes = {"id2label": dict(enumerate("abcd")), "label2id": {name: index for index, name in enumerate("abcd")}}
    four = small_model("upernet", **classes, palette=None, problem_type=MULTI_LABEL)
    recipe = get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")
    for formula, expected in (("inverse_frequency", [1.0, 4.0, 0.0, 1.0]), ("auto", [1.0, 2.0, 0.0, 1.0])):
        weights = apply_losses(four, dataclasses.replace(recipe, class_weights=formula), lambda: counts)
        assert weights == expected
        assert four.config.losses == [{"name": "binary_cross_entropy", "positive_weights": expected}]
        four.set_losses(None)
    with pytest.raises(ValueError, match="no pixel of the training data has a class"):
        nothing = ClassCounts(np.zeros((1, 4), np.int64), valid)
        apply_losses(four, dataclasses.replace(recipe, class_weights="auto"), lambda: nothing)
    with pytest.raises(ValueError, match="positive_weights has 3 numbers, but the model has 4 classes"):
        apply_losses(four, dataclasses.replace(recipe, class_weights=(1.0, 2.0, 3.0)))


@pytest.fixture(scope="module", params=[True, False], ids=["bit planes", "class folders"])
def trained(request, tmp_path_factory):
    """A multi-label model trained by the command, and its data."""
    folder = tmp_path_factory.mktemp("multi-label")
    data = data_folder(folder / "data", request.param)
    small_model("segmenter", decoder_type="linear").save_pretrained(folder / "start")
    SegmentationImageProcessor(size={"shortest_edge": 96, "longest_edge": 384}).save_pretrained(folder / "start")
    words = ["--multi-label"] if request.param else []
    words += ["--max_steps", 2, "--losses", "binary_cross_entropy,dice", "--class-weights", "auto"]
    status, output = run(*options(data, folder / "out", folder / "start", *words, "--learning_rate", 0.01))
    assert status == 0, output
    assert "3 classes, multi-label" in output
    return data, folder / "out", request.param


def test_commands(trained, tmp_path):
    data, folder, planes = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    assert model.config.is_multi_label and model.config.id2label == dict(enumerate(NAMES))
    bce, dice = model.config.losses
    assert bce["name"] == "binary_cross_entropy" and len(bce["positive_weights"]) == 3 and dice == {"name": "dice"}
    results = json.loads((folder / "results.json").read_text())
    processor, metric = AutoImageProcessor.from_pretrained(folder), MultiLabelIoU(3)
    samples = load_segmentation_dataset(data, "validation", multi_label=planes or None)
    for sample in samples:
        metric.add(prediction=segment_image(model, processor, sample.image), reference=sample.labels)
    figures = metric.figures()
    for index, entry in enumerate(results["classes"]):
        assert entry["name"] == NAMES[index]
        for name in ("iou", "dice", "precision", "recall"):
            expected = figures[f"per_category_{name}"][index]
            assert entry[name] == (None if np.isnan(expected) else pytest.approx(expected, abs=2e-3))

    saved = tmp_path / "predictions"
    words = ["evaluate", "--model", folder, "--data", data, "--output", tmp_path / "r.json"]
    done = CliRunner().invoke(app, [*map(str, words), "--save-predictions", str(saved)])
    assert done.exit_code == 0 and "Precision" in done.output, done.output
    again = json.loads((tmp_path / "r.json").read_text())
    assert again["classes"] == results["classes"]
    assert again["data"]["multi_label"] == ("bit planes" if planes else "class folders")
    image = data / "images/validation/0.png"
    words = ["segment", image, "--model", folder, "--output", tmp_path / "drawn.png", "--label-maps", tmp_path / "maps"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    masks = segment_image(model, processor, image).numpy()
    for index in range(3):
        share = f"{100 * masks[index].mean():.1f} %  {NAMES[index]}"
        assert (share in done.output) == bool(masks[index].any())
    bits = np.asarray(Image.open(tmp_path / "maps" / "0.png"))
    for index in range(3):
        assert (((bits >> index) & 1) != masks[index]).mean() < 1e-3  # the command optimizes the model
    assert np.array_equal(np.asarray(Image.open(saved / "0.png")), bits)
    words = ["segment", image, "--model", folder, "--colour-maps", tmp_path / "colours"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    colours = np.asarray(Image.open(tmp_path / "colours" / "0.png").convert("RGB")).astype(int)
    palette, present = np.array(distinct_colours(3)), (bits[..., None] >> np.arange(3)) & 1
    mean = present @ palette / np.maximum(present.sum(-1, keepdims=True), 1)
    assert np.abs(colours - mean).max() <= 1
    words = ["autolabel", "--model", folder, "--images", data / "images", "--output", tmp_path / "labelled"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 1 and "autolabel needs a model with one class for each pixel" in done.output

    assert "multi_label=True, threshold=model.config.threshold)" in str(model_card(folder))

    done = CliRunner().invoke(app, ["check-data", str(data), *(["--multi-label"] if planes else [])])
    assert done.exit_code == 0 and "moving" in done.output and "never" not in done.output, done.output
    pixels = np.mean([sample.labels[0] == 1 for sample in samples])
    assert f"{100 * pixels:.2f} %" in done.output


def test_drawings_of_masks(image):
    masks = np.zeros((3, 80, 100), bool)
    masks[0, :40], masks[1, 20:60] = True, True
    drawn = np.asarray(draw_segmentation(image, masks, dict(enumerate(NAMES)), PALETTE))[:, :100].astype(float)
    own = np.asarray(image).astype(float)
    for rows, colour in ((slice(0, 20), [250, 0, 0]), (slice(20, 40), [125, 125, 0]), (slice(40, 60), [0, 250, 0])):
        np.testing.assert_allclose(drawn[rows], 0.45 * own[rows] + 0.55 * np.array(colour), atol=1)
    assert np.array_equal(drawn[60:], own[60:])  # no class
    assert np.array_equal(np.unique(np.asarray(bit_plane_image(masks))), [0, 1, 2, 3])
    assert np.asarray(bit_plane_image(np.ones((16, 2, 2), bool))).max() == 65535
    with pytest.raises(ValueError, match="at most 16 classes as bits, but the model has 17"):
        bit_plane_image(np.ones((17, 2, 2), bool))


def test_models_and_data_of_different_kinds_are_named(model, tmp_path):
    planes = load_segmentation_dataset(data_folder(tmp_path / "planes", planes=True), "validation", multi_label=True)
    processor = SegmentationImageProcessor(do_resize=False)
    ordinary = small_model("upernet", **CLASSES, palette=PALETTE).eval()
    with pytest.raises(ValueError, match="the data set is multi-label, but the model has one class for each pixel"):
        evaluate_segmentation(ordinary, processor, planes)
    for path in (tmp_path / "planes").glob("masks/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) % 3).save(path)
    indices = load_segmentation_dataset(tmp_path / "planes", "validation")
    with pytest.raises(ValueError, match="the model is multi-label, but the data set has one class for each pixel"):
        evaluate_segmentation(model, processor, indices)
