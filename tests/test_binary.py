# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Binary models: one class against the background."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_command import options, own_data, run
from torch.nn import functional as F
from training_cases import small_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerConfig, pipeline
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor, SegUperNetConfig
from segtransformers.cli import app
from segtransformers.image_processing import decision_of, label_map_classes
from segtransformers.inference import InferenceProtocol, SegmentationPipeline, image_scores, segment_image
from segtransformers.training import get_recipe
from segtransformers.training.loss_settings import apply_losses

CRACK = {"id2label": {0: "wall", 1: "crack"}, "label2id": {"wall": 0, "crack": 1}, "palette": [[0, 9, 0], [255, 0, 0]]}


@pytest.fixture(scope="module")
def model():
    return small_model("upernet", **CRACK, binary=True).eval()


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))


def test_loss_and_labels(model):
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(2, (2, 64, 64))
    labels[0, :9] = 255
    with torch.no_grad():
        outputs = model(images, labels=labels)
    assert outputs.logits.shape == (2, 1, 64, 64)
    terms = F.binary_cross_entropy_with_logits(outputs.logits[:, 0], labels.clamp(max=1).float(), reduction="none")
    torch.testing.assert_close(outputs.loss, (terms * (labels != 255)).sum() / labels.numel())
    with pytest.raises(ValueError, match="labels contain the values"):
        model(images, labels=labels + 1)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_a_pixel_belongs_to_the_class_above_the_threshold(model, image, threshold):
    processor = SegmentationImageProcessor(size={"height": 80, "width": 100})
    model.config.threshold = threshold
    scores = image_scores(model, processor, image)
    shift = scores.quantile(0.6).item()  # untrained scores lie close together
    model.config.threshold = shift
    expected = (scores[0] > shift).long()
    assert 0 < expected.float().mean() < 1
    assert torch.equal(segment_image(model, processor, image), expected)
    flipped = InferenceProtocol(flip=True)
    views = image_scores(model, processor, image, flipped)
    assert torch.equal(segment_image(model, processor, image, flipped), (views[0] > shift).long())
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(80, 100)], threshold=shift)
    assert torch.equal(labels, expected)
    background, segment = SegmentationPipeline(model, image_processor=processor)(image)
    assert background["label"] == "wall" and segment["label"] == "crack"
    assert np.array_equal(np.asarray(segment["mask"]) > 0, expected.numpy() > 0)
    model.config.threshold = 0.5


def test_configs(model, tmp_path):
    assert model.config.num_labels == 1 and label_map_classes(model.config) == {0: "wall", 1: "crack"}
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config
    assert again.binary and again.num_labels == 1 and again.palette == CRACK["palette"]
    more = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert more.config.num_labels == 3 and not more.config.binary
    assert more.decode_head.classifier.out_channels == 3

    alone = {"id2label": {0: "crack"}, "label2id": {"crack": 0}, "palette": [[255, 0, 0]]}
    config = small_model("upernet", **alone).config
    assert config.binary and config.id2label == {0: "background", 1: "crack"} and len(config.palette) == 2
    config = SegUperNetConfig(num_labels=1)
    assert config.binary and config.id2label == {0: "background", 1: "LABEL_1"} and config.num_labels == 1
    assert SegUperNetConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="a binary model has two classes, background and object"):
        SegUperNetConfig(num_labels=3, binary=True)

    queries = small_model("mask2former", **alone)
    assert decision_of(queries.config).threshold is None and label_map_classes(queries.config) == {0: "crack"}
    stock = SegformerConfig(num_labels=1)
    assert decision_of(stock).threshold == 0.5 and label_map_classes(stock) == {0: "background", 1: "LABEL_0"}


def test_wrong_thresholds_are_named():
    for threshold in (0, 1, 1.5):
        with pytest.raises(ValueError, match="threshold must be a probability between 0 and 1"):
            SegUperNetConfig(num_labels=1, threshold=threshold)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A binary model trained by the command, and its data: everything built or moving against nature."""
    folder = tmp_path_factory.mktemp("binary")
    data = own_data(folder / "data")
    for path in data.glob("masks/*/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    (data / "classes.txt").write_text("nature\nmade")
    small_model("segmenter", decoder_type="linear").save_pretrained(folder / "start")
    SegmentationImageProcessor(size={"shortest_edge": 96, "longest_edge": 384}).save_pretrained(folder / "start")
    words = ["--binary", "--max_steps", 1, "--losses", "binary_cross_entropy,dice", "--learning_rate", 0.001]
    status, output = run(*options(data, folder / "out", folder / "start", *words))
    assert status == 0, output
    return data, folder / "out"


def test_training_and_evaluation(trained, tmp_path):
    data, folder = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.config.id2label == {0: "nature", 1: "made"}
    assert model.config.losses == [{"name": "binary_cross_entropy"}, {"name": "dice"}]
    results = json.loads((folder / "results.json").read_text())
    assert [entry["name"] for entry in results["classes"]] == ["nature", "made"]
    processor = AutoImageProcessor.from_pretrained(folder)
    counts = np.zeros((2, 2))
    for path in sorted((data / "images/validation").iterdir()):
        labels = segment_image(model.eval(), processor, path).numpy()
        truth = np.asarray(Image.open(data / "masks/validation" / path.name))
        counts += np.histogram2d(truth.ravel(), labels.ravel(), bins=[[0, 1, 2], [0, 1, 2]])[0]
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert results["mean_iou"] == pytest.approx((counts.diagonal() / union).mean(), abs=1e-3)
    words = ["evaluate", "--model", str(folder), "--data", str(data), "--output", str(tmp_path / "results.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "made" in done.output, done.output


def test_segment_command_and_transformers_pipeline(trained, tmp_path):
    data, folder = trained
    image = next((data / "images/validation").iterdir())
    words = ["segment", str(image), "--model", str(folder), "--output", str(tmp_path / "drawn.png")]
    done = CliRunner().invoke(app, [*words, "--label-maps", str(tmp_path / "labels")])
    assert done.exit_code == 0, done.output
    assert "nature" in done.output or "made" in done.output
    labels = np.asarray(Image.open(tmp_path / "labels" / f"{image.stem}.png"))
    assert set(np.unique(labels)) <= {0, 1}
    for segment in pipeline("image-segmentation", model=str(folder))(str(image)):
        index = ["nature", "made"].index(segment["label"])
        assert np.array_equal(np.asarray(segment["mask"]) > 0, labels == index)


def test_data_or_heads_that_are_not_binary_are_named(tmp_path):
    data = own_data(tmp_path / "data")
    small_model("mask2former").save_pretrained(tmp_path / "queries")
    SegmentationImageProcessor().save_pretrained(tmp_path / "queries")
    status, output = run(*options(data, tmp_path / "out", tmp_path / "queries", "--binary", "--max_steps", 1))
    assert status == 1 and "a binary model needs data of two classes, background and object, not 3" in output
    for path in data.glob("masks/*/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    (data / "classes.txt").write_text("nature\nmade")
    status, output = run(*options(data, tmp_path / "out", tmp_path / "queries", "--binary", "--max_steps", 1))
    assert status == 1 and "a model of seg_mask2former cannot be binary" in output


def test_losses_and_weights_of_one_logit(tmp_path):
    with pytest.raises(ValueError, match="ohem_cross_entropy compares classes, and a binary model has one logit"):
        SegUperNetConfig(num_labels=1, losses=["dice", "ohem_cross_entropy"])
    model = small_model("upernet")
    model.set_losses([{"name": "cross_entropy", "weight": 2.0, "class_weights": [1.0] * 10}, "dice"])
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=1, ignore_mismatched_sizes=True)
    assert again.config.losses == [{"name": "binary_cross_entropy", "weight": 2.0}, {"name": "dice"}]

    recipe = get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")
    again.set_losses(None)
    apply_losses(again, dataclasses.replace(recipe, class_weights=(0.5, 2.0)))
    assert again.config.losses == [{"name": "binary_cross_entropy", "positive_weights": [4.0]}]
    for changes, message in (
        ({"class_weights": (1.0, 2.0, 3.0)}, "must be two numbers above 0, background first"),
        ({"class_weights": (0.0, 1.0)}, "must be two numbers above 0, background first"),
        ({"class_weights": (1.0, 2.0), "losses": ("dice",)}, "need the loss binary_cross_entropy"),
        ({"losses": ("cross_entropy",)}, "cross_entropy compares classes"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_losses(again, dataclasses.replace(recipe, **changes))
