# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU against recorded figures of the original code, streamed, merged, in `Trainer`, and with wrong inputs."""

import json
import math

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import FOLDER
from safetensors.torch import load_file
from test_seg_upernet import small_head
from transformers import EvalPrediction, Trainer, TrainingArguments

from segtransformers import SegUperNetForSemanticSegmentation
from segtransformers.metrics import MeanIoU

RECORDED = json.loads((FOLDER / "metrics" / "segmentation_metrics.json").read_text())
MAPS = load_file(FOLDER / "metrics" / "segmentation_metrics.safetensors")
PREDICTIONS = [MAPS[f"prediction.{index}"] for index in range(RECORDED["images"])]
LABELS = [MAPS[f"label.{index}"] for index in range(RECORDED["images"])]
NAMES = {"mIoU": "mean_iou", "mAcc": "mean_accuracy", "mDice": "mean_dice", "aAcc": "overall_accuracy"}
LISTS = {"IoU": "per_category_iou", "Acc": "per_category_accuracy", "Dice": "per_category_dice"}


def metric(**options) -> MeanIoU:
    return MeanIoU(RECORDED["num_classes"], ignore_index=RECORDED["ignore_index"], **options)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=[case["name"] for case in RECORDED["cases"]])
def test_figures_of_the_original(case):
    found = metric(reduce_labels=case["reduce_zero_label"]).compute(
        predictions=PREDICTIONS, references=LABELS, nan_to_num=case["nan_to_num"]
    )
    for theirs, ours in NAMES.items():
        assert found[ours] == case[theirs], theirs
    for theirs, ours in LISTS.items():
        expected = np.array(case[theirs], dtype=float)  # null becomes NaN
        np.testing.assert_array_equal(found[ours], expected, err_msg=theirs)


@pytest.mark.parametrize("reduced", [False, True])
def test_areas_of_the_original(reduced):
    counted = metric(reduce_labels=reduced)
    counted.add_batch(predictions=PREDICTIONS, references=LABELS)
    areas = {name: MAPS[f"reduce_zero_label_{str(reduced).lower()}.area_{name}"] for name in ("intersect", "label")}
    predicted = MAPS[f"reduce_zero_label_{str(reduced).lower()}.area_pred_label"]
    assert counted.confusion.dtype == torch.int64
    assert torch.equal(counted.confusion.diagonal().double(), areas["intersect"])
    assert torch.equal(counted.confusion.sum(1).double(), areas["label"])
    assert torch.equal(counted.confusion[:, :-1].sum(0).double(), predicted)


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        lambda x: Image.fromarray(x.numpy()),
        lambda x: x.flip(1).numpy()[:, ::-1],  # negative strides
        lambda x: x.numpy().astype(">i4"),
    ],
)
def test_arrays_lists_and_images_are_taken(convert):
    whole = metric().compute(predictions=PREDICTIONS, references=LABELS)
    streamed = metric()
    for prediction, label in zip(PREDICTIONS, LABELS, strict=True):
        streamed.add(prediction=convert(prediction), reference=convert(label))
    found = streamed.compute()
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value)
    assert math.isnan(streamed.compute()["mean_iou"])  # the counts are zero again


def test_any_division_among_processes_gives_the_same_counts():
    whole, parts = metric(), [metric(), metric()]
    whole.add_batch(predictions=PREDICTIONS, references=LABELS)
    for index, (prediction, label) in enumerate(zip(PREDICTIONS, LABELS, strict=True)):
        parts[index % 2].add(prediction=prediction, reference=label)
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].confusion, whole.confusion)
    with pytest.raises(ValueError, match="3 classes with those of 10"):
        whole.merge(MeanIoU(3))


def test_large_maps_are_counted_in_pieces(monkeypatch):
    whole = metric()
    whole.add_batch(predictions=PREDICTIONS, references=LABELS)
    monkeypatch.setattr("segtransformers.metrics.CHUNK", 1000)
    pieces = metric()
    pieces.add_batch(predictions=PREDICTIONS, references=LABELS)
    assert torch.equal(pieces.confusion, whole.confusion)


def test_no_prediction_is_wrong():
    """In the original code a prediction beyond the classes falls out of the histogram, but its label counts."""
    labels = torch.tensor([[0, 0, 1, 255]])
    found = MeanIoU(2).compute(predictions=[torch.tensor([[0, 255, 1, 255]])], references=[labels])
    assert found["per_category_iou"].tolist() == [0.5, 1] and found["overall_accuracy"] == 2 / 3


def test_the_documented_call_of_evaluate():
    """The example of `evaluate.load("mean_iou")`, with its settings as arguments of `compute`, and its figures."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    found = MeanIoU(num_labels=10).compute(
        predictions=[np.array(one) for one in predictions],
        references=[np.array(one) for one in references],
        num_labels=10,
        ignore_index=255,
        reduce_labels=False,
    )
    iou = [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1]
    accuracy = [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1]
    np.testing.assert_allclose(found["per_category_iou"], iou)
    np.testing.assert_allclose(found["per_category_accuracy"], accuracy)
    assert found["mean_iou"] == pytest.approx(0.4775) and found["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert found["overall_accuracy"] == pytest.approx(0.5263157894736842)


@pytest.mark.parametrize("setting", [{"num_labels": 4}, {"ignore_index": 254}, {"reduce_labels": True}])
def test_compute_takes_no_other_settings_than_the_constructor(setting):
    counted = MeanIoU(3)
    counted.add(prediction=torch.zeros(4, 4, dtype=int), reference=torch.zeros(4, 4, dtype=int))
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"compute got {name}={value}, but this metric was made with {name}="):
        counted.compute(**setting)
    assert counted.confusion.sum() == 16  # the counts are kept
    assert counted.compute(num_labels=3, ignore_index=255, reduce_labels=False)["mean_iou"] == 1


def test_with_evaluate_combine(tmp_path, monkeypatch):
    both = evaluate.combine({"plain": metric(), "reduced": metric(reduce_labels=True)})
    both.add_batch(predictions=PREDICTIONS, references=LABELS)
    found = both.compute()
    assert found["plain_mean_iou"] == RECORDED["cases"][0]["mIoU"]
    assert found["reduced_mean_iou"] == RECORDED["cases"][2]["mIoU"]


def test_as_metric_of_trainer(tmp_path):
    """Logits are not kept, the last batch is smaller, and a second evaluation does not add to the first."""
    model = SegUperNetForSemanticSegmentation(small_head(num_labels=3)).eval()
    images, labels = torch.randn(5, 3, 64, 64), torch.randint(3, (5, 64, 64))
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=2, batch_eval_metrics=True, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, eval_dataset=data, compute_metrics=MeanIoU(3))
    with torch.no_grad():
        predictions = torch.cat([model(image[None]).logits for image in images]).argmax(1)
    expected = MeanIoU(3).compute(predictions=predictions, references=labels)
    for _ in range(2):
        found = trainer.evaluate()
        assert found["eval_mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)  # the batch size may round
    trainer.save_state()  # the figures fit in JSON


def test_logits_of_another_size_and_further_outputs():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0], logits[0, 1, :, 1] = 0.5, 1
    found = MeanIoU(2)(EvalPrediction((logits, torch.zeros(1)), torch.tensor([[[0, 0, 1, 1]] * 4])))
    names = ("overall_accuracy", "mean_iou", "mean_accuracy", "mean_dice", "mean_precision", "mean_recall")
    assert found == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=int), "predictions must be class indices.*float32"),
        (torch.zeros(1, 4, 4, dtype=int), torch.zeros(1, 4, 4), "references must be class indices.*float32"),
        (torch.zeros(4, 4, dtype=int), torch.zeros(4, 4, dtype=int), "one label map .height, width., got the shape"),
        (torch.zeros(1, 4, 5, dtype=int), torch.zeros(1, 4, 4, dtype=int), "must have the same size"),
        (torch.zeros(2, 4, 4, dtype=int), torch.zeros(1, 4, 4, dtype=int), "got 2 predictions and 1 references"),
        (
            torch.full((1, 4, 4), 3),
            torch.zeros(1, 4, 4, dtype=int),
            "predictions hold 3, which is no class: expected 0 to 2",
        ),
        (torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4, dtype=int), "predictions hold -1"),
        (torch.zeros(1, 4, 4, dtype=int), torch.full((1, 4, 4), 3), "references hold 3.*reduce_labels=True"),
        (torch.zeros(1, 4, 4, dtype=int), torch.full((1, 4, 4), 7), "references hold 7, which is no class"),
    ],
)
def test_wrong_inputs_are_named_and_not_counted(predictions, references, message):
    refusing = MeanIoU(3)
    with pytest.raises(ValueError, match=message):
        refusing.add_batch(predictions=predictions, references=references)
    assert not refusing.confusion.any()


def test_a_bad_image_leaves_the_good_ones_of_its_batch_uncounted():
    refusing, zeros = MeanIoU(3), torch.zeros(2, 4, 4, dtype=int)
    with pytest.raises(ValueError, match="references hold 9"):
        refusing.add_batch(predictions=zeros, references=torch.stack([zeros[0], zeros[1] + 9]))
    assert not refusing.confusion.any()


def test_wrong_settings():
    with pytest.raises(ValueError, match="num_labels must be at least 1, got 0"):
        MeanIoU(0)
    with pytest.raises(ValueError, match="ignore_index=255 is one of the 847 classes"):
        MeanIoU(847)
    with pytest.raises(ValueError, match="pass both or none"):
        metric().compute(predictions=PREDICTIONS)
    with pytest.raises(ValueError, match=r"logits .* are needed, got \(1, 4, 4\)"):
        MeanIoU(3)(EvalPrediction(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)))


@pytest.mark.gpu
def test_counts_stay_on_the_gpu():
    counted = metric()
    counted.add_batch(predictions=[one.cuda() for one in PREDICTIONS], references=LABELS)
    assert counted.confusion.is_cuda
    assert counted.compute()["mean_iou"] == RECORDED["cases"][0]["mIoU"]
