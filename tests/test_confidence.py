# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Probabilities in bands of rows, measures of uncertainty, and temperature scaling."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_evaluation import environment, folder, interrupted, packaged  # noqa: F401, fixtures
from test_seg_upernet import small_head
from training_cases import small_model
from transformers import AutoConfig, AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor, SegUperNetConfig, packaged_model_path
from segtransformers.cli import app
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import draw_scene
from segtransformers.evaluation import Calibration, evaluate_segmentation
from segtransformers.image_processing import Decision, decision_of
from segtransformers.inference import (
    InferenceProtocol,
    SegmentedBand,
    image_scores,
    segment_bands,
    segment_image,
    segment_with_confidence,
    uncertainty_maps,
)

SOFTMAX, BINARY, SUMS = Decision(), Decision(threshold=0.3), Decision(are_query_sums=True)
MULTI = Decision(threshold=0.5, multi_label=True)


@pytest.fixture
def image():
    return Image.fromarray(draw_scene(3, (150, 200))[0])


@pytest.mark.parametrize("protocol", [None, InferenceProtocol(flip=True, blend="cosine")], ids=str)
def test_bands_are_the_scores_of_the_image(packaged, image, protocol):  # noqa: F811
    scores = image_scores(*packaged, image, protocol)
    bands = list(segment_bands(*packaged, image, protocol))
    assert torch.equal(torch.cat([band.probabilities for band in bands], dim=1), scores)
    assert torch.equal(torch.cat([band.labels for band in bands]), segment_image(*packaged, image, protocol))
    assert [band.rows.start for band in bands[1:]] == [band.rows.stop for band in bands[:-1]]
    assert bands[-1].rows.stop == 150
    _, maps = uncertainty_maps(*packaged, image, protocol=protocol)
    first, second = scores.topk(2, dim=0).values
    torch.testing.assert_close(maps["confidence"], first)
    torch.testing.assert_close(maps["probability_margin"], first - second)
    entropy = torch.distributions.Categorical(probs=scores.movedim(0, -1)).entropy() / math.log(len(scores))
    torch.testing.assert_close(maps["entropy"], entropy)
    with pytest.raises(ValueError, match="measures must be among confidence, entropy"):
        uncertainty_maps(*packaged, image, ["variance"])


def test_several_views_held_view_by_view_give_the_same_confidence():
    """Views that are run whole would take more memory side by side than the scores of the image."""
    model, processor = small_model("mask2former").eval(), SegmentationImageProcessor(do_resize=False)
    image = Image.fromarray(draw_scene(3, (64, 96))[0])
    protocol = InferenceProtocol(scales=(1.0, 1.25), flip=True)
    labels, confidence = segment_with_confidence(model, processor, image, protocol)
    bands = list(segment_bands(model, processor, image, protocol))
    assert torch.equal(labels, torch.cat([band.labels for band in bands]))
    torch.testing.assert_close(confidence, torch.cat([band.confidence() for band in bands]))


@pytest.mark.parametrize("decision", [SOFTMAX, BINARY, SUMS], ids=["softmax", "binary", "sums"])
def test_a_temperature_keeps_the_order_of_classes(decision):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1 if decision is BINARY else 6, 20, 30), generator=generator) * 3
    if decision is SUMS:
        logits = logits.sigmoid() * torch.rand((1, 20, 30), generator=generator) / 2
    plain = SegmentedBand.of_logits(slice(0, 20), [logits], decision)
    assert plain.probabilities is plain.uncalibrated
    for temperature in (0.5, 1 + 1e-6, 3.0):
        band = SegmentedBand.of_logits(slice(0, 20), [logits], replace(decision, temperature=temperature))
        assert torch.equal(band.labels, plain.labels)
        if decision is not BINARY:
            assert torch.equal(band.probabilities.argsort(0), plain.probabilities.argsort(0))
        if decision is not SUMS:
            torch.testing.assert_close(
                band.probabilities, decision.probabilities(logits / temperature), rtol=0, atol=1e-4
            )
        total = band.decision.outcomes(band.probabilities).sum(0)
        torch.testing.assert_close(total, torch.ones_like(total))
        if temperature == 1 + 1e-6:  # continuous at 1
            torch.testing.assert_close(band.probabilities, plain.probabilities)
        else:
            assert (band.entropy().mean() > plain.entropy().mean()) == (temperature > 1)


def test_measures_of_a_binary_model():
    logits = torch.tensor([[[0.0, 10.0, -10.0, math.log(0.4 / 0.6)]]])
    band = SegmentedBand.of_logits(slice(0, 1), [logits], BINARY)
    assert band.labels.tolist() == [[1, 1, 0, 1]]  # the threshold is 0.3
    assert band.confidence()[0].tolist() == pytest.approx([0.5, 1, 1, 0.4], abs=1e-4)
    assert band.entropy()[0, :3].tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    assert band.probability_margin()[0].tolist() == pytest.approx([0, 1, 1, 0.2], abs=1e-3)


def bands_of(logits: torch.Tensor, decision: Decision) -> list[SegmentedBand]:
    rows = [slice(start, start + 20) for start in range(0, logits.shape[1], 20)]
    return [SegmentedBand.of_logits(own, [logits[:, own]], decision) for own in rows]


def drawn_labels(true: torch.Tensor) -> torch.Tensor:
    """Draw labels `(height, width)` from probabilities `(classes, height, width)`."""
    drawn = true.flatten(1).T.multinomial(1, generator=torch.Generator().manual_seed(1))
    return drawn.view(true.shape[1:])


@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.5, 20.0])
@pytest.mark.parametrize("decision", [SOFTMAX, BINARY, SUMS, MULTI], ids=["softmax", "binary", "sums", "multi"])
def test_the_temperature_of_logits_is_found(decision, temperature):
    """Labels are drawn from known probabilities, and the logits are those of another temperature."""
    generator = torch.Generator().manual_seed(0)
    spread = 0.6 if temperature == 20 else 1.5  # probabilities of all logits are numbers of float32
    true = torch.randn((2 if decision in (BINARY, MULTI) else 5, 100, 300), generator=generator).mul(spread).softmax(0)
    labels = drawn_labels(true)
    logits = true.log() * temperature
    if decision is SUMS:
        logits = logits.softmax(0)
    elif decision in (BINARY, MULTI):
        logits = logits[1:] - logits[:1]
    labels[:, :10] = 255
    if decision is MULTI:  # a second class that is the opposite of the first one
        logits = torch.cat([logits, -logits])
        labels = torch.stack([labels, torch.where(labels == 255, 255, 1 - labels)])
    calibration, bands = Calibration(decision), bands_of(logits, decision)
    found = calibration.add_image(bands, labels, 255)
    assert torch.equal(found, torch.cat([band.labels for band in bands], dim=-2))
    results = calibration.results()
    assert results["temperature"] == pytest.approx(temperature, rel=0.06)
    assert results["pixels"] == 29_000 * (2 if decision is MULTI else 1) and "reason" not in results
    assert results["nll_after"] <= results["nll_before"] and results["ece_after"] < 0.02
    assert (results["ece_before"] > 0.08) == (temperature != 1)
    confidence = torch.cat([band.confidence() for band in bands], dim=-2)[..., 10:].flatten().double()
    hits, bins = (found == labels)[..., 10:].flatten().double(), (confidence * 15).long().clamp(max=14)
    error = sum((hits - confidence)[bins == index].sum().abs().item() for index in range(15)) / len(hits)
    assert results["ece_before"] == pytest.approx(error, abs=1e-9)
    after = replace(decision, temperature=results["temperature"])
    scaled = torch.cat([band.confidence() for band in bands_of(logits, after)], dim=-2)[..., 10:].flatten().double()
    bins = (scaled * 15).long().clamp(max=14)
    error = sum((hits - scaled)[bins == index].sum().abs().item() for index in range(15)) / len(hits)
    assert results["ece_after"] == pytest.approx(error, abs=1e-4)


def test_a_temperature_beyond_the_limits_is_refused():
    logits = torch.randn((5, 40, 50), generator=torch.Generator().manual_seed(0))
    for labels, reason in (
        (logits.argmax(0), "below 0.01, because 100.00 % of the sampled pixels are predicted correctly"),
        (logits.argmin(0), "above 100, because the probabilities say nothing about these labels"),
    ):
        calibration = Calibration(SOFTMAX)
        calibration.add_image(bands_of(logits, SOFTMAX), labels, 255)
        results = calibration.results()
        assert results["temperature"] is results["ece_after"] is results["nll_after"] is None
        assert reason in results["reason"] and results["ece_before"] > 0
    with pytest.raises(ValueError, match="no pixel of the data has a label"):
        Calibration(SOFTMAX).results()
    with pytest.raises(ValueError, match="damaged"):
        Calibration(SOFTMAX).add_packed(calibration.packed()[:100])


def test_large_logits_of_a_binary_model_are_calibrated_alike():
    """A sigmoid is rounded to 1 for a logit of 17, but not to 0 for one of -17: both have one confidence."""
    logits = torch.tensor([[[30.0, -30.0, 60.0, -60.0]]])
    for decision in (replace(BINARY, temperature=10.0), replace(MULTI, temperature=10.0)):
        band = SegmentedBand.of_logits(slice(0, 1), [logits], decision)
        assert band.confidence().flatten().tolist() == pytest.approx(torch.tensor([3, 3, 6, 6]).sigmoid().tolist())


def test_the_temperature_in_the_config(tmp_path):
    config = small_head(calibration_temperature=1.7)
    config.save_pretrained(tmp_path)
    assert decision_of(SegUperNetConfig.from_pretrained(tmp_path)).temperature == 1.7
    assert SegUperNetConfig.from_pretrained(tmp_path, num_labels=3).calibration_temperature == 1
    with pytest.raises(ValueError, match="calibration_temperature must be a positive number"):
        small_head(calibration_temperature=0.0)
    assert decision_of(SegformerConfig()).temperature == 1


def test_command(folder, packaged, tmp_path):  # noqa: F811
    """Labels and mean IoU stay the same, and the error of a sharpened model falls."""
    copy, (model, processor) = tmp_path / "model", packaged
    shutil.copytree(packaged_model_path(), copy)
    model = AutoModelForSemanticSegmentation.from_pretrained(copy).eval()
    with torch.no_grad():
        for parameter in model.decode_head.classifier.parameters():
            parameter *= 2.5
    model.save_pretrained(copy)
    words = ["evaluate", "--model", copy, "--data", folder, "--device", "cpu", "--output", tmp_path / "results.json"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--calibrate")])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["calibration"]
    data = load_segmentation_dataset(folder, "validation")
    plain = evaluate_segmentation(model, processor, data)
    assert "calibration" not in plain and plain["classes"] == results["classes"]
    assert found["ece_after"] < found["ece_before"] and 2 < found["temperature"] < 4
    assert f"temperature {found['temperature']:.2f}, saved in {copy / 'config.json'}: expected calibr" in done.stdout
    assert AutoConfig.from_pretrained(copy).calibration_temperature == found["temperature"]

    calibrated = AutoModelForSemanticSegmentation.from_pretrained(copy).eval()
    labels, confidence = segment_with_confidence(calibrated, processor, data[1].image)
    scores = image_scores(model, processor, data[1].image)
    assert torch.equal(labels, segment_image(model, processor, data[1].image))
    assert torch.equal(image_scores(calibrated, processor, data[1].image), scores)
    power = scores.double() ** (1 / found["temperature"])
    torch.testing.assert_close(confidence.double(), (power / power.sum(0)).amax(0), rtol=1e-4, atol=1e-5)
    evaluated = evaluate_segmentation(calibrated, processor, data, calibrate=True)
    assert evaluated["model"] == results["model"]
    again = evaluated["calibration"]
    assert again["temperature_before"] == again["temperature"] == found["temperature"]
    assert again["ece_before"] == pytest.approx(found["ece_after"])


def test_the_packaged_model_and_a_missing_minimum_are_refused(folder, tmp_path, monkeypatch):  # noqa: F811
    """The package stays as it is, and results without a temperature are written."""
    before = (packaged_model_path() / "config.json").read_bytes()
    output = tmp_path / "results.json"
    words = ["evaluate", "--data", folder, "--device", "cpu", "--output", output, "--calibrate", "--limit", 1]

    def run(model):
        return CliRunner().invoke(app, [str(word) for word in (*words, "--model", model)])

    done = run(packaged_model_path())
    assert done.exit_code == 1 and "part of the installed package: copy the folder" in done.stderr
    assert not output.exists()
    copy = shutil.copytree(packaged_model_path(), tmp_path / "model")
    monkeypatch.setattr("segtransformers.evaluation.calibration.MOST", 0.02)  # all temperatures are too low
    done = run(copy)
    assert done.exit_code == 1 and "error: --calibrate: the best temperature is above 0.02" in done.stderr
    assert done.stderr.rstrip().endswith("No temperature was saved")
    assert json.loads(output.read_text())["calibration"]["temperature"] is None
    for config in (packaged_model_path() / "config.json", copy / "config.json"):
        assert config.read_bytes() == before


def test_interrupted_calibrations_continue(folder, packaged, tmp_path):  # noqa: F811
    data = load_segmentation_dataset(folder, "validation")
    expected = evaluate_segmentation(*packaged, data, calibrate=True)
    interrupted(*packaged, data, after=3, resume_log=tmp_path / "log", calibrate=True)
    found = evaluate_segmentation(*packaged, data, resume_log=tmp_path / "log", resume=True, calibrate=True)
    assert found["calibration"] == pytest.approx(expected["calibration"], rel=1e-9)


def test_a_model_of_transformers_is_calibrated(tmp_path, packaged, image):  # noqa: F811
    config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8, num_labels=4)
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(config).eval()
    labels, confidence = segment_with_confidence(model, packaged[1], image)
    model.config.calibration_temperature = 4.0
    model.save_pretrained(tmp_path)
    loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    same, softer = segment_with_confidence(loaded, packaged[1], image)
    assert torch.equal(same, labels) and (softer < confidence).all()


@pytest.mark.slow  # two more processes that import torch, on top of what the sums of one process show
def test_two_processes_find_the_temperature_of_one(folder, packaged, tmp_path):  # noqa: F811
    data = load_segmentation_dataset(folder, "validation")
    expected = evaluate_segmentation(*packaged, data, calibrate=True)["calibration"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    model = shutil.copytree(packaged_model_path(), tmp_path / "model")  # the temperature is written into it
    words = ["segtransformers", "evaluate", "--model", model, "--data", folder, "--device", "cpu"]
    output = tmp_path / "results.json"
    command = [*launch, *words, "--output", output, "--calibrate"]
    done = subprocess.run([str(word) for word in command], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "is no folder" not in done.stderr, done.stderr
    assert json.loads(output.read_text())["calibration"] == pytest.approx(expected, rel=1e-6)
