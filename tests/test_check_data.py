# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""check_dataset, and the command check-data that prints its report."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segtransformers.cli import app
from segtransformers.datasets import check_dataset, load_segmentation_dataset
from segtransformers.datasets.checking import LARGE_IMAGE
from segtransformers.datasets.scenes import SCENE_CLASSES, write_scenes


def run(*words):
    return CliRunner().invoke(app, ["check-data", *map(str, words)])


def write_masks(folder, *masks, classes=3):
    """Write black images, and masks that repeat these values."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, present in enumerate(masks):
        Image.new("RGB", (6, 4)).save(folder / "images" / f"{index}.png")
        mask = np.resize(np.array(present, np.uint8), (4, 6))
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(classes)))
    return folder


def test_report(tmp_path):
    write_scenes(tmp_path, 6, size=(40, 48))
    (tmp_path / "masks/scene_0000004.png").write_bytes(b"")
    data = load_segmentation_dataset(tmp_path)
    done = []
    report = check_dataset(data, done.append, workers=3)
    samples = [data[index] for index in (0, 1, 2, 3, 5)]
    labels = np.stack([sample.labels for sample in samples])
    assert report.samples == 5 and sum(done) == 6
    assert report.pixels.tolist() == np.bincount(labels.ravel(), minlength=10).tolist()
    assert report.images.tolist() == [sum((label == label_map).any() for label_map in labels) for label in range(10)]
    assert report.smallest == report.largest == (48, 40) and report.no_class == 0
    (error,) = report.errors
    assert "scene_0000004.png" in error


def test_notes_on_likely_mistakes(tmp_path):
    def notes(data):
        return " ".join(check_dataset(data).notes)

    one_based = load_segmentation_dataset(write_masks(tmp_path / "one", [1, 2]))
    assert "if classes start at 1, pass reduce_labels=True" in notes(one_based)
    from_zero = load_segmentation_dataset(write_masks(tmp_path / "zero", [0, 1, 2], [255]), reduce_labels=True)
    assert "if 0 is a class, leave out reduce_labels" in notes(from_zero)
    assert "1 samples have no pixel with a class" in notes(from_zero)
    binary = load_segmentation_dataset(write_masks(tmp_path / "binary", [0, 255], [255, 0, 0]))
    assert "label_map={0: 0, 255: 1}" in notes(binary)
    fine = load_segmentation_dataset(write_masks(tmp_path / "fine", [0, 1, 255], [2]))
    assert check_dataset(fine).notes == check_dataset(fine).errors == []


def test_masks_without_any_class(tmp_path):
    data = load_segmentation_dataset(write_masks(tmp_path, [0], [0]), reduce_labels=True)
    assert check_dataset(data).errors == [
        "no pixel of any mask has a class; value 0 means no class here: are all masks 0?"
    ]


def test_large_images_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("segtransformers.datasets.checking.LARGE_IMAGE", 20)
    data = load_segmentation_dataset(write_masks(tmp_path, [0, 1, 2]))
    assert "1 images have more than" in " ".join(check_dataset(data).notes) and LARGE_IMAGE > 10**7


def notes_of(folder):
    return [line for line in run(folder).output.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize(
    ("orientation", "size", "noted"), [(1, (6, 4), 0), (2, (6, 4), 1), (3, (6, 4), 1), (6, (4, 4), 1), (6, (4, 6), 0)]
)
def test_images_turned_by_exif_are_noted(orientation, size, noted, tmp_path):
    """An oblong image that is turned by 90 degrees fits a turned mask only, so nothing is in doubt."""
    write_masks(tmp_path, [0, 1, 2])
    exif = Image.Exif()
    exif[0x112] = orientation
    (tmp_path / "images/0.png").unlink()
    Image.new("RGB", size).save(tmp_path / "images/0.jpg", exif=exif)
    height, width = size if orientation >= 5 else size[::-1]
    Image.fromarray(np.resize(np.arange(3, dtype=np.uint8), (height, width))).save(tmp_path / "masks/0.png")
    notes = notes_of(tmp_path)
    assert len(notes) == noted and all("1 images are turned or mirrored by their EXIF data" in note for note in notes)


@pytest.mark.parametrize(("highest", "noted"), [(65535, 0), (4095, 1)])
def test_dark_images_of_16_bits_are_noted(highest, noted, tmp_path):
    write_masks(tmp_path, [0, 1, 2])
    Image.fromarray(np.linspace(0, highest, 24).astype(np.uint16).reshape(4, 6)).save(tmp_path / "images/0.png")
    notes = notes_of(tmp_path)
    assert len(notes) == noted and all("nearly black" in note for note in notes)


@pytest.mark.parametrize(
    ("mode", "extra", "noted"), [("RGB", (), 0), ("RGBA", (2,), 0), ("RGBX", (0,), 1), ("CMYK", (), 0), ("L", (), 0)]
)
def test_bands_that_are_not_used_are_noted(mode, extra, noted, tmp_path):
    write_masks(tmp_path, [0, 1, 2])
    (tmp_path / "images/0.png").unlink()
    image = Image.new(mode, (6, 4), 3)
    image.save(tmp_path / "images/0.tif")
    notes = notes_of(tmp_path)
    assert len(notes) == noted and all("more bands" in note for note in notes)


def test_all_faults_of_a_folder_are_listed(tmp_path):
    write_masks(tmp_path, [0, 1, 2], [0, 9], [1], [2])
    (tmp_path / "images/2.png").unlink()
    (tmp_path / "masks/3.png").unlink()
    Image.new("RGB", (6, 4)).save(tmp_path / "images/0.bmp")
    (tmp_path / "images/Thumbs.db").write_bytes(b"")
    done = run(tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and len(errors) == 5, done.output
    found = " ".join(errors)
    for text in ("3.png", "2.png", "differ in their endings only", "labels that are no class: 9", "4 errors in"):
        assert text in found
    assert "1 of 2 samples are without errors" in done.stdout and "note: 1 other files are left out" in done.stdout


def test_command(tmp_path):
    write_scenes(tmp_path, 3, size=(40, 48), split="train")
    write_scenes(tmp_path, 2, seed=30, size=(64, 48), split="val")
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    assert "3 of 3 samples of train are without errors (folders), 48 x 40 pixels" in done.stdout
    assert "2 of 2 samples of validation are without errors" in done.stdout
    assert all(done.stdout.count(f" {name} ") == 2 for name in SCENE_CLASSES)
    (tmp_path / "masks/train/scene_0000001.png").write_bytes(b"broken")
    done = run(tmp_path, "--split", "train")
    assert done.exit_code == 1 and "2 of 3 samples of train are without errors" in done.stdout
    assert "error: cannot read the mask" in done.stderr and "scene_0000001.png" in done.stderr
    assert "validation" not in done.stdout
    done = run(tmp_path, "--split", "test")
    assert done.exit_code == 1 and "no split 'test': it has train, val" in done.stderr


def test_a_test_split_without_masks_is_left_out(tmp_path):
    write_scenes(tmp_path, 1, size=(40, 48), split="train")
    (tmp_path / "images/test").mkdir()
    done = run(tmp_path)
    assert done.exit_code == 0 and "note: the split test is left out" in done.stdout
    assert run(tmp_path, "--split", "test").exit_code == 1
    (tmp_path / "images/val").mkdir()  # an error in the split for validation
    done = run(tmp_path)
    assert done.exit_code == 1 and "masks/val is missing" in done.stderr


def test_columns_of_the_command(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_masks(tmp_path / "files", [0, 1, 2])
    columns = {"picture": [str(folder / "images/0.png")], "truth": [str(folder / "masks/0.png")]}
    features = datasets.Features({"picture": datasets.Image(), "truth": datasets.Image()})
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    assert "Pass image_column=..., mask_column=... (--columns)" in run(tmp_path / "saved", "--classes", 3).stderr
    done = run(tmp_path / "saved", "--classes", 3, "--columns", "picture,truth")
    assert done.exit_code == 0 and "1 of 1 samples are without errors" in done.stdout, done.output


def test_command_on_data_without_class_names(tmp_path):
    write_masks(tmp_path, [0, 1, 4], classes=0)
    (tmp_path / "classes.txt").unlink()
    done = run(tmp_path)
    assert done.exit_code == 0 and "write 5 names into" in done.stdout and "class 3" not in done.stdout


def test_options_of_the_command(tmp_path):
    write_masks(tmp_path, [0, 255], classes=2)
    assert "holds only 0 and 255" in run(tmp_path).stderr
    done = run(tmp_path, "--label-map", "0:0, 255:1")
    assert done.exit_code == 0 and "50.00 %" in done.stdout
    done = run(tmp_path, "--reduce-labels", "--classes", "254")
    assert done.exit_code == 1 and "holds only 0 and 255" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label-map", "0=1"], "expected VALUE:CLASS"),
        (["--columns", "image"], "expected two names"),
        (["--classes", "0"], "classes: the number of classes must be 1 to 255, got 0"),
        (["--classes", "nothing.txt"], "expected an existing file or a number"),
        (["--kind", "imagenet"], "unknown data set 'imagenet'"),
        (["--mask-ending", "_x.png"], "images have no mask"),
    ],
)
def test_wrong_options_are_one_line(words, message, tmp_path):
    done = run(write_masks(tmp_path, [0, 1, 2]), *words)
    assert done.exit_code == 1 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
