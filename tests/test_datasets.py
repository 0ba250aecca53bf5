# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Loading data sets: small copies of each known layout, the user's own folders, `datasets` sources, and errors."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from dataset_cases import COLOURS, HEIGHT, KNOWN, WIDTH, draw, draw_known, own_data, save, values
from PIL import Image

from segtransformers.datasets import DATASETS, DataError, check_dataset, get_dataset_info, load_segmentation_dataset
from segtransformers.datasets.pairs import MissingMasksError
from segtransformers.datasets.scenes import PALETTE, SCENE_CLASSES, draw_scene, write_scenes

AMBIGUOUS = {
    "deepglobe_land_cover",
    "deepglobe_roads",
    "mapillary",
    "mapillary_as_cityscapes",
    "pascal_context_59",
    "pascal_context_60",
}


@pytest.mark.parametrize("kind", [kind for kind in DATASETS if kind != "spacenet_buildings"])  # polygons, not masks
def test_known_layouts(kind, tmp_path):
    info = get_dataset_info(kind)
    last = len(info.classes) - 1
    stored, expected = (0, 1, last + 1), (255, 0, last)
    if not info.reduce_zero_label:
        stored, expected = (0, 1, last, 255), (0, 1, last, 255)
    if kind == "mapillary_as_cityscapes":  # bird; curb; road and its markings; building; bicycle; unlabelled
        stored, expected = (0, 2, 13, 24, 41, 17, 52, 65), (255, 1, 0, 0, 0, 2, 18, 255)
    draw_known(tmp_path, kind, *stored)
    data = load_segmentation_dataset(tmp_path, "val", kind)
    assert len(data) == 2 and data.kind == kind and data.split == "validation"
    assert data.num_labels == len(info.classes) and data.palette == info.palette
    assert data.id2label == dict(enumerate(info.classes))
    sample = data[1]
    assert sample.name == data.names[1] and sample.image.mode == "RGB" and sample.image.size == (WIDTH, HEIGHT)
    assert sample.labels.dtype == np.uint8 and np.array_equal(sample.labels, values(*expected))
    if kind in AMBIGUOUS:
        with pytest.raises(DataError, match="choose one of them"):
            load_segmentation_dataset(tmp_path)
    else:
        assert load_segmentation_dataset(tmp_path).kind == kind


def test_outer_folders_of_known_data_sets(tmp_path):
    draw_known(tmp_path / "ADEChallengeData2016", "ade20k", 0, 1)
    assert load_segmentation_dataset(tmp_path).kind == "ade20k"
    draw_known(tmp_path / "VOCdevkit" / "VOC2010", "pascal_context_60", 0, 1)
    assert len(load_segmentation_dataset(tmp_path, kind="pascal_context_60")) == 2


def test_label_maps_cover_every_class():
    """In COCO-Stuff and Cityscapes every class has one id, in the order of the classes."""
    tables = {
        (kind, layout.mask_endings[0]): (layout.label_map, len(get_dataset_info(kind).classes))
        for kind in DATASETS
        for layout in get_dataset_info(kind).layouts
        if layout.label_map
    }
    assert {kind for kind, _ in tables} == {"cityscapes", "coco_stuff164k", "mapillary_as_cityscapes"}
    for (kind, _), (table, classes) in tables.items():
        labels = [label for _, label in sorted(table.items()) if label != 255]
        assert set(labels) == set(range(classes)), kind
        assert list(table) == list(range(len(table)))
        if kind != "mapillary_as_cityscapes":
            assert labels == list(range(classes)), kind
    assert len(get_dataset_info("pascal_context_60").classes) == 60
    assert get_dataset_info("pascal_context_60").classes[1:] == get_dataset_info("pascal_context_59").classes


def test_kind_of_plain_folders(tmp_path):
    """With `kind`, a folder of images and a folder of masks has the classes and the label map of that data set."""
    draw(tmp_path / "ade", "images/{}.jpg", "masks/{}.png", 0, 150)
    data = load_segmentation_dataset(tmp_path / "ade", kind="ade20k")
    assert data.kind == "ade20k" and data[0].labels[0, :2].tolist() == [255, 149]
    draw(tmp_path / "street", "images/{}.jpg", "masks/{}.png", 13, 65)
    data = load_segmentation_dataset(tmp_path / "street", kind="mapillary_as_cityscapes")
    assert data.num_labels == 19 and data[0].labels[0, :2].tolist() == [0, 255]
    with pytest.raises(ValueError, match="leave out reduce_labels"):
        load_segmentation_dataset(tmp_path / "street", kind="mapillary_as_cityscapes", reduce_labels=True)


def test_original_ids_of_cityscapes_and_coco(tmp_path):
    """Without `labelTrainIds` files, the published tables map the original ids to class indices."""
    images, masks = KNOWN["cityscapes"]
    draw(tmp_path / "city", images, masks.replace("labelTrainIds", "labelIds"), 0, 7, 11, 26, 33)
    save(tmp_path / "city/gtFine/val/lindau/lindau_000000_000019_gtFine_color.png", COLOURS)
    data = load_segmentation_dataset(tmp_path / "city")
    assert data[0].labels[0, :5].tolist() == [255, 0, 2, 13, 18]
    assert data.names[0] == "lindau/lindau_000000_000019"
    images, masks = KNOWN["coco_stuff164k"]
    draw(tmp_path / "coco", images, masks.replace("_labelTrainIds", ""), 0, 12, 91, 181, 255)
    assert load_segmentation_dataset(tmp_path / "coco")[0].labels[0, :5].tolist() == [0, 11, 80, 170, 255]
    draw(tmp_path / "coco", images, masks, 5)  # labelTrainIds files have priority
    assert (load_segmentation_dataset(tmp_path / "coco")[0].labels == 5).all()


def test_colour_masks_of_aerial_images(tmp_path):
    """Potsdam, Vaihingen and DeepGlobe have masks of colours, which compression may have changed a little."""
    palette = np.array([*get_dataset_info("potsdam").palette, [0, 0, 0]], np.uint8)
    labels = values(*range(7))
    for name, mask in (("2_10", labels), ("2_13", labels), ("7_8", np.zeros_like(labels)), ("9_9", labels)):
        save(tmp_path / f"p/2_Ortho_RGB/top_potsdam_{name}_RGB.tif", COLOURS)
        save(tmp_path / f"p/5_Labels_all/top_potsdam_{name}_label.tif", palette[mask])
    data = load_segmentation_dataset(tmp_path / "p", "train")
    assert data.kind == "potsdam" and data.names == ["2_10", "7_8"]  # by the published lists
    assert np.array_equal(data[0].labels, np.where(labels == 6, 255, labels))
    assert (data[1].labels == 0).all()  # all white, which is no index 255
    assert load_segmentation_dataset(tmp_path / "p", "val").names == ["2_13"]
    save(tmp_path / "p/5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif", np.full_like(COLOURS, 255))
    data = load_segmentation_dataset(tmp_path / "p", "train", strict=False)
    assert data.names == ["2_10"] and (data[0].labels == 0).all()

    land = np.array([*get_dataset_info("deepglobe_land_cover").palette, [0, 0, 0]], np.uint8)
    noisy = np.where(land == 0, 17, 250).astype(np.uint8)
    save(tmp_path / "d/train/119_sat.jpg", COLOURS)
    save(tmp_path / "d/train/119_mask.png", noisy[labels])
    data = load_segmentation_dataset(tmp_path / "d", "train", "deepglobe_land_cover")
    assert data.names == ["119"] and np.array_equal(data[0].labels, np.where(labels == 6, 255, labels))
    with pytest.raises(DataError, match="has no split"):
        load_segmentation_dataset(tmp_path / "d", "validation", "deepglobe_land_cover")
    save(tmp_path / "d/train/119_mask.png", np.array([[3] * 3, [252] * 3], np.uint8)[values(0, 1, 1)])
    data = load_segmentation_dataset(tmp_path / "d", "train", "deepglobe_roads")
    assert np.array_equal(data[0].labels, values(0, 1, 1))


def test_loveda_joins_its_parts(tmp_path):
    for part, value in (("Rural", 1), ("Urban", 7)):
        draw(tmp_path, f"Train/{part}/images_png/{{}}.png", f"Train/{part}/masks_png/{{}}.png", 0, value)
    data = load_segmentation_dataset(tmp_path, "train")
    assert data.kind == "loveda" and data.names == ["Rural/0", "Rural/1", "Urban/0", "Urban/1"]
    assert set(np.unique(data[0].labels)) == {0, 255} and set(np.unique(data[3].labels)) == {6, 255}
    with pytest.raises(DataError, match="no split 'validation'"):
        load_segmentation_dataset(tmp_path)


def test_drawn_scenes_as_a_folder(tmp_path):
    write_scenes(tmp_path, 3, seed=5, size=(40, 64), split="train")
    write_scenes(tmp_path, 2, seed=90, size=(40, 64), split="validation")
    data = load_segmentation_dataset(tmp_path, split="train")
    assert data.names == ["scene_0000005", "scene_0000006", "scene_0000007"] and data.kind == "folders"
    assert list(data.id2label.values()) == list(SCENE_CLASSES) and data.palette == PALETTE
    image, labels = draw_scene(6, (40, 64))
    assert np.array_equal(np.asarray(data[1].image), image) and np.array_equal(data[1].labels, labels)
    assert load_segmentation_dataset(str(tmp_path)).names == ["scene_0000090", "scene_0000091"]
    with pytest.raises(DataError, match="no split 'test': it has train, validation"):
        load_segmentation_dataset(tmp_path, "test")


def test_selection_pickling_and_workers(tmp_path):
    data = load_segmentation_dataset(write_scenes(tmp_path, 5, size=(32, 32)))
    assert data.split is None
    assert data.select([3, 1]).names == [data.names[3], data.names[1]]
    assert np.array_equal(data.select([3, 1])[1].labels, data[1].labels)
    shards = [data.shard(2, index) for index in range(2)]
    assert [len(shard) for shard in shards] == [3, 2] and shards[1].names == data.names[1::2]
    assert np.array_equal(data[-1].labels, data[4].labels)
    with pytest.raises(IndexError):
        data[5]
    with pytest.raises(ValueError, match="shard 2 of 2"):
        data.shard(2, 2)
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[2].labels, data[2].labels)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, collate_fn=list)
    assert [sample.name for batch in loader for sample in batch] == data.names


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.jpg", "labels/{}.png"),
        ("img_dir/val/{}.JPG", "ann_dir/val/{}.PNG"),
        ("validation/images/{}.jpeg", "validation/masks/{}.tif"),
        ("JPEGImages/valid/a/{}.bmp", "annotations/valid/a/{}.bmp"),
    ],
)
def test_own_folders(images, masks, tmp_path):
    draw(tmp_path, images, masks, 0, 1, 255)
    (tmp_path / "images.txt").write_text("a file beside the folders is ignored")
    data = load_segmentation_dataset(tmp_path, classes=["a", "b"])
    assert len(data) == 2 and np.array_equal(data[0].labels, values(0, 1, 255))


def test_a_folder_without_splits_warns(tmp_path, caplog):
    logger = logging.getLogger("segtransformers.datasets.loading")
    logger.addHandler(caplog.handler)
    data = load_segmentation_dataset(own_data(tmp_path, 0, 1), "train")
    logger.removeHandler(caplog.handler)
    assert data.split is None and "all samples are taken for 'train'" in caplog.text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "sky\nsea\n\n"),
        ("classes.json", '["sky", "sea"]'),
        ("id2label.json", '{"0": "sky", "1": "sea"}'),
        ("classes.json", '[{"name": "sky", "color": [0, 0, 9]}, {"name": "sea", "color": [0, 9, 0]}]'),
    ],
)
def test_class_files(file, text, tmp_path):
    own_data(tmp_path, 0, 1, classes=None)
    (tmp_path / file).write_text(text)
    data = load_segmentation_dataset(tmp_path)
    assert data.id2label == {0: "sky", 1: "sea"}
    assert data.palette == ([[0, 0, 9], [0, 9, 0]] if "color" in text else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read class names from .*classes.json"),
        ('{"1": "sky", "3": "sea"}', r"without gaps, got \[1, 3\]"),
        ('["sky", "sky"]', "classes 0 and 1 are both called 'sky'"),
        ('["sky", ""]', "class 1 has no name"),
        ('[{"name": "sky", "color": [0, 0, 256]}]', "colour of class 0 must be"),
        ("7.5", "must be a list of names"),
        ("[]", "classes.json names no classes"),
        ("{}", "classes.json names no classes"),
        ('[{"color": [0, 0, 0], "ignore": true}]', "classes.json names no classes"),
    ],
)
def test_wrong_class_files(text, message, tmp_path):
    own_data(tmp_path, 0, 1, classes=None)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset(tmp_path)


def test_missing_classes(tmp_path):
    own_data(tmp_path, 0, 1, classes=None)
    with pytest.raises(DataError, match=r"add a file classes.txt"):
        load_segmentation_dataset(tmp_path)
    assert load_segmentation_dataset(tmp_path, classes=2).id2label == {0: "class 0", 1: "class 1"}
    with pytest.raises(ValueError, match="the number of classes must be 1 to 255"):
        load_segmentation_dataset(tmp_path, classes=300)


def test_names_in_unicode(tmp_path):
    """Names with spaces, dots and accents match, although the folders use different Unicode forms."""
    composed, decomposed = (
        unicodedata.normalize("NFC", "Straße in Orléans v1.2"),
        unicodedata.normalize("NFD", "Orléans"),
    )
    for image, mask in ((composed, composed), ("Orl\u00e9ans", decomposed), ("街 景", "街 景")):
        save(tmp_path / f"images/{image}.png", COLOURS)
        save(tmp_path / f"masks/{mask}.png", values(0, 1))
    data = load_segmentation_dataset(tmp_path, classes=2)
    assert sorted(data.names) == sorted([composed, "Orl\u00e9ans", "街 景"])
    assert all(np.array_equal(sample.labels, values(0, 1)) for sample in data)


def test_unpaired_files(tmp_path):
    own_data(tmp_path, 0, 1, number=4)
    (tmp_path / "masks/2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images in .*images have no mask in .*masks: 2.png"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "images/2.png").unlink()
    (tmp_path / "images/3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 masks in .*masks have no image in .*images: 3.png"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "masks/3.png").unlink()
    assert len(load_segmentation_dataset(tmp_path)) == 2
    save(tmp_path / "images/1.jpg", COLOURS)
    with pytest.raises(DataError, match=r"1\.jpg and .*1\.png differ in their endings only"):
        load_segmentation_dataset(tmp_path)


def test_masks_with_another_ending(tmp_path):
    draw(tmp_path, "images/{}.jpg", "masks/{}_mask.png", 0, 1)
    with pytest.raises(DataError, match=r"pass mask_ending='_mask.png'"):
        load_segmentation_dataset(tmp_path, classes=2)
    assert len(load_segmentation_dataset(tmp_path, classes=2, mask_ending="_mask.png")) == 2


@pytest.mark.parametrize(
    ("image", "mask", "options", "hint"),
    [
        ("{}_sat.jpg", "{}_mask.png", ("_sat.jpg", "_mask.png"), "image_ending='_sat.jpg', mask_ending='_mask.png'"),
        ("img_{}.jpg", "mask_{}.png", ("img_*", "mask_*.png"), "image_ending='img_*.jpg', mask_ending='mask_*.png'"),
        ("s/a-{}.jpg", "s/b {} x.png", ("a-*", "b * x.png"), "image_ending='a-*.jpg', mask_ending='b * x.png'"),
        ("one {}.jpg", "two {}.png", ("one *.jpg", "two *.png"), "(--image-ending, --mask-ending)"),
    ],
)
def test_templates_of_file_names(image, mask, options, hint, tmp_path):
    draw(tmp_path, f"images/{image}", f"masks/{mask}", 0, 1)
    with pytest.raises(DataError, match=re.escape(hint)):
        load_segmentation_dataset(tmp_path, classes=2)
    data = load_segmentation_dataset(tmp_path, classes=2, image_ending=options[0], mask_ending=options[1])
    assert [name[-1] for name in data.names] == ["0", "1"]
    with pytest.raises(DataError, match="must hold one"):
        load_segmentation_dataset(tmp_path, classes=2, image_ending="*a*.jpg")


def test_lists_define_splits(tmp_path):
    """As in Pascal VOC, where most images have no masks."""
    draw(tmp_path, "JPEGImages/x{}.jpg", "SegmentationClass/x{}.png", 0, 1, number=4)
    save(tmp_path / "JPEGImages/unlabelled.jpg", COLOURS)
    (tmp_path / "Annotations").mkdir()
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("x1\n")
    assert load_segmentation_dataset(tmp_path, "train", classes=2).names == ["x1"]
    (lists / "default.txt").unlink()
    (lists / "train.txt").write_text("x0 1\nJPEGImages/x1.jpg SegmentationClass/x1.png\nx2\n")
    (lists / "val.txt").write_text("x3\n")
    (lists / "trainval.txt").write_text("x0\nx3\n")
    for split, names in (("train", ["x0", "x1", "x2"]), ("validation", ["x3"]), ("trainval", ["x0", "x3"])):
        assert load_segmentation_dataset(tmp_path, split, classes=2).names == names
    with pytest.raises(DataError, match="no split 'test': it has train, trainval, val"):
        load_segmentation_dataset(tmp_path, "test", classes=2)
    (lists / "test.txt").write_text("unlabelled\n")
    with pytest.raises(MissingMasksError, match="no mask for any of the 1 samples"):
        load_segmentation_dataset(tmp_path, "test", classes=2)
    (lists / "val.txt").write_text("x3\nunlabelled\nx9\n")
    with pytest.raises(DataError, match=r"have no image in .*: x9.*; .* have no mask in .*: unlabelled"):
        load_segmentation_dataset(tmp_path, "validation", classes=2)
    lenient = load_segmentation_dataset(tmp_path, "validation", classes=2, strict=False)
    assert lenient.names == ["x3"] and len(lenient.problems) == 2


def test_file_names_that_are_not_utf8(tmp_path):
    own_data(tmp_path, 0, 1, number=1)
    for folder in ("images", "masks"):
        try:
            os.rename(tmp_path / folder / "0.png", os.fsencode(tmp_path / folder) + b"/caf\xe9.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    data = load_segmentation_dataset(tmp_path)
    assert data.names == ["caf\\xe9"] and data[0].name == data.names[0] and check_dataset(data).samples == 1
    assert pickle.loads(pickle.dumps(data)).select([0])[0].labels.shape == (HEIGHT, WIDTH)
    "\n".join(data.names).encode()


def test_folders_need_no_datasets_library(tmp_path):
    code = (
        "import sys; sys.modules['datasets'] = None\nfrom segtransformers.datasets import load_segmentation_dataset\n"
    )
    code += f"print(len(load_segmentation_dataset({str(own_data(tmp_path, 0, 1))!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr


COLOURED = {0: (0, 0, 0), 1: (128, 0, 0)}


@pytest.mark.parametrize(
    ("folder", "file", "text"),
    [
        ("SegmentationClass", "labelmap.txt", "# label:color_rgb:parts:actions\na b:0,0,0::\nobject:128,0,0::\n"),
        ("masks", "class_dict.csv", "name,r,g,b\na b,0,0,0\nobject,128,0,0\n"),
        ("masks", "class_dict.csv", "class, red, green, blue\na b, 0, 0, 0\nobject, 128, 0, 0\n"),
        ("masks", "classes.json", '{"a b": [0, 0, 0], "object": "#800000"}'),
        ("masks", "classes.json", '[{"name": "a b", "color": "#000000"}, {"name": "object", "color": [128, 0, 0]}]'),
    ],
)
def test_classes_and_colours_of_labelling_tools(folder, file, text, tmp_path):
    draw(tmp_path, "images/{}.png", f"{folder}/{{}}.png", 0, 1)
    labels = values(0, 1)
    for index in range(2):
        Image.fromarray(np.array(list(COLOURED.values()), np.uint8)[labels]).save(tmp_path / folder / f"{index}.png")
    (tmp_path / file).write_text(text)
    data = load_segmentation_dataset(tmp_path)
    assert data.id2label == {0: "a b", 1: "object"} and data.palette == [[0, 0, 0], [128, 0, 0]]
    assert np.array_equal(data[0].labels, labels)


def test_folders_of_labelme(tmp_path):
    draw(tmp_path, "JPEGImages/{}.jpg", "SegmentationClassPNG/{}.png", 0, 1)
    (tmp_path / "SegmentationClass").mkdir()
    np.save(tmp_path / "SegmentationClass/0.npy", values(0, 1))
    (tmp_path / "class_names.txt").write_text("_background_\nobject\n")
    assert load_segmentation_dataset(tmp_path).id2label == {0: "_background_", 1: "object"}
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nthing\n")
    assert load_segmentation_dataset(tmp_path).id2label == {0: "_background_", 1: "thing"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("class_dict.csv", "a,b\n", "must name the columns name, r, g and b"),
        ("class_dict.csv", "name,r,g,b\na,0,0\n", "whole numbers for red"),
        ("class_dict.csv", "name,r,g,b\na,0,0,300\n", "must be"),
        ("labelmap.txt", "a:0,0,0::\nb\n", "expected name:red,green,blue"),
        ("classes.json", '{"a": 0, "b": 2}', "without gaps"),
        ("classes.json", '{"a": "red"}', "class indices must be whole numbers"),
    ],
)
def test_wrong_class_files_of_labelling_tools(file, text, message, tmp_path):
    draw(tmp_path, "images/{}.png", "masks/{}.png", 0)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset(tmp_path)


def test_missing_folders_and_splits(tmp_path):
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        load_segmentation_dataset(tmp_path / "nowhere", classes=2)
    with pytest.raises(DataError, match="holds no data set"):
        load_segmentation_dataset(tmp_path, classes=2)
    with pytest.raises(DataError, match=r"cityscapes has folders leftImg8bit/\(split\) and gtFine.*; it is empty"):
        load_segmentation_dataset(tmp_path, kind="cityscapes")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="has no folder of masks: name it masks"):
        load_segmentation_dataset(tmp_path, classes=2)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="images holds no images"):
        load_segmentation_dataset(tmp_path, classes=2)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="several folders that may hold the masks: masks, labels"):
        load_segmentation_dataset(tmp_path, classes=2)
    with pytest.raises(ValueError, match="unknown data set 'imagenet'"):
        load_segmentation_dataset(tmp_path, kind="imagenet")
    with pytest.raises(DataError, match="ade20k has no split 'test'"):
        load_segmentation_dataset(draw_known(tmp_path / "ade", "ade20k", 0, 1), "test")


def test_lists_of_samples(tmp_path):
    draw_known(tmp_path, "nyu_depth_v2", 0, 40)
    save(tmp_path / "image/0007.png", COLOURS)  # of another split
    assert load_segmentation_dataset(tmp_path).names == ["0000", "0001"]
    (tmp_path / "test.txt").write_text("0000\n0009\n")
    with pytest.raises(DataError, match=r"1 of 2 samples in .*test.txt have no image in .*image: 0009"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "test.txt").write_text("0000\n0000\n")
    with pytest.raises(DataError, match="listed twice"):
        load_segmentation_dataset(tmp_path)


def test_ignored_files_are_listed(tmp_path, caplog):
    own_data(tmp_path, 0, 1)
    (tmp_path / "images/notes.txt").write_text("")
    (tmp_path / "images/.hidden").write_text("")
    logger = logging.getLogger("segtransformers.datasets.loading")
    logger.addHandler(caplog.handler)
    data = load_segmentation_dataset(tmp_path)
    logger.removeHandler(caplog.handler)
    assert [path.name for path in data.ignored_files] == ["notes.txt"] and "notes.txt" in caplog.text


def test_files_outside_the_splits_are_listed(tmp_path):
    write_scenes(tmp_path, 1, size=(32, 32), split="train")
    save(tmp_path / "images/lost.png", COLOURS)
    data = load_segmentation_dataset(tmp_path, "train")
    assert len(data) == 1 and [path.name for path in data.ignored_files] == ["lost.png"]


def test_links_are_followed_without_loops(tmp_path):
    draw(tmp_path / "elsewhere", "{}.png", "masks/{}.png", 0, 1)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/deep").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/masks").rename(tmp_path / "other_masks")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/deep").symlink_to(tmp_path / "other_masks", target_is_directory=True)
    (tmp_path / "masks/deep/round").symlink_to(tmp_path / "masks", target_is_directory=True)
    data = load_segmentation_dataset(tmp_path, classes=2)
    assert data.names == ["deep/0", "deep/1"] and np.array_equal(data[0].labels, values(0, 1))


@pytest.fixture
def hub_rows(tmp_path, monkeypatch):
    """Small rows with the columns of ADE20K on the Hub: `image`, `annotation` and `scene_category`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw_known(tmp_path / "files", "ade20k", 0, 1, 150)
    images, masks = (sorted((tmp_path / "files").glob(f"{name}/*/*")) for name in ("images", "annotations"))
    images, masks = ([{"bytes": path.read_bytes(), "path": path.name} for path in paths] for paths in (images, masks))
    columns = {"image": images, "annotation": masks, "scene_category": [1, 2]}
    features = {"image": datasets.Image(), "annotation": datasets.Image(), "scene_category": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_parquet_files(hub_rows, tmp_path):
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    hub_rows.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    hub_rows.select([0]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    data = load_segmentation_dataset(folder, kind="ade20k")
    assert data.names == ["ADE_val_00000000", "ADE_val_00000001"] and data.split == "validation"
    assert np.array_equal(data[1].labels, values(255, 0, 149))
    assert len(load_segmentation_dataset(folder, "train", "ade20k")) == 1
    assert np.array_equal(pickle.loads(pickle.dumps(data))[0].labels, data[0].labels)
    with pytest.raises(DataError, match="no split 'test': it has"):
        load_segmentation_dataset(folder, "test", "ade20k")
    with pytest.raises(DataError, match=r"the mask ADE_val_00000000.png \(row 0 of .*hub\).* 150 "):
        load_segmentation_dataset(folder, classes=150)[0]
    with pytest.raises(DataError, match="mask_column='scene_category' is no image column"):
        load_segmentation_dataset(folder, kind="ade20k", mask_column="scene_category")


def test_folder_saved_by_datasets(hub_rows, tmp_path):
    import datasets

    hub_rows = hub_rows.rename_columns({"image": "picture", "annotation": "truth"})
    datasets.DatasetDict({"val": hub_rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"cannot tell images from masks.*picture, truth"):
        load_segmentation_dataset(tmp_path / "saved", classes=151)
    options = {"image_column": "picture", "mask_column": "truth"}
    data = load_segmentation_dataset(tmp_path / "saved", classes=151, **options)
    assert np.array_equal(data[0].labels, values(0, 1, 150)) and data.split == "validation"
    hub_rows.save_to_disk(tmp_path / "single")
    assert load_segmentation_dataset(tmp_path / "single", classes=151, **options).split is None


def test_image_folder_with_metadata(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    draw(folder, "train/{}.png", "train/{}_truth.png", 0, 1)
    lines = [{"file_name": f"{index}.png", "mask_file_name": f"{index}_truth.png"} for index in range(2)]
    (folder / "train/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load_segmentation_dataset(folder, "train", classes=2)
    assert len(data) == 2 and np.array_equal(data[0].labels, values(0, 1))
    flat = tmp_path / "flat"
    draw(flat, "images/{}.png", "images/{}_truth.png", 0, 1)
    lines = [{"file_name": f"images/{index}.png", "mask_file_name": f"images/{index}_truth.png"} for index in range(2)]
    (flat / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load_segmentation_dataset(flat, "train", classes=2)) == 2


def test_missing_name_on_the_hub():
    with pytest.raises(DataError, match=r"scene_parse_150 \(no such folder exists here\): "):
        load_segmentation_dataset("scene_parse_150")
    with pytest.raises(DataError, match="cannot load the data set someone/street"):
        load_segmentation_dataset("someone/street")
