# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Small data sets on disk: the known layouts, and the user's own folders."""

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 6, 9
COLOURS = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def values(*present):
    """Return a mask that repeats these values."""
    return np.resize(np.array(present, np.uint8), (HEIGHT, WIDTH))


def draw(root, images, masks, *present, number=2, first=0):
    """Write `number` samples. The paths are format strings of the index; the masks repeat the values `present`."""
    for index in range(first, first + number):
        save(root / images.format(index), COLOURS)
        save(root / masks.format(index), values(*present))


KNOWN = {
    "ade20k": ("images/validation/ADE_val_{:08d}.jpg", "annotations/validation/ADE_val_{:08d}.png"),
    "cityscapes": (
        "leftImg8bit/val/lindau/lindau_{:06d}_000019_leftImg8bit.png",
        "gtFine/val/lindau/lindau_{:06d}_000019_gtFine_labelTrainIds.png",
    ),
    "coco_stuff10k": ("images/test2014/COCO_{:012d}.jpg", "annotations/test2014/COCO_{:012d}_labelTrainIds.png"),
    "coco_stuff164k": ("images/val2017/{:012d}.jpg", "annotations/val2017/{:012d}_labelTrainIds.png"),
    "deepglobe_land_cover": ("valid/{}_sat.jpg", "valid/{}_mask.png"),
    "deepglobe_roads": ("valid/{}_sat.jpg", "valid/{}_mask.png"),
    "loveda": ("Val/Urban/images_png/{}.png", "Val/Urban/masks_png/{}.png"),
    "mapillary": ("validation/images/{:022d}.jpg", "validation/labels/{:022d}.png"),
    "mapillary_as_cityscapes": ("validation/images/{:022d}.jpg", "validation/v1.2/labels/{:022d}.png"),
    "nyu_depth_v2": ("image/{:04d}.png", "label40/{:04d}.png"),
    "pascal_context_59": ("JPEGImages/2008_{:06d}.jpg", "SegmentationClassContext/2008_{:06d}.png"),
    "pascal_context_60": ("JPEGImages/2008_{:06d}.jpg", "SegmentationClassContext/2008_{:06d}.png"),
    "potsdam": ("2_Ortho_RGB/top_potsdam_{}_13_RGB.tif", "5_Labels_all/top_potsdam_{}_13_label.tif"),
    "vaihingen": ("top/top_mosaic_09cm_area{}0.tif", "gts_for_participants/top_mosaic_09cm_area{}0.tif"),
    "voc2012": ("JPEGImages/2007_{:06d}.jpg", "SegmentationClass/2007_{:06d}.png"),
}
FIRST = {"potsdam": 3, "vaihingen": 1}  # index of the first sample that is in the split val
LISTS = {
    "nyu_depth_v2": ("test.txt", "{:04d}"),
    "pascal_context_59": ("ImageSets/SegmentationContext/val.txt", "2008_{:06d}"),
    "pascal_context_60": ("ImageSets/SegmentationContext/val.txt", "2008_{:06d}"),
    "voc2012": ("ImageSets/Segmentation/val.txt", "2007_{:06d}"),
}


def draw_known(root, kind, *present):
    draw(root, *KNOWN[kind], *present, first=FIRST.get(kind, 0))
    if kind in LISTS:
        path, name = LISTS[kind]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("".join(name.format(index) + "\n" for index in range(2)))
    return root


def own_data(root, *present, classes=3, number=2):
    draw(root, "images/{}.png", "masks/{}.png", *present, number=number)
    if classes:
        (root / "classes.txt").write_text("".join(f"class {index}\n" for index in range(classes)))
    return root
