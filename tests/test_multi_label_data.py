# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Masks of multi-label data: bit planes, and a folder of masks for each class."""

import numpy as np
import pytest
import torch
from dataset_cases import COLOURS, HEIGHT, WIDTH, save, values
from PIL import Image
from typer.testing import CliRunner

from segtransformers.cli import app
from segtransformers.datasets import DataError, check_dataset, load_segmentation_dataset
from segtransformers.datasets.checking import class_counts
from segtransformers.training import JoinedDataset, TrainingDataset


def bits(*present: int) -> np.ndarray:
    """Return the planes `(3, height, width)` of the mask that repeats these values."""
    return np.stack([values(*present) >> index & 1 for index in range(3)])


def planes_folder(root, *present, classes="a\nb\nc", mask=None):
    save(root / "images/0.png", COLOURS)
    save(root / "masks/0.png", values(*present) if mask is None else mask)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def load(root, **changes):
    return load_segmentation_dataset(root, "train", **{"multi_label": True, **changes})


def test_bit_planes(tmp_path):
    data = load(planes_folder(tmp_path, 0, 1, 5, 7, 255))
    (sample,) = data
    expected = bits(0, 1, 5, 7, 255)
    expected[:, values(0, 1, 5, 7, 255) == 255] = 255
    assert data.multi_label and data.num_labels == 3 and np.array_equal(sample.labels, expected)
    assert sample.labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("classes", "value", "dtype", "expected"),
    [
        (8, 255, np.uint8, [1] * 8),  # all classes, and not "no class"
        (7, 255, np.uint8, [255] * 7),
        (8, 65535, np.uint16, [255] * 8),
        (12, 255, np.uint16, [1] * 8 + [0] * 4),
        (16, 65535, np.uint16, [1] * 16),
        (20, 65535, np.int32, [1] * 16 + [0] * 4),
        (20, 1 << 19, np.int32, [0] * 19 + [1]),
    ],
)
def test_values_of_pixels_without_labels(tmp_path, classes, value, dtype, expected):
    mask = np.full((HEIGHT, WIDTH), value, dtype)
    save(tmp_path / "images/0.png", COLOURS)
    path = tmp_path / f"masks/0.{'tif' if dtype == np.int32 else 'png'}"
    save(path, mask)
    (sample,) = load(tmp_path, classes=classes)
    assert sample.labels[:, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (
            lambda root: planes_folder(root, 0, 9),
            {},
            r"values with bits of no class: 9 \(27 pixels\); expected are 0 to 7, where bit k is 1 if class k is "
            "present, and 255 or 65535 for pixels without labels",
        ),
        (lambda root: planes_folder(root, mask=COLOURS), {}, "holds colours, but multi-label masks need one channel"),
        (lambda root: planes_folder(root, 1), {"classes": 32}, "at most 31 classes, not for 32"),
        (lambda root: planes_folder(root, 1), {"reduce_labels": True}, r"leave out reduce_labels \(--reduce-labels\)"),
        (lambda root: planes_folder(root, 1), {"label_map": {2: 1}}, r"leave out label_map \(--label-map\)"),
        (lambda root: planes_folder(root, 1), {"kind": "ade20k"}, "a pixel of ade20k has one class"),
        (
            lambda root: planes_folder(root, mask=np.zeros((HEIGHT, WIDTH + 1), np.uint8)),
            {},
            "both must have the same size",
        ),
    ],
)
def test_wrong_bit_planes_are_named(tmp_path, make, changes, message):
    with pytest.raises(ValueError, match=message):
        load(make(tmp_path), **changes)[0]


def class_folders(root, masks, folder="masks", images=2):
    for index in range(images):
        save(root / "images" / f"{index}.png", COLOURS)
    for name, mask in masks.items():
        save(root / folder / f"{name}.png", mask)
    return root


def test_class_folders(tmp_path):
    masks = {"car/0": values(0, 1), "tree/0": values(1, 0, 255), "tree/1": values(1)}
    data = load(class_folders(tmp_path, masks), multi_label=None)
    assert data.multi_label and data.id2label == {0: "car", 1: "tree"} and data.names == ["0", "1"]
    first, second = data
    assert np.array_equal(first.labels, np.stack([masks["car/0"], masks["tree/0"]]))
    assert np.array_equal(second.labels, np.stack([values(0), values(1)]))  # no file where a class is absent
    assert data.select([1])[0].name == "1" and len(data.select([1]).rows.masks) == 1
    assert data.rule.describe() == {"multi_label": "class folders", "label_map": None}


def test_class_folders_with_names_splits_and_other_values(tmp_path, caplog):
    for split in ("train", "validation"):
        save(tmp_path / "images" / split / "0.png", COLOURS)
        save(tmp_path / "masks" / split / "traffic_light" / "0.png", values(0, 255))
    (tmp_path / "classes.txt").write_text("road\ntraffic light")
    data = load(tmp_path, multi_label=None, label_map={0: 0, 255: 1})
    assert data.split == "train" and "has no masks of road" in caplog.text
    assert np.array_equal(data[0].labels, np.stack([values(0), values(0, 1)]))


def test_a_split_may_lack_the_folder_of_a_class(tmp_path, caplog):
    for split, name in (("train", "car"), ("train", "tree"), ("validation", "tree")):
        save(tmp_path / "images" / split / "0.png", COLOURS)
        save(tmp_path / "masks" / split / name / "0.png", values(0, 1))
    data = load_segmentation_dataset(tmp_path, "validation")
    assert data.id2label == {0: "car", 1: "tree"} and "has no masks of car" in caplog.text
    assert np.array_equal(data[0].labels, np.stack([values(0), values(0, 1)]))


def test_folders_of_ordinary_data_are_not_taken_for_classes(tmp_path):
    save(tmp_path / "images/train/aachen/0.png", COLOURS)
    save(tmp_path / "masks/train/aachen/0.png", values(0, 1))
    data = load(tmp_path, multi_label=None, classes=2)
    assert not data.multi_label and data[0].labels.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("masks", "changes", "message"),
    [
        ({"car/0": values(0, 128, 255), "car/1": values(0)}, {}, r"labels that are no class: 128 \(18 pixels\)"),
        ({"car/0": values(0, 255), "car/1": values(0)}, {}, "holds only 0 and 255, and 255 means no class"),
        ({"car/0": values(0)}, {}, "1 of 2 images in .* have no mask in any folder of"),
        ({"car/0": values(0), "car/1": values(0), "car/2": values(0)}, {}, "1 of 3 masks in .*car have no image in"),
        ({"car/0": values(0), "car/1": values(0)}, {"classes": ["tree"]}, "car has the name of no class: rename it"),
        ({"car/0": values(0)[1:], "car/1": values(0)}, {}, "both must have the same size"),
        ({"car/0": values(0), "car/1": values(0)}, {"reduce_labels": True}, "leave out reduce_labels"),
    ],
)
def test_wrong_class_folders_are_named(tmp_path, masks, changes, message):
    with pytest.raises(DataError if "reduce" not in message else ValueError, match=message):
        load(class_folders(tmp_path, masks), multi_label=None, **changes)[0]


def test_files_that_are_left_out_are_listed(tmp_path):
    masks = {"car/0": values(0), "car/2": values(0)}
    data = load(class_folders(tmp_path, masks), multi_label=None, strict=False)
    assert data.names == ["0"] and len(data.problems) == 2


def test_report(tmp_path):
    report = check_dataset(load(planes_folder(tmp_path / "planes", 0, 3, 5, 255)))
    count = HEIGHT * WIDTH
    pixels = [int((bits(0, 3, 5, 255)[index] & (values(0, 3, 5, 255) != 255)).sum()) for index in range(3)]
    assert report.pixels.tolist() == pixels and report.images.tolist() == [1, 1, 1]
    assert report.no_class == (values(0, 3, 5, 255) == 255).sum() and report.all_pixels == count
    assert report.overlap == np.isin(values(0, 3, 5, 255), (3, 5)).sum() and not report.notes and not report.errors

    report = check_dataset(load(planes_folder(tmp_path / "indices", 0, 1, 2)))
    assert any("no pixel has more than one class: if the masks hold class indices" in note for note in report.notes)
    assert any("1 of 3 classes never occur: c" in note for note in report.notes)
    report = check_dataset(load(planes_folder(tmp_path / "nothing", 0)))
    assert report.errors == ["no pixel of any mask has a class"]


def test_counts_are_cached_with_valid_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load(planes_folder(tmp_path / "data", 1, 255))
    first = class_counts(data)
    assert first.per_sample.tolist() == [[27, 0, 0]] and first.valid.tolist() == [[27, 27, 27]]
    monkeypatch.setattr("segtransformers.datasets.checking.check_dataset", None)
    again = class_counts(data)
    assert np.array_equal(again.per_sample, first.per_sample) and np.array_equal(again.valid, first.valid)


def test_command_names_the_option(tmp_path):
    folder = planes_folder(tmp_path, 0, 5, 7)
    done = CliRunner().invoke(app, ["check-data", str(folder)])
    assert done.exit_code == 1 and "labels that are no class: 5" in done.output
    done = CliRunner().invoke(app, ["check-data", str(folder), "--multi-label"])
    assert done.exit_code == 0, done.output
    (folder / "classes.txt").unlink()
    done = CliRunner().invoke(app, ["check-data", str(folder), "--multi-label"])
    assert done.exit_code == 0 and "The classes have no names: write 3 names" in done.output


def test_samples_without_labels_are_named_once(tmp_path, caplog):
    save(tmp_path / "images/1.png", COLOURS)
    save(tmp_path / "masks/1.png", values(255))
    data = load(planes_folder(tmp_path, 255))
    samples = TrainingDataset(data, lambda image, labels, seed: {"labels": torch.as_tensor(labels)})
    assert all((samples[index]["labels"] == 255).all() for index in range(2))
    assert caplog.text.count("has no pixel with a class, so its loss is 0: remove it, or label it") == 1


def test_only_data_of_one_kind_are_joined(tmp_path):
    planes = load(planes_folder(tmp_path, 0, 1, 2))
    indices = load(tmp_path, multi_label=False)
    with pytest.raises(ValueError, match="must be both multi-label data, or none of them"):
        JoinedDataset([planes, indices])
    assert len(JoinedDataset([planes, planes])) == 2


def test_masks_of_a_hub_data_set(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra `train`)")
    image, mask = Image.fromarray(COLOURS), Image.fromarray(values(0, 3))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [image], "label": [mask]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    (sample,) = load(tmp_path / "saved", classes=3)
    assert np.array_equal(sample.labels, bits(0, 3))
