# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Features of a frozen ViT, cached on disk for training."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_command import run
from training_cases import small_model

from segtransformers import PlainViTBackbone, PlainViTConfig, SegLinearConfig, SegLinearForSemanticSegmentation
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import SCENE_CLASSES, write_scenes
from segtransformers.training import TrainingAugmentation, TrainingDataset, collate, freeze_trunk, get_recipe
from segtransformers.training import feature_cache as module
from segtransformers.training.feature_cache import FEATURES, cache_features, cache_key, use_cached_features

CROP = (64, 64)


def backbone_config(**changes) -> PlainViTConfig:
    fields = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "out_features": ["stage2", "stage3"]}
    return PlainViTConfig(trunk="vit_tiny_patch16_224", pretrain_image_size=64, **{**fields, **changes})


def linear_model(**changes) -> SegLinearForSemanticSegmentation:
    torch.manual_seed(0)
    classes = dict(enumerate(SCENE_CLASSES))
    config = SegLinearConfig(
        backbone_config=backbone_config(**changes),
        id2label=classes,
        label2id={name: index for index, name in classes.items()},
        classifier_dropout=0.0,
    )
    network = SegLinearForSemanticSegmentation(config)
    freeze_trunk(network)
    return network.train()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 5), ("validation", 2)):
        write_scenes(folder, count, size=(64, 96), split=split)
    return folder


@pytest.fixture
def data(folder):
    recipe = get_recipe("dinov2-linear")
    augment = TrainingAugmentation.from_recipe(recipe, crop_size=CROP)
    return TrainingDataset(load_segmentation_dataset(str(folder), "train"), augment, seed=3, repeat=2)


def test_samples_and_logits_are_those_without_a_cache_until_the_versions_repeat(data, tmp_path):
    network, plain = linear_model(), linear_model()
    lines = []
    cached = cache_features(network, data, 4, folder=tmp_path, announce=lines.append)
    assert len(cached) == len(data) == 10 and network.training
    # a pass takes the versions of its epoch in the plain data with one repetition
    single = TrainingDataset(data.data, data.augment, data.seed)
    for epoch, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cached.set_epoch(epoch)
        single.set_epoch(2 * epoch + second)
        batch = collate([cached[5 * second + index] for index in range(5)])
        expected = collate([single[index] for index in range(5)])
        assert torch.equal(batch["labels"], expected["labels"])
        assert batch[FEATURES].dtype == torch.float16 and batch[FEATURES].shape == (5, 2, 32, 4, 4)
        ours, theirs = network(**batch), plain(**expected)
        assert ours.logits.shape == theirs.logits.shape
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0.02)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=0.01, atol=0)
    first = [cached[index] for index in range(5)]
    cached.set_epoch(3)
    assert all(torch.equal(a[FEATURES], cached[index][FEATURES]) for index, a in enumerate(first))
    assert "20 versions (5 images x 4), 123 kB" in lines[0] and "after 4 passes over the images they repeat" in lines[1]


def test_the_model_runs_its_backbone_in_evaluation_and_after_undo(data, tmp_path):
    network, images = linear_model(), torch.randn(2, 3, 64, 64)
    plain = linear_model().eval()
    names = list(network.state_dict())
    undo = use_cached_features(network)
    features = torch.zeros(2, 2, 32, 4, 4, dtype=torch.float16)
    assert network(images, cached_features=features).logits.std() == 0
    network.eval()
    plain.load_state_dict(network.state_dict())  # the step above changed the statistics of the batch norm
    assert torch.equal(network(images, cached_features=features).logits, plain(images).logits)
    network.train()
    assert network(images).logits.std() > 0  # without the keyword the backbone runs
    undo()
    assert list(network.state_dict()) == names and "forward" not in vars(network.backbone)
    with pytest.raises(TypeError, match=FEATURES):
        network(images, cached_features=features)


def test_a_cache_is_found_again_and_is_that_of_weights_data_and_crops(data, folder, tmp_path, monkeypatch):
    network = linear_model()
    key = cache_key(network, data, 2)
    lines = []
    for _ in range(2):
        cache_features(linear_model(), data, 2, folder=tmp_path, announce=lines.append)
    assert "into" in lines[0] and "found in" in lines[2] and [path.name for path in tmp_path.iterdir()] == [key]
    (tmp_path / key / "labels.npy").write_bytes(b"damaged")
    cache_features(linear_model(), data, 2, folder=tmp_path, announce=lines.append)
    assert "into" in lines[4]
    # the head does not count
    torch.nn.init.zeros_(network.decode_head.classifier.weight)
    assert cache_key(network, data, 2) == key
    keys = {key, cache_key(network, data, 3)}
    with torch.no_grad():
        network.backbone.trunk.blocks[0].mlp.fc1.bias[0] += 1
    keys.add(cache_key(network, data, 2))
    network = linear_model()
    keys.add(cache_key(network, TrainingDataset(data.data, data.augment, seed=4), 2))
    larger = TrainingAugmentation.from_recipe(get_recipe("dinov2-linear"), crop_size=(96, 96))
    keys.add(cache_key(network, TrainingDataset(data.data, larger, seed=3), 2))
    mask = next((folder / "masks" / "train").iterdir())
    with Image.open(mask) as image:
        changed = np.array(image)
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(mask)
    keys.add(cache_key(network, data, 2))
    assert len(keys) == 6


def test_a_full_disk_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**6, 0, 60_000))
    with pytest.raises(ValueError, match=r"would take 61\.4 kB, but the disk of .* has 60 kB free: cache fewer"):
        cache_features(linear_model(), data, 2, folder=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_models_without_a_frozen_plain_vit_are_refused(data, tmp_path):
    trained = linear_model()
    trained.requires_grad_(True)
    for network, message in (
        (small_model("upernet"), "only of a plain ViT"),
        (trained, "only of a frozen ViT"),
        (linear_model(drop_path_rate=0.1), "drop path differ in every step"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_features(network, data, 2, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_command(folder, tmp_path, monkeypatch):
    """A run with cached features gives nearly the results of one without, and a second run finds them."""
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    PlainViTBackbone(backbone_config(out_features=["stage3"])).save_pretrained(tmp_path / "vit")
    words = ["--data", folder, "--recipe", "dinov2-linear", "--model", tmp_path / "vit", "--crop-size", 64, "--use_cpu"]
    words += ["--max_steps", 3, "--batch-size", 5, "--gradient_accumulation_steps", 1, "--logging_steps", 1]
    words += ["--disable_tqdm", "true", "--no-report"]
    losses = []
    for name, more in (("plain", []), ("cached", ["--cache-features", 3]), ("again", ["--cache-features", 3])):
        status, output = run(*words, "--output", tmp_path / name, *more)
        assert status == 0, output
        losses.append([float(part.split("'")[1]) for part in output.split("'loss': ")[1:]])
        assert ("found in" in output) == (name == "again")
        assert not (tmp_path / name / "report.html").exists()
    assert len(losses[0]) == 3 and losses[1] == losses[2] == pytest.approx(losses[0], rel=0.02)
    status, output = run(*words, "--output", tmp_path / "lora", "--cache-features", 3, "--lora-rank", 2)
    assert status == 1 and "only of a frozen ViT" in output
