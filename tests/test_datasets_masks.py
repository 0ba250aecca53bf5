# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""From the files of a sample to its image and class indices: label options, kinds of masks, EXIF data, damage."""

import json

import numpy as np
import pytest
from dataset_cases import COLOURS, HEIGHT, KNOWN, WIDTH, draw, draw_known, own_data, save, values
from PIL import ExifTags, Image

from segtransformers.datasets import DataError, load_segmentation_dataset


def test_label_options_of_own_data(tmp_path):
    own_data(tmp_path, 0, 1, 3)
    assert load_segmentation_dataset(tmp_path, reduce_labels=True)[0].labels[0, :3].tolist() == [255, 0, 2]
    mapped = load_segmentation_dataset(tmp_path, label_map={3: 0})
    assert mapped[0].labels[0, :3].tolist() == [0, 1, 0]
    with pytest.raises(
        DataError, match=r"masks/0.png has labels that are no class: 3 \(18 pixels\).*reduce_labels=True"
    ):
        load_segmentation_dataset(tmp_path)[0]
    with pytest.raises(ValueError, match="label_map maps 3 to 7"):
        load_segmentation_dataset(tmp_path, label_map={3: 7})


def test_wrong_labels_of_known_data(tmp_path):
    draw_known(tmp_path, "ade20k", 0, 151)
    with pytest.raises(DataError, match=r"ADE_val_00000000.png.*151.*expected are 1 to 150"):
        load_segmentation_dataset(tmp_path)[0]
    save(tmp_path / KNOWN["ade20k"][1].format(0), values(0, 150))
    with pytest.raises(DataError, match="pass reduce_labels=True"):  # the user disabled it by mistake
        load_segmentation_dataset(tmp_path, reduce_labels=False)[0]


def test_reduced_labels_of_255_classes(tmp_path):
    """Value 255 means no class, so it cannot be the last class, too. Masks of 16 bits can hold another value for it."""
    save(tmp_path / "images/0.png", COLOURS)
    save(tmp_path / "masks/0.png", np.resize(np.array([0, 1, 254, 255, 256], np.uint16), (HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match="value 255 of the masks would be class 254 and no class at once"):
        load_segmentation_dataset(tmp_path, classes=255, reduce_labels=True)
    data = load_segmentation_dataset(tmp_path, classes=255, reduce_labels=True, label_map={256: 254})
    assert data[0].labels[0, :5].tolist() == [255, 0, 253, 255, 254]
    data = load_segmentation_dataset(tmp_path, classes=255, label_map={255: 0, 256: 255})
    assert data[0].labels[0, :5].tolist() == [0, 1, 254, 0, 255]


def test_binary_masks(tmp_path):
    own_data(tmp_path, 0, 255, classes=2)
    with pytest.raises(DataError, match=r"masks/0.png holds only 0 and 255.*label_map=\{0: 0, 255: 1\}"):
        load_segmentation_dataset(tmp_path)[0]
    assert load_segmentation_dataset(tmp_path, label_map={255: 1})[0].labels[0, :2].tolist() == [0, 1]
    assert load_segmentation_dataset(tmp_path, label_map={255: 255})[0].labels[0, :2].tolist() == [0, 255]
    with pytest.raises(DataError, match="holds only 0 and 255"):
        load_segmentation_dataset(tmp_path, classes=5, reduce_labels=True)[0]


def test_colour_masks(tmp_path):
    own_data(tmp_path, 0, classes=2, number=1)
    mask = tmp_path / "masks/0.png"
    red_and_green = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red_and_green[:, :4, 0], red_and_green[:, 4:, 1] = 200, 200
    save(mask, red_and_green)
    with pytest.raises(DataError, match=r"0.png holds colours and no palette is given"):
        load_segmentation_dataset(tmp_path)[0]
    data = load_segmentation_dataset(tmp_path, palette=[[0, 200, 0], [200, 0, 0]])
    assert data[0].labels[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"1 colours that the palette lacks: \(200, 0, 0\) in 24 pixels"):
        load_segmentation_dataset(tmp_path, palette=[[0, 200, 0], [1, 2, 3]])[0]
    with pytest.raises(DataError, match="2 classes"):
        load_segmentation_dataset(tmp_path, palette=[[0, 200, 0]])
    with pytest.raises(ValueError, match="classes 0 and 1 have the same colour"):
        load_segmentation_dataset(tmp_path, palette=[[0, 200, 0]] * 2)
    classes = [{"name": "green", "color": [0, 200, 0]}, {"ignore": True, "color": [200, 0, 0]}]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    assert load_segmentation_dataset(tmp_path)[0].labels[0].tolist() == [255] * 4 + [0] * 5


def test_masks_with_a_palette_are_read_as_indices(tmp_path):
    own_data(tmp_path, 0, number=1)
    mask = Image.fromarray(values(0, 2, 1))
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    mask.save(tmp_path / "masks/0.png")
    assert Image.open(tmp_path / "masks/0.png").mode == "P"
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 2, 1))


def test_a_palette_that_contradicts_the_indices(tmp_path):
    """Paint programs number the colours in the order of their own palette."""
    own_data(tmp_path, 0, number=1)
    mask = Image.fromarray(values(0, 1))
    mask.putpalette([0, 0, 200, 200, 0, 0])
    mask.save(tmp_path / "masks/0.png")
    options = {"classes": ["red", "blue"], "palette": [[200, 0, 0], [0, 0, 200]]}
    with pytest.raises(DataError, match=r"masks/0\.png has a palette that gives value 0 the colour of class 1"):
        load_segmentation_dataset(tmp_path, **options)[0]
    mask.convert("RGB").save(tmp_path / "masks/0.png")
    assert np.array_equal(load_segmentation_dataset(tmp_path, **options)[0].labels, values(1, 0))
    mask.putpalette([200, 0, 0, 0, 0, 200])
    mask.save(tmp_path / "masks/0.png")
    assert np.array_equal(load_segmentation_dataset(tmp_path, **options)[0].labels, values(0, 1))


def test_exif_turns_images_and_not_masks(tmp_path):
    """As in mmcv: OpenCV turns images on reading, Pillow does not turn masks."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # rotate clockwise
    own_data(tmp_path, 0, 1, 2, number=1)
    upright = np.rot90(COLOURS)  # stored lying on its left side
    Image.fromarray(upright).save(tmp_path / "images/0.png", exif=exif)
    sample = load_segmentation_dataset(tmp_path)[0]
    assert np.array_equal(np.asarray(sample.image), COLOURS) and np.array_equal(sample.labels, values(0, 1, 2))
    Image.fromarray(values(0, 1, 2)).save(tmp_path / "masks/0.png", exif=exif)
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1, 2))
    save(tmp_path / "masks/0.png", np.rot90(values(0, 1, 2)))
    with pytest.raises(DataError, match=r"0\.png is 9 x 6, its mask .* 6 x 9: its EXIF data turn the image"):
        load_segmentation_dataset(tmp_path)[0]


def test_huge_images(tmp_path, monkeypatch):
    own_data(tmp_path, 0, 1, number=1)
    data = load_segmentation_dataset(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # Pillow warns, the data set does not
    assert data[0].labels.shape == (HEIGHT, WIDTH)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(DataError, match=r"images/0\.png.*more than 0 million pixels\. Cut it into tiles, or increase"):
        data[0]


def test_other_kinds_of_masks(tmp_path):
    own_data(tmp_path, 0, number=1)
    mask = tmp_path / "masks/0.png"
    save(mask, values(0, 1, 2).astype(np.uint16))
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1, 2))
    big_endian = tmp_path / "masks/0.tif"
    Image.frombytes("I;16B", (WIDTH, HEIGHT), values(0, 1, 2).astype(">u2").tobytes()).save(big_endian)
    mask.unlink()
    with Image.open(big_endian) as opened:
        assert opened.mode == "I;16B"
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1, 2))
    big_endian.unlink()
    save(mask, np.where(values(0, 1), np.uint16(65535), np.uint16(2)))
    with pytest.raises(DataError, match=r"65535 .*label_map=\{65535: 255\}"):
        load_segmentation_dataset(tmp_path)[0]
    assert load_segmentation_dataset(tmp_path, label_map={65535: 255})[0].labels[0, :2].tolist() == [2, 255]
    save(mask, values(0, 1).astype(bool))
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1))
    save(mask, np.repeat(values(0, 1, 2)[..., None], 3, axis=2))  # grey in three channels
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1, 2))
    opaque = np.stack([values(0, 1), values(255)], axis=2)
    save(mask, opaque)
    assert np.array_equal(load_segmentation_dataset(tmp_path)[0].labels, values(0, 1))
    opaque[0, 0, 1] = 0
    save(mask, opaque)
    with pytest.raises(DataError, match=r"0.png has transparent pixels"):
        load_segmentation_dataset(tmp_path)[0]
    mask.unlink()
    save(tmp_path / "masks/0.tif", values(0, 1).astype(np.float32))
    with pytest.raises(DataError, match=r"0.tif holds floating-point numbers"):
        load_segmentation_dataset(tmp_path)[0]
    (tmp_path / "masks/0.tif").unlink()
    save(tmp_path / "masks/0.jpg", values(0, 1))
    with pytest.raises(DataError, match=r"0.jpg is a JPEG, which blurs labels"):
        load_segmentation_dataset(tmp_path)[0]
    (tmp_path / "masks/0.jpg").unlink()
    page = Image.fromarray(values(0, 1))
    page.save(tmp_path / "masks/0.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match=r"0\.tif holds 2 images"):
        load_segmentation_dataset(tmp_path)[0]


def test_sizes_of_image_and_mask_differ(tmp_path):
    own_data(tmp_path, 0, 1)
    save(tmp_path / "masks/1.png", values(0)[:, 1:])
    data = load_segmentation_dataset(tmp_path)
    assert data[0].labels.shape == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"images/1.png is 9 x 6, its mask .*masks/1.png 8 x 6"):
        data[1]


def test_damaged_files(tmp_path):
    own_data(tmp_path, 0, 1, number=1)
    data = load_segmentation_dataset(tmp_path)
    for folder, message in (
        ("masks", "cannot read the mask .*masks/0.png"),
        ("images", "cannot read .*images/0.png as"),
    ):
        path = tmp_path / folder / "0.png"
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"not an image"):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=message):
                data[0]
        path.write_bytes(whole)
    (tmp_path / "masks/0.png").unlink()
    with pytest.raises(DataError, match=r"masks/0.png was removed"):
        data[0]


def test_exports_of_roboflow(tmp_path):
    """Each split is a folder of images, their masks and `_classes.csv`."""
    for split, number in (("train", 2), ("valid", 1)):
        draw(tmp_path, f"{split}/{{}}_jpg.rf.0a1b.jpg", f"{split}/{{}}_jpg.rf.0a1b_mask.png", 0, 1, number=number)
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    (tmp_path / "README.roboflow.txt").touch()
    data = load_segmentation_dataset(tmp_path, "train")
    assert data.names == ["0_jpg.rf.0a1b", "1_jpg.rf.0a1b"] and data.id2label == {0: "background", 1: "cat"}
    assert np.array_equal(data[0].labels, values(0, 1)) and not data.ignored_files
    assert len(load_segmentation_dataset(tmp_path, "validation")) == 1
    with pytest.raises(DataError, match="has no split 'test': it has train, valid"):
        load_segmentation_dataset(tmp_path, "test")
    (tmp_path / "train" / "1_jpg.rf.0a1b_mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images in .*train have no mask"):
        load_segmentation_dataset(tmp_path, "train")
    for text in ("Pixel Value, Class\n0, a\n2, b\n", "Pixel Value, Class\n0, a\n0, b\n", "Pixel Value, Class\n0\n"):
        (tmp_path / "train" / "_classes.csv").write_text(text)
        with pytest.raises(DataError, match=r"gaps|another pixel value"):
            load_segmentation_dataset(tmp_path, "validation")
