# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The report of a training run."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from segtransformers.cli.train_report import are_file_names, duration, predictions_compared, shown_image, write_report
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import PALETTE, SCENE_CLASSES, write_scenes
from segtransformers.metrics import MeanIoU
from segtransformers.rasters.band_image import BandImage
from segtransformers.training.report import Report, ShownImage, confused_pairs, report_page, worst_first

HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e"
HISTORY = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 20, "loss": 1.5, "learning_rate": 5e-4},
    {"step": 20, "eval_loss": 1.75, "eval_mean_iou": 0.25},
    {"step": 40, "eval_loss": float("nan"), "eval_mean_iou": 0.75},
    {"step": 40, "train_runtime": 3.0},
]


class Tags(html.parser.HTMLParser):
    """Collect tags, texts and addresses, and check that tags are closed in order."""

    VOID = {"meta", "img"}

    def __init__(self, page: str):
        super().__init__()
        self.stack, self.tags, self.addresses, self.texts = [], [], [], []
        self.feed(page)
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def results(names, **more):
    classes = [{"name": name, "iou": 0.5, "accuracy": None, "dice": 2 / 3, **more} for name in names]
    return {"mean_iou": 0.5, "mean_dice": 2 / 3, "overall_accuracy": 0.9, "classes": classes}


def test_texts_are_escaped_and_nothing_is_loaded():
    image = ShownImage(
        HOSTILE, 0.1, Image.new("L", (900, 300)), np.zeros((300, 900), np.uint8), np.ones((300, 900), int)
    )
    report = Report(
        title=HOSTILE,
        history=HISTORY,
        results=results([HOSTILE, "b"]),
        confusion=np.array([[5, 3, 0], [1, 7, 2]]),
        worst=[image],
        facts={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
        command=HOSTILE,
        settings={HOSTILE: [HOSTILE]},
    )
    page = report_page(report)
    tags = Tags(page)
    assert "<img src=x" not in page and "\u202e" not in page and "script" not in tags.tags and "link" not in tags.tags
    assert len(tags.addresses) == 3 and all(one.startswith("data:image/jpeg;base64,") for one in tags.addresses)
    assert "://" not in page and "default-src 'none'" in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert sum("<img src=x onerror" in text for text in tags.texts) >= 7


def test_curves_have_the_values_of_the_run():
    page = report_page(Report(title="a", history=HISTORY, best_step=40))
    assert page.count("<svg") == 3 and page.count("<polyline") == 4
    titles = re.findall(r"<title>(\w+[^<]*, step [^<]*)</title>", page)
    assert "training, step 10: 2" in titles and "evaluation, step 40: 75" in titles
    assert not any("nan" in title for title in titles)
    assert page.count('class="best"') == 3 and "best step" in page
    assert "<svg" not in report_page(Report(title="a", history=[]))
    many = [{"step": step, "loss": 1.0} for step in range(1, 5001)]
    assert len(report_page(Report(title="a", history=many))) < 20_000


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, -2.0, 1e12])
def test_equal_values_can_be_drawn(value):
    assert "nan" not in report_page(Report(title="a", history=[{"step": 1, "loss": value}])).partition("</style>")[2]


def test_all_figures_of_the_classes_become_columns():
    page = report_page(Report(title="a", history=[], results=results(["a", "b"], precision=0.25, recall=1.0)))
    head = re.findall(r"<th>([^<]*)</th>", page)
    assert head == ["class", "IoU", "Dice", "precision", "recall"]  # no class has an accuracy
    assert page.count("<td>25.0</td>") == 2


def test_confused_pairs_are_ranked_by_pixels():
    confusion = np.array([[90, 10, 0, 0], [2, 0, 0, 2], [0, 0, 0, 0]])
    assert confused_pairs(confusion) == [(0, 1, 0.1), (1, 0, 0.5)]
    assert worst_first([0.5, float("nan"), 0.1, 0.3], 2) == [2, 3]
    assert duration(65) == "1:05" and duration(3725) == "1:02:05"


def test_saved_predictions_are_compared_with_the_truth(tmp_path):
    data = load_segmentation_dataset(str(write_scenes(tmp_path / "data", 3, size=(32, 48))), "train")
    folder = tmp_path / "predictions"
    folder.mkdir()
    metric = MeanIoU(len(SCENE_CLASSES))
    for index, name in enumerate(data.names):
        labels = data[index].labels
        predicted = np.roll(labels, 6 * index, axis=1)  # the later, the worse
        Image.fromarray(predicted.astype(np.uint8)).save(folder / f"{name}.png")
        metric.add(prediction=predicted, reference=labels)
    confusion, worst = predictions_compared(data, folder)
    assert np.array_equal(confusion, metric.confusion.numpy())
    assert [one.name for one in worst] == [data.names[2], data.names[1], data.names[0]]
    assert worst[-1].score == 1.0 > worst[1].score > worst[0].score
    means = metric.figures()
    classes = [
        {"name": name, "iou": float(iou)} for name, iou in zip(SCENE_CLASSES, means["per_category_iou"], strict=True)
    ]
    report = Report(
        title="a", history=[], results={"classes": classes}, confusion=confusion, worst=worst, palette=PALETTE
    )
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    Tags(page)
    assert page.count("<img ") == 9 and json.dumps({}) in page


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_images_of_any_bands_can_be_shown(count):
    values = np.random.default_rng(0).normal(3000, 500, (count, 20, 30)).astype(np.float32)
    values[:, 0] = np.nan
    image = shown_image(BandImage(values))
    assert image.size == (30, 20) and image.mode == "RGB" and 30 < np.asarray(image).std() < 110


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b/c", "b\\d"], True),
        (["a", "a"], False),
        (["b/c", "b\\c"], False),
        (["../a"], False),
        (["/a"], False),
        ([""], False),
        (["x" * 300], False),
    ],
)
def test_samples_whose_predictions_cannot_be_saved_are_not_compared(names, expected):
    assert are_file_names(names) == expected
