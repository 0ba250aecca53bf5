# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Updates by each loss, and averages of weights, with accumulated batches and in two processes.

A step of four images is one batch of four, two accumulated batches of two, four batches of one, or one batch of two in
each of two processes. Losses that are sums over pixels, divided by pixels of the whole step, and means over images give
equal updates. Losses that compare areas or ranks of all pixels of a batch do not, by their definition: the mean of two
Dice coefficients is not that of the joined areas. They are equal for the same division of the images, whether batches
are accumulated or in several processes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training_processes import TORCHRUN, launch
from torch import distributed
from training_cases import Scenes, crop, processor, small_model, trainer
from transformers import AutoModelForSemanticSegmentation

from segtransformers.training import EvaluationDataset, Recipe, TrainingDataset
from segtransformers.training.recipe_settings import WeightAverageSettings

MULTI_LABEL = "multi_label_classification"
WEIGHTS = [1.0, 0.5, 2.0, 0.25, 4.0, 1.0, 3.0, 0.5, 2.0, 1.5]
EQUAL = {
    "cross entropy": {"name": "cross_entropy"},
    "over all pixels": {"name": "cross_entropy", "average_over": "all_pixels"},
    "class weights": {"name": "cross_entropy", "class_weights": WEIGHTS},
    "class weights over pixels": {
        "name": "cross_entropy",
        "class_weights": WEIGHTS,
        "average_over": "valid_pixels",
        "label_smoothing": 0.1,
    },
    "sigmoids": {"name": "binary_cross_entropy", "positive_weights": WEIGHTS},
    "focal": {"name": "focal", "class_weights": WEIGHTS},
    # min_kept is so small that the threshold alone decides which pixels are kept, and their sum is divided by all
    "ohem of mmseg": {"name": "ohem_cross_entropy", "definition": "mmseg", "threshold": 0.1, "min_kept": 1},
    "dice of images": {"name": "dice", "per_image": True, "class_weights": WEIGHTS},
    "dice of mmseg": {"name": "dice", "definition": "mmseg"},
    "tversky of images": {"name": "tversky", "per_image": True},
    "lovasz of images": {"name": "lovasz", "per_image": True},
    "masks, sigmoids": {"name": "binary_cross_entropy", "positive_weights": [2.0, 3.0]},
    "masks, focal": {"name": "focal"},
    "masks, dice of images": {"name": "dice", "per_image": True},
}
BY_BATCH = {
    "dice": {"name": "dice"},
    "jaccard": {"name": "jaccard"},
    "lovasz": {"name": "lovasz"},
    "ohem": {"name": "ohem_cross_entropy", "threshold": 0.1, "min_kept": 20},  # a mean over the kept pixels of a batch
    "ohem of ranks": {"name": "ohem_cross_entropy", "threshold": None, "min_kept": 500},
    "masks, lovasz": {"name": "lovasz"},
}
SETTINGS = {
    "max_steps": 2,
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0,
    "train_sampling_strategy": "sequential",
    "eval_strategy": "no",
}
AVERAGED = {**SETTINGS, "max_steps": 4, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}
SCRIPT = """
import sys
import test_loss_processes as cases
getattr(cases, sys.argv[1])(sys.argv[2])
"""


class UnevenScenes(Scenes):
    """Drawn scenes with different numbers of pixels without a class."""

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        sample.labels[: 11 * (index % 4)] = 255
        return sample


class MaskScenes(UnevenScenes):
    """The same scenes with the masks of two classes."""

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        masks = np.stack([sample.labels >= 4, sample.labels >= 8]).astype(np.uint8)
        masks[:, sample.labels == 255] = 255
        sample.labels = masks
        return sample


def masks_of_crop(image, labels, seed) -> dict[str, torch.Tensor]:
    """Return the crop of an image with the masks of two classes, of which the second has more ignored pixels."""
    sample = crop(image, labels, seed)
    labels = sample["labels"]
    masks = torch.stack([(labels >= 4), (labels >= 8)]).byte()
    masks[:, labels == 255] = 255
    masks[1, :, : 10 * (seed[-1] % 3)] = 255
    return {**sample, "labels": masks}


def run_of(name: str, folder: str, per_device: int, loss=None, **changes):
    """Return a trainer of a model whose results do not depend on the division of images into batches."""
    is_masks = name.startswith("masks")
    classes = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": MULTI_LABEL}
    model = small_model(
        "segmenter", decoder_type="linear", losses=loss and [loss], **(classes if is_masks else {}), palette=None
    )
    data = TrainingDataset(UnevenScenes(8), masks_of_crop if is_masks else crop)
    return trainer(
        model, folder, train_dataset=data, **{**SETTINGS, "per_device_train_batch_size": per_device, **changes}
    )


def evaluated_masks(folder: str, per_device: int, **changes) -> dict:
    """Train a multi-label model, and return the figures of its last evaluation, of an odd number of images."""
    data = EvaluationDataset(MaskScenes(5), processor())
    run = run_of(
        "masks", folder, per_device, eval_dataset=data, **{**changes, "eval_strategy": "steps", "eval_steps": 2}
    )
    run.train()
    (figures,) = [entry for entry in run.state.log_history if "eval_mean_iou" in entry]
    figures = {name: value for name, value in figures.items() if name.startswith(("eval_mean", "eval_overall"))}
    return figures | {name: values.tolist() for name, values in run.class_metrics.items()}


def updates(run) -> dict[str, torch.Tensor]:
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.train()
    return {name: parameter.detach() - before[name] for name, parameter in run.model.named_parameters()}


def averaged(folder: str, per_device: int, **changes):
    recipe = Recipe(name="averaged", weight_average=WeightAverageSettings(decay=0.5, warmup=False))
    return run_of("averaged", folder, per_device, recipe=recipe, **{**AVERAGED, **changes})


def state(run) -> dict[str, torch.Tensor]:
    """Return the averages, and the weights of the model, which are the averages when training has ended."""
    average = run.weight_average
    return {name: tensor.clone() for name, tensor in average._averages.items()}


def resumed_is_uninterrupted(folder: str, **changes) -> None:
    """Train with an average, without and with an interruption, and compare to the digit in each process."""
    whole = averaged(f"{folder}/whole", 2, **changes)
    whole.train()
    whole.save_model(f"{folder}/saved")
    again = averaged(f"{folder}/again", 2, **changes)
    again.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-2")
    assert again.weight_average.updates == whole.weight_average.updates == 4
    expected = state(whole)
    for name, tensor in state(again).items():
        assert torch.equal(tensor, expected[name]), name
    for run in (whole, again):
        for name, parameter in run.model.named_parameters():
            data = parameter.detach()
            own = data.to_local() if hasattr(data, "to_local") else data
            assert torch.equal(own, expected[name].to(own)), name
    if distributed.get_rank() == 0:
        (Path(folder) / "resumed.json").write_text(json.dumps(len(expected)))


def two_processes(folder: str) -> None:
    found = {}
    for name, loss in (EQUAL | BY_BATCH).items():
        for parameter, update in updates(run_of(name, folder, 2, loss)).items():
            found[f"{name}/{parameter}"] = update
    if distributed.get_rank() == 0:
        save_file({name: update.contiguous() for name, update in found.items()}, f"{folder}/updates.safetensors")
    resumed_is_uninterrupted(folder)
    distributed.destroy_process_group()


def sharded(folder: str) -> None:
    from test_training_processes import as_if_on_gpus

    as_if_on_gpus()
    settings = {"fsdp": True, "fsdp_config": {"version": 2}, **ADAMW}
    resumed_is_uninterrupted(folder, **settings)
    figures = evaluated_masks(f"{folder}/masks", 2, **settings)
    if distributed.get_rank() == 0:
        (Path(folder) / "masks.json").write_text(json.dumps(figures))
    distributed.destroy_process_group()


def launch_case(case: str, folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launch(TORCHRUN, [str(script), case, str(folder)])


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two updates, as a share of the largest update."""
    assert found.keys() == expected.keys() and found
    largest = max(update.abs().max() for update in expected.values())
    assert largest > 0
    return float(max((found[name] - expected[name]).abs().max() for name in expected) / largest)


# slow: it starts two processes, and trains four times with each of twenty losses
@pytest.mark.slow
def test_updates_by_each_loss_with_accumulation_and_in_two_processes(tmp_path):
    launch_case("two_processes", tmp_path)
    both = load_file(tmp_path / "updates.safetensors")
    for name, loss in (EQUAL | BY_BATCH).items():
        found = {key.partition("/")[2]: update for key, update in both.items() if key.partition("/")[0] == name}
        one, two, four = (
            updates(run_of(name, str(tmp_path), 4 // count, loss, gradient_accumulation_steps=count))
            for count in (1, 2, 4)
        )
        assert difference(found, two) < 1e-4, name
        if name in EQUAL:
            assert difference(two, one) < 1e-4 and difference(four, one) < 1e-4, name
        else:
            assert difference(two, one) > 1e-3, name
    assert_averages_are_those_of_one_process(tmp_path)


def assert_averages_are_those_of_one_process(folder: Path, **changes) -> None:
    assert json.loads((folder / "resumed.json").read_text()) > 10
    single = averaged(str(folder / "single"), 4, **changes)
    single.train()
    saved = AutoModelForSemanticSegmentation.from_pretrained(folder / "saved")
    raw = load_file(folder / "single/checkpoint-4/model.safetensors")
    distance = 0.0
    for (name, tensor), other in zip(saved.named_parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5, msg=name)
        distance = max(distance, float((tensor.detach() - raw[name]).abs().max()))
    assert distance > 1e-4  # the average is not the last weights


# slow: it starts two processes
@pytest.mark.slow
def test_averages_of_sharded_weights(tmp_path):
    """With FSDP each process averages its shards. The saved model has all of the average.

    A multi-label model is trained and evaluated as in one process, too.
    """
    launch_case("sharded", tmp_path)
    assert (tmp_path / "whole/checkpoint-2/weight_average-1.safetensors").exists()
    assert_averages_are_those_of_one_process(tmp_path, **ADAMW)
    found, expected = (
        json.loads((tmp_path / "masks.json").read_text()),
        evaluated_masks(str(tmp_path / "one"), 4, **ADAMW),
    )
    assert found.keys() == expected.keys() and "per_category_precision" in found
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-3, err_msg=name)  # rounding may change a pixel or two
