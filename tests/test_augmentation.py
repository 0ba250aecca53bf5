# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Augmentation: pixels against OpenCV's, and random numbers against the distributions of MMSegmentation 0.x.

Seeds are fixed, so each test is deterministic. Bounds lie at three standard deviations or more, and the mistakes that
they detect (another range, one trial more or less, a missing step) lie farther away.
"""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch
from reference_cases import FOLDER
from safetensors.torch import load_file
from scipy import stats
from torch.utils.data import DataLoader, Dataset
from transformers import default_data_collator

from segtransformers import SegmentationImageProcessor
from segtransformers.image_processing import keep_ratio_size, resize_image, resize_labels
from segtransformers.training import PhotometricDistortion, TrainingAugmentation, augmentation, get_recipe
from segtransformers.training.color import hsv_to_rgb, rgb_to_hsv

COLORS = load_file(FOLDER / "augmentation/colors.safetensors")
DRAWS = json.loads((FOLDER / "augmentation/colors.json").read_text())["draws"]
RECIPE = get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k")


def plain(**changes) -> TrainingAugmentation:
    """An augmentation that only crops, except for `changes`."""
    options = {
        "shortest_edge": 64,
        "longest_edge": 256,
        "ratio_range": (1.0, 1.0),
        "crop_size": (32, 32),
        "cat_max_ratio": 1.0,
        "flip_probability": 0.0,
        "image_mean": (0, 0, 0),
        "image_std": (1 / 255, 1 / 255, 1 / 255),
    }
    return TrainingAugmentation(**options | changes)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def ground(height: int, width: int) -> torch.Tensor:
    """Labels that encode the position of each pixel."""
    return 1000 * torch.arange(height)[:, None] + torch.arange(width) + 256


# colours


def test_colors_are_opencvs():
    assert torch.equal(torch.stack(rgb_to_hsv(COLORS["rgb"][:, None])), COLORS["rgb_as_hsv"][:, None])
    assert torch.equal(hsv_to_rgb(*COLORS["hsv"][:, None]), COLORS["hsv_as_rgb"][:, None])


@pytest.mark.parametrize("index", range(len(DRAWS)))
def test_steps_are_opencvs(index, monkeypatch):
    """With the recorded draws of the original, in its order, every byte is equal."""
    draws = DRAWS[index]
    coins, numbers = [draws["brightness"] is not None, draws["contrast_first"]], []
    numbers += [draws["brightness"]] if coins[0] else []
    contrast = [draws["contrast"]] if draws["contrast"] is not None else []
    if draws["contrast_first"]:
        coins.append(bool(contrast))
        numbers += contrast
    coins += [draws["saturation"] is not None, draws["hue"] is not None]
    numbers += [draws["saturation"]] if draws["saturation"] is not None else []
    if not draws["contrast_first"]:
        coins.append(bool(contrast))
        numbers += contrast
    monkeypatch.setattr(augmentation, "_coin", lambda generator: coins.pop(0))
    monkeypatch.setattr(augmentation, "_uniform", lambda low, high, generator: numbers.pop(0))
    monkeypatch.setattr(augmentation, "_integer", lambda low, high, generator: draws["hue"])
    assert torch.equal(PhotometricDistortion()(COLORS["image"]), COLORS["changed"][index])
    assert not coins
    assert not numbers


def original_distortion(pixel: list[int], count: int) -> np.ndarray:
    """Apply `PhotoMetricDistortion` to a pixel `count` times, with random numbers of numpy."""
    random = np.random.default_rng(0)
    levels = np.repeat(np.array(pixel, dtype=np.uint8)[:, None], count, axis=1)

    def coins():
        return random.integers(2, size=count).astype(bool)

    def scaled(old, where, factor=1.0, offset=0.0):
        new = np.clip(np.float32(old) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)
        return np.where(where, new, old)

    def in_hsv(old, where, change):
        parts = torch.stack(rgb_to_hsv(torch.from_numpy(old)[:, None]))[:, 0].numpy()
        new = hsv_to_rgb(*torch.from_numpy(change(parts))[:, None])[:, 0].numpy()
        return np.where(where, new, old)

    def saturated(parts):
        parts[1] = scaled(parts[1], True, random.uniform(0.5, 1.5, count))
        return parts

    def turned(parts):
        parts[0] = (parts[0].astype(int) + random.integers(-18, 18, count)) % 180
        return parts

    levels = scaled(levels, coins(), offset=random.uniform(-32, 32, count))
    mode, contrast, factor = coins(), coins(), random.uniform(0.5, 1.5, count)
    levels = scaled(levels, mode & contrast, factor)
    levels = in_hsv(levels, coins(), saturated)
    levels = in_hsv(levels, coins(), turned)
    return scaled(levels, ~mode & contrast, factor).T


@pytest.mark.parametrize("pixel", [[128, 128, 128], [200, 90, 40], [20, 60, 240]])
def test_distribution_of_colors(pixel):
    """Our samples and those of the original have the same distribution."""
    image = torch.tensor(pixel, dtype=torch.uint8)[:, None, None]
    distort = PhotometricDistortion()
    torch.manual_seed(0)
    ours = np.array([distort(image).flatten().tolist() for _ in range(3000)])
    theirs = original_distortion(pixel, 30000)
    for view in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 0], [10, -20, 7]):
        assert stats.ks_2samp(ours @ view, theirs.astype(int) @ view).pvalue > 1e-3
    # the order of the steps determines how often nothing changes and how often the colour is truncated
    for event in (lambda x: (x == pixel).all(1), lambda x: (x == 0).any(1), lambda x: (x == 255).any(1)):
        mine, other = event(ours).mean(), event(theirs).mean()
        assert mine == pytest.approx(other, abs=3 * (max(other, 0.001) / 3000) ** 0.5)


@pytest.mark.parametrize("step", ["brightness", "contrast first", "saturation", "hue", "contrast last"])
def test_distribution_of_each_step(step, monkeypatch):
    """The range of each step alone."""
    coins = {
        "brightness": (1, 1, 0, 0, 0),
        "contrast first": (0, 1, 1, 0, 0),
        "saturation": (0, 1, 0, 1, 0),
        "hue": (0, 1, 0, 0, 1),
        "contrast last": (0, 0, 0, 0, 1),
    }[step]
    torch.manual_seed(0)
    distort, changed = PhotometricDistortion(), []
    for _ in range(2000):
        script = list(coins)
        monkeypatch.setattr(augmentation, "_coin", lambda generator, script=script: bool(script.pop(0)))
        if step in ("saturation", "hue"):
            before = hsv_to_rgb(*torch.tensor([90, 128, 240], dtype=torch.uint8)[:, None, None])
            hue, saturation, _ = rgb_to_hsv(distort(before))
            changed.append(int(saturation if step == "saturation" else hue))
        else:
            changed.append(int(distort(torch.full((3, 1, 1), 128, dtype=torch.uint8))[0]))
    changed = np.array(changed)
    if step == "hue":  # 90 less 18 to 90 plus 17
        assert set(changed) == set(range(72, 108))
        assert stats.chisquare(np.bincount(changed - 72, minlength=36)).pvalue > 1e-3
        return
    low, width = {"brightness": (96, 64), "saturation": (64, 128)}.get(step, (64, 128))
    within = changed + np.random.default_rng(0).uniform(size=2000)
    assert stats.kstest(within, "uniform", (low, width)).pvalue > 1e-3
    assert stats.kstest(within, "uniform", (low - width / 10, 1.2 * width)).pvalue < 1e-6


def test_coins_are_fair():
    torch.manual_seed(0)
    assert np.mean([augmentation._coin(None) for _ in range(4000)]) == pytest.approx(0.5, abs=3 * 0.5 / 4000**0.5)


# scale, crop, flip


def test_distribution_of_scales():
    """Factors are uniform. As in mmcv, limits are truncated to whole pixels and sides are rounded."""
    augment = TrainingAugmentation.from_recipe(RECIPE)
    torch.manual_seed(0)
    sizes = [augment._scaled_size(480, 640, None) for _ in range(4000)]
    heights = np.array([height for height, _ in sizes])
    assert stats.kstest(heights + np.random.default_rng(0).uniform(size=4000), "uniform", (256, 768)).pvalue > 1e-3
    assert heights.min() >= 256
    assert heights.max() <= 1024
    for height, width in sizes:
        assert (height, width) == keep_ratio_size(480, 640, height, 4 * height)
    # a long image is limited by its long side
    assert max(max(augment._scaled_size(100, 1000, None)) for _ in range(200)) <= 4096
    assert augment._scaled_size(100, 1000, None)[1] > 1000


def test_distribution_of_crops():
    augment = plain(crop_size=(24, 40))
    torch.manual_seed(0)
    corners = np.array(
        [divmod(int(augment(noise(64, 80), ground(64, 80))["labels"][0, 0]) - 256, 1000) for _ in range(4000)]
    )
    for offsets, count in zip(corners.T, (64 - 24 + 1, 80 - 40 + 1), strict=True):
        assert set(offsets) == set(range(count))
        assert stats.chisquare(np.bincount(offsets, minlength=count)).pvalue > 1e-3
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.05


def test_trials_of_crops():
    """Ten crops are checked, and an eleventh is taken unchecked."""
    labels = torch.zeros(1, 4, 131, dtype=torch.uint8)
    labels[..., 65:] = 1
    augment = plain(cat_max_ratio=0.75, crop_size=(4, 32))
    torch.manual_seed(0)
    crops = (augment._crop(labels, (4, 131), None)[1] for _ in range(4000))
    mixed = np.mean([0.25 < float(crop.float().mean()) < 0.75 for crop in crops])
    # of 100 positions, those with 9 to 23 columns of either class are accepted
    expected = 1 - 0.85**11
    deviation = (expected * (1 - expected) / 4000) ** 0.5
    assert mixed == pytest.approx(expected, abs=3 * deviation)
    assert abs(1 - 0.85**10 - expected) > 4 * deviation
    assert abs(1 - 0.85**12 - expected) > 4 * deviation


def test_ignored_pixels_do_not_count():
    augment = plain(cat_max_ratio=0.75)
    crop = torch.full((1, 32, 32), 255, dtype=torch.uint8)
    assert not augment._is_varied(crop)
    crop[0, 0, :2] = 3
    assert not augment._is_varied(crop)  # one class alone
    crop[0, 0, 2] = 4
    assert augment._is_varied(crop)  # two thirds
    crop[0, 1, 0] = 3
    assert not augment._is_varied(crop)  # exactly three quarters are too many
    torch.manual_seed(0)
    labels = torch.full((64, 64), 255, dtype=torch.uint8)
    assert (plain(cat_max_ratio=0.75)(noise(64, 64), labels)["labels"] == 255).all()


def test_distribution_of_mirror_images():
    augment = plain(crop_size=(64, 64), flip_probability=0.5)
    torch.manual_seed(0)
    image, labels = noise(64, 64), ground(64, 64)
    flips = 0
    for _ in range(1000):
        result = augment(image, labels)
        flipped = bool(result["labels"][0, 0] != labels[0, 0])
        flips += flipped
        assert torch.equal(result["labels"], labels.flip(1) if flipped else labels)
        assert torch.equal(result["pixel_values"], (image.flip(2) if flipped else image).float())
    assert flips == pytest.approx(500, abs=3 * (1000 / 4) ** 0.5)


def test_a_crop_is_a_part_of_the_resized_image():
    """Resizing the crop alone gives the same pixels as resizing the whole image."""
    image, labels = noise(50, 90), torch.randint(150, (50, 90), dtype=torch.uint8)
    augment = plain(ratio_range=(0.5, 2.0), image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
    processor = SegmentationImageProcessor(do_resize=False)
    for seed in range(20):
        generator = augmentation._generator(seed)
        size = augment._scaled_size(50, 90, generator)
        (rows, columns), _ = augment._crop(labels[None], size, generator)
        resized = resize_image(image, size)[:, rows, columns]
        result = augment(image, labels, seed)
        height, width = resized.shape[1:]
        assert result["pixel_values"].shape == (3, 32, 32)
        assert torch.equal(
            result["labels"][:height, :width], resize_labels(labels[None], size)[0, rows, columns].long()
        )
        if min(height, width) >= 32:
            expected = processor(images=resized, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(result["pixel_values"], expected)


def test_small_images_are_padded_after_normalisation():
    augment = plain(shortest_edge=20, crop_size=(32, 48), image_mean=(0.5, 0.5, 0.5), cat_max_ratio=0.75)
    image, labels = noise(20, 30), torch.zeros(20, 30, dtype=torch.uint8)
    result = augment(image, labels)
    assert torch.equal(result["pixel_values"][:, :20, :30], image.float() - 127.5)
    assert (result["pixel_values"][:, 20:] == 0).all()
    assert (result["pixel_values"][:, :, 30:] == 0).all()
    assert (result["labels"][:20, :30] == 0).all()
    assert (result["labels"][20:] == 255).all()
    assert (result["labels"][:, 30:] == 255).all()


# seeds


class Images(Dataset):
    def __init__(self, seed=None):
        self.seed, self.epoch = seed, 0
        self.augment = dataclasses.replace(
            RECIPE, augmentation=dataclasses.replace(RECIPE.augmentation, crop_size=(32, 32))
        )
        self.augment = TrainingAugmentation.from_recipe(self.augment)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        seed = None if self.seed is None else (self.seed, self.epoch, index)
        return self.augment(noise(64, 64), ground(64, 64), seed)


def test_a_seed_decides_everything():
    augment = TrainingAugmentation.from_recipe(RECIPE)
    image, labels = noise(300, 400), torch.randint(5, (300, 400), dtype=torch.uint8)
    first, again = augment(image, labels, seed=(7, 0, 3)), augment(image, labels, seed=(7, 0, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in ((8, 0, 3), (7, 1, 3), (7, 0, 4), (0, 3, 7), 7):
        assert not torch.equal(augment(image, labels, seed=other)["pixel_values"], first["pixel_values"])
    state = torch.get_rng_state()
    augment(image, labels, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_and_epochs_draw_other_numbers():
    """Without seeds a `DataLoader` varies the numbers repeatably. With seeds the number of workers changes nothing."""

    def epochs(seed, workers):
        torch.manual_seed(1)
        images = Images(seed)
        loader = DataLoader(images, batch_size=4, num_workers=workers, collate_fn=default_data_collator)
        batches = []
        for epoch in range(2):
            images.epoch = epoch
            batches += [batch["pixel_values"] for batch in loader]
        return torch.cat(batches)

    drawn = epochs(None, 2)
    assert drawn.shape == (16, 3, 32, 32)
    assert len({image.sum().item() for image in drawn}) == 16
    assert torch.equal(drawn, epochs(None, 2))
    seeded = epochs(5, 2)
    assert len({image.sum().item() for image in seeded}) == 16
    assert torch.equal(seeded, epochs(5, 0))


# input and output


def test_recipe_and_processor():
    augment = TrainingAugmentation.from_recipe(RECIPE)
    assert (augment.shortest_edge, augment.longest_edge, augment.crop_size) == (512, 2048, (512, 512))
    assert not augment.reduce_labels
    assert augment.mean.tolist() == pytest.approx([123.675, 116.28, 103.53])
    processor = SegmentationImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    augment = TrainingAugmentation.from_recipe(RECIPE, processor, crop_size=(256, 384))
    assert (augment.shortest_edge, augment.longest_edge, augment.crop_size) == (256, 1024, (256, 384))
    assert augment.std.tolist() == [127.5] * 3
    assert TrainingAugmentation.from_recipe(RECIPE, processor, reduce_labels=True).reduce_labels


def test_labels_are_reduced():
    labels = torch.tensor([[0, 1, 2, 150, 255]], dtype=torch.uint8).repeat(32, 1).repeat_interleave(8, 1)
    result = plain(shortest_edge=32, crop_size=(32, 40), reduce_labels=True)(noise(32, 40), labels)
    assert result["labels"][0].unique_consecutive().tolist() == [255, 0, 1, 149, 255]
    assert result["labels"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["pil", "grey", "palette", "channels first", "channels last", "numpy"])
def test_images_of_any_kind(kind):
    pixels, labels = noise(40, 50), torch.randint(9, (40, 50), dtype=torch.uint8)
    colour = PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image = {
        "pil": colour,
        "grey": colour.convert("L"),
        "palette": colour.convert("P"),
        "channels first": pixels,
        "channels last": pixels.permute(1, 2, 0),
        "numpy": np.asarray(colour),
    }[kind]
    augment = plain(shortest_edge=40, crop_size=(40, 50))
    expected = torch.from_numpy(np.asarray(image.convert("RGB") if kind in ("grey", "palette") else colour).copy())
    for label_map in (labels, labels.numpy(), PIL.Image.fromarray(labels.numpy()), labels[None], labels.long()):
        result = augment(image, label_map)
        assert torch.equal(result["pixel_values"], expected.permute(2, 0, 1).float())
        assert torch.equal(result["labels"], labels.long())


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (noise(9, 9), torch.zeros(9, 8, dtype=torch.uint8), r"must have the size of its image, \(9, 9\), got \(9, 8\)"),
        (noise(9, 9).float(), torch.zeros(9, 9, dtype=torch.uint8), r"the image must be uint8 .*, got torch.float32"),
        (noise(9, 9)[:2], torch.zeros(9, 9, dtype=torch.uint8), r"the image must be uint8 .* \(2, 9, 9\)"),
        (noise(9, 9), torch.zeros(9, 9), r"the label map must be integers \(height, width\), got torch.float32"),
        (noise(9, 9), torch.zeros(9, 9, 3, dtype=torch.uint8), r"the label map must be integers .* \(9, 9, 3\)"),
    ],
)
def test_bad_input(image, labels, message):
    with pytest.raises(ValueError, match=message):
        plain()(image, labels)
