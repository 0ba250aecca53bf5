# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps that a model is sure of, as training data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_command import options, own_data, run
from training_cases import small_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import SegMask2FormerConfig, packaged_model_path
from segtransformers.cli import app
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.checking import class_counts
from segtransformers.datasets.scenes import draw_scene
from segtransformers.image_processing import decision_of
from segtransformers.inference import (
    InferenceProtocol,
    image_scores,
    segment_image,
    segment_with_confidence,
)
from segtransformers.training import JoinedDataset
from segtransformers.training.sampling import MixedSampling, RareClassSampling


@pytest.fixture(scope="module")
def packaged():
    folder = packaged_model_path()
    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize("protocol", [None, InferenceProtocol(flip=True), InferenceProtocol(blend="cosine")], ids=str)
def test_confidence_is_the_largest_probability(packaged, protocol):
    image = Image.fromarray(draw_scene(3, (150, 200))[0])
    scores = image_scores(*packaged, image, protocol)
    labels, confidence = segment_with_confidence(*packaged, image, protocol)
    torch.testing.assert_close(confidence, scores.amax(0))
    assert torch.equal(labels, segment_image(*packaged, image, protocol))


@pytest.mark.parametrize("protocol", [None, InferenceProtocol(flip=True)], ids=str)
def test_confidence_of_sums_over_queries(packaged, protocol):
    model = small_model("mask2former").eval()
    image = Image.fromarray(draw_scene(3, (64, 96))[0])
    views = [image] if protocol is None else [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    labels, confidence = segment_with_confidence(model, packaged[1], image, protocol)
    expected = []
    for view in views:
        with torch.no_grad():
            logits = model(**packaged[1](view, return_tensors="pt")).logits[0]
        shares = logits / logits.sum(0).clamp(min=1)
        expected.append(shares if view is image else shares.flip(-1))
    expected = torch.stack(expected).mean(0).gather(0, labels[None])[0]
    torch.testing.assert_close(confidence, expected)
    # one query that is sure of its class gives a confidence near 1, where the softmax over 150 classes is at most 0.02
    sums = torch.full((150, 1, 1), 1e-4)
    sums[7] = 0.98
    decision = decision_of(SegMask2FormerConfig(num_labels=150))
    sure = decision.confidence(torch.full((1, 1), 7), decision.confidences(sums))
    assert sure.item() == pytest.approx(0.98, abs=0.02) and decision.probabilities(sums)[7].item() < 0.02


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for index in range(3):
        path = folder / ("below" if index else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(index, (96, 128))[0]).save(path)
    return folder


def command(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["autolabel", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_a_folder_of_labels(packaged, images, tmp_path):
    output = tmp_path / "labelled"
    words = ["--model", "packaged", "--images", images, "--output", output, "--min-confidence", 0.9]
    status, printed = command(*words)
    assert status == 0 and "3 images, " in printed, printed
    manifest = json.loads((output / "manifest.json").read_text())
    data = load_segmentation_dataset(output, split="train")
    assert data.id2label == packaged[0].config.id2label and len(data) == 3
    for sample in data:
        labels, confidence = segment_with_confidence(*packaged, sample.image)
        expected = labels.masked_fill(confidence < 0.9, 255).numpy()
        assert np.mean(sample.labels == expected) > 0.999  # the command's model is optimized
    shares = [entry["labelled"] for entry in manifest["images"].values()]
    assert min(shares) > 0 and np.mean([(sample.labels < 255).mean() for sample in data]) == pytest.approx(
        np.mean(shares), abs=1e-3
    )

    (output / "masks/0.png").unlink()  # an image that is done is not labelled again
    Image.fromarray(draw_scene(9, (96, 128))[0]).save(images / "more.png")
    status, printed = command(*words)
    assert status == 0 and "3 images in" in printed and not (output / "masks/0.png").exists()
    assert (output / "masks/more.png").exists()
    status, printed = command(*words[:-1], 0.5)
    assert status == 1 and "was labelled with another min_confidence" in printed


def test_more_images_of_the_same_names(images, tmp_path):
    words = ["--model", "packaged", "--output", tmp_path / "out", "--images"]
    assert command(*words, images / "0.png")[0] == 0
    other = tmp_path / "more/0.bmp"
    other.parent.mkdir()
    Image.fromarray(draw_scene(7, (50, 60))[0]).save(other)
    status, printed = command(*words, other.parent)
    assert status == 0 and "2 images in" not in printed and "2 images, " in printed, printed
    assert (
        Image.open(tmp_path / "out/masks/0-2.png").size == Image.open(tmp_path / "out/images/0-2.bmp").size == (60, 50)
    )
    status, printed = command(*words[:2], "--output", tmp_path / "none", "--images", tmp_path / "missing")
    assert status == 1 and "there is no file or folder" in printed and not (tmp_path / "none").exists()
    (tmp_path / "out/manifest.json").write_text((tmp_path / "out/manifest.json").read_text().replace("labelled", "x"))
    assert "manifest.json is damaged" in command(*words, other.parent)[1]


def test_images_that_cannot_be_read_are_named_and_the_others_labelled(images, tmp_path):
    (images / "broken.png").write_bytes(b"no image")
    status, printed = command("--model", "packaged", "--images", images, "--output", tmp_path / "out")
    assert status == 1 and "broken.png" in printed and "1 of 4 images failed" in printed
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    status, printed = command("--model", "packaged", "--images", images, "--output", tmp_path / "other")
    assert status == 1 and "is not empty: choose another folder" in printed


def test_training_takes_both(tmp_path):
    data, more = own_data(tmp_path / "data"), own_data(tmp_path / "more", train=5, validation=0)
    small_model("segmenter").save_pretrained(tmp_path / "start")
    AutoImageProcessor.from_pretrained(packaged_model_path()).save_pretrained(tmp_path / "start")
    words = ["--max_steps", 1, "--eval_strategy", "no", "--pseudo-labels", more, "--pseudo-weight", 0.5]
    status, output = run(*options(data, tmp_path / "out", tmp_path / "start", *words))
    assert status == 0, output
    status, output = run(*options(data, tmp_path / "other", tmp_path / "start", *words[:-1], "inf"))
    assert status == 2 and "--pseudo-weight" in output
    (more / "classes.txt").write_text("a\nb\nc")
    status, output = run(*options(data, tmp_path / "other", tmp_path / "start", *words))
    assert status == 1 and "has the classes ['a', 'b', 'c'], not ['nature', 'built', 'moving']" in output


def test_joined_samples_and_their_weight(tmp_path):
    parts = [
        load_segmentation_dataset(own_data(tmp_path / name, train=count, validation=0), split="train")
        for name, count in (("a", 3), ("b", 5))
    ]
    joined = JoinedDataset(parts)
    assert len(joined) == 8 and [sample.name for sample in joined] == joined.names == parts[0].names + parts[1].names
    for first in (3, RareClassSampling(class_counts(parts[0]), temperature=1.0)):
        sampling = MixedSampling(first, 5, weight=0.5)
        drawn = [sampling.sample((0, 0, index), index) for index in range(4000)]
        assert np.mean(np.array(drawn) >= 3) == pytest.approx(2.5 / 5.5, abs=0.03)
        assert set(drawn) == set(range(8)) and len(sampling) == sampling.samples == 8
