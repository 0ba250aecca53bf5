# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`Trainer` and `SegmentationTrainer` with UperNet, Mask2Former and Segmenter."""

import dataclasses
import logging
import signal
from typing import Any

import numpy as np
import pytest
import torch
from test_seg_mask2former import fixed_points
from torch import nn
from torch.utils.data import DataLoader
from training_cases import (
    KINDS,
    SIDE,
    STAGES,
    Scenes,
    adapter,
    arguments,
    crop,
    losses,
    processor,
    small_model,
    trainer,
)
from transformers import (
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    SwinConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from segtransformers import InternImageConfig, SegmenterViTConfig, ViTCoMerConfig
from segtransformers.inference import segment_image
from segtransformers.metrics import MeanIoU
from segtransformers.training import (
    EvaluationDataset,
    SegmentationTrainer,
    TrainingDataset,
    get_recipe,
    training_arguments,
)
from segtransformers.training.parameter_efficient import (
    add_lora,
    freeze_trunk,
    lora_config,
    merge_lora,
    trunk_linears,
    unsaved_statistics,
)
from segtransformers.training.samples import SAMPLE_INDEX
from segtransformers.training.unused_parameters import uses_all_parameters


@pytest.mark.parametrize("kind", KINDS)
def test_trains_evaluates_and_saves(tmp_path, kind):
    run = trainer(small_model(kind), tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3)
    run.train()
    assert len(losses(run)) == 3 and np.isfinite(losses(run)).all()
    figures = run.state.log_history[-2]
    assert {"eval_loss", "eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy"} <= figures.keys()
    run.save_model()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    for (name, tensor), other in zip(run.model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_that_of_each_image_alone(tmp_path, kind):
    """Sizes differ within a batch, and label maps are larger than the processed images."""
    model, scenes = small_model(kind).eval(), Scenes(5, sizes=((SIDE, 96), (SIDE, 96), (80, 72)))
    shrunk = processor(do_resize=True, size={"height": SIDE, "width": 80})
    run = trainer(model, tmp_path, eval_dataset=EvaluationDataset(scenes, shrunk))
    figures = run.evaluate()
    metric = MeanIoU(10)
    for sample in scenes:
        metric.add(prediction=segment_image(model, shrunk, sample.image), reference=sample.labels)
    expected = metric.compute()
    assert figures["eval_mean_iou"] == expected["mean_iou"] > 0
    np.testing.assert_array_equal(run.class_metrics["per_category_iou"], expected["per_category_iou"])
    assert np.isfinite(figures["eval_loss"])


def settled_model(kind: str, backbone: Any = None):
    """A model whose results, except for batch norms, do not depend on how images are divided into batches."""
    changes = {"decoder_drop_path_rate": 0.0} if kind == "segmenter" else {}
    if kind != "mask2former":
        changes["classifier_dropout"] = 0.0
    return small_model(kind, backbone=backbone, **changes)


def still_norms(model: nn.Module) -> nn.Module:
    """Keep batch norms in evaluation mode, so that results do not depend on the division into batches."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing(tmp_path, monkeypatch, kind):
    """Images have different numbers of classes, and so of masks in the mean of Mask2Former's loss."""
    fixed_points(monkeypatch)
    scenes = [sample["labels"] for sample in TrainingDataset(Scenes(8), crop)]
    assert len({len(labels.unique()) for labels in scenes[:4]}) > 1
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 2, "train_sampling_strategy": "sequential"}
    found, norms, weights = [], [], []
    for accumulation in (1, 2, 4):
        model = still_norms(settled_model(kind))
        run = trainer(
            model,
            tmp_path,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        run.train()
        found.append(losses(run))
        norms.append([entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert len(norms[0]) == 2 and min(norms[0]) > 0
    for other in (1, 2):
        np.testing.assert_allclose(found[other], found[0], rtol=1e-5)
        np.testing.assert_allclose(norms[other], norms[0], rtol=1e-4)
        torch.testing.assert_close(weights[other], weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "losses_of_model",
    [
        [{"name": "cross_entropy", "class_weights": [0.5, 1.0, 2.0, 4.0, 8.0]}, "focal"],
        [{"name": "cross_entropy", "average_over": "valid_pixels"}, {"name": "dice", "per_image": True}],
        None,  # Mask2Former with weights for the classes
    ],
    ids=["weights", "valid pixels", "mask2former"],
)
def test_accumulation_changes_nothing_for_weighted_losses(tmp_path, monkeypatch, losses_of_model):
    fixed_points(monkeypatch)

    found = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = still_norms(settled_model("upernet" if losses_of_model else "mask2former"))
        classes = model.config.num_labels
        weights = torch.linspace(0.5, 8, classes).tolist()
        if losses_of_model:
            model.set_losses(
                [loss | {"class_weights": weights} if "class_weights" in loss else loss for loss in losses_of_model]
            )
        else:
            model.config.label_weights = weights
        run = trainer(
            model,
            tmp_path,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,
            max_steps=1,
            train_sampling_strategy="sequential",
        )
        samples = [run.train_dataset[index] for index in range(4)]
        for index, sample in enumerate(samples):  # different numbers of ignored pixels
            sample["labels"][: 8 * index] = 255
        run.train_dataset = samples
        run.train()
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_only_accumulated_batches_get_the_number_of_masks(tmp_path, monkeypatch):
    run = trainer(small_model("mask2former"), tmp_path)
    samples = TrainingDataset(Scenes(4), crop)
    batches = [{name: tensor[None] for name, tensor in sample.items()} for sample in samples]
    counts = [len(batch["labels"].unique()) for batch in batches]
    found, _ = run.get_batch_samples(iter(batches), 4, torch.device("cpu"))
    assert [batch["mean_masks"] for batch in found] == [np.mean(counts)] * 4
    assert run.get_batch_samples(iter(batches), 1, torch.device("cpu"))[0] == batches[:1]
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    assert run.get_batch_samples(iter(batches), 4, torch.device("cpu"))[0] == batches


@pytest.mark.parametrize(("kind", "remove"), [("upernet", True), ("mask2former", False), ("segmenter", False)])
def test_plain_trainer_works(tmp_path, kind, remove):
    """Stock transformers needs `MeanIoU` as metric and images of one size in evaluation."""
    data = EvaluationDataset(Scenes(3), processor())
    model = small_model(kind)
    metric = MeanIoU(10)
    run = Trainer(
        model,
        arguments(tmp_path, batch_eval_metrics=True, remove_unused_columns=remove),
        train_dataset=TrainingDataset(Scenes(8), crop),
        eval_dataset=data,
        compute_metrics=metric,
    )
    run.train()
    figures = run.evaluate()
    assert np.isfinite(losses(run)).all() and np.isfinite(figures["eval_loss"])
    ours = trainer(model, tmp_path, eval_dataset=data).evaluate()
    assert figures["eval_mean_iou"] == ours["eval_mean_iou"]
    assert figures["eval_loss"] == pytest.approx(ours["eval_loss"], rel=0.1 if kind == "mask2former" else 1e-5)


@pytest.mark.parametrize(("kind", "workers"), [("upernet", 2), ("mask2former", 0), ("segmenter", 0)])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, kind, workers):
    """Data order, augmentation, dropout and random points continue, in the middle of an epoch and at its end."""
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "dataloader_num_workers": workers,
        "lr_scheduler_type": "linear",
    }
    backbone = adapter(drop_path_rate=0.3) if kind != "segmenter" else None
    run = trainer(small_model(kind, backbone=backbone), tmp_path, **settings)
    run.train()
    whole, weights = losses(run), run.model.state_dict()
    assert len(set(whole)) == 6
    for step in (3, 4):  # an epoch has four steps
        again = trainer(small_model(kind, seed=7, backbone=backbone), tmp_path / str(step), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert losses(again) == whole
        for name, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


def rates(run) -> list[float]:
    return [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]


def test_warm_up_fits_the_epochs_and_another_schedule_wins(tmp_path):
    """A recipe with 1500 warm-up steps in a run of 20 steps, and with another `lr_scheduler_type`."""
    recipe = get_recipe("segmenter_vit-t_mask_8x1_512x512_160k_ade20k")
    recipe = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, warmup_steps=1500))
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1, "use_cpu": True}
    changes |= {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    found = []
    for more in ({}, {"lr_scheduler_type": "constant"}):
        arguments = training_arguments(recipe, tmp_path, num_train_epochs=5, **changes, **more)
        data = TrainingDataset(Scenes(8), crop)
        run = SegmentationTrainer(small_model("segmenter"), arguments, recipe=recipe, train_dataset=data)
        run.train()
        found.append(rates(run))
    base, schedule = recipe.optimizer.learning_rate, recipe.with_steps(20).schedule
    assert schedule.warmup_steps == 2
    expected = [(1 - step / 20) ** schedule.power * (base - schedule.min_lr) + schedule.min_lr for step in range(2, 20)]
    np.testing.assert_allclose(found[0][2:], expected, rtol=1e-6)
    assert found[0][0] < found[0][1] < base and found[1] == [base] * 20


def test_epochs_differ(tmp_path):
    data = TrainingDataset(Scenes(4, sizes=((80, 120),)), crop)
    first = data[0]["pixel_values"]
    assert torch.equal(first, data[0]["pixel_values"])
    data.set_epoch(1)
    assert not torch.equal(first, data[0]["pixel_values"])

    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(int(data._epoch))

    trainer(small_model("segmenter"), tmp_path, train_dataset=data, max_steps=6, callbacks=[Watch()]).train()
    assert seen == [0, 0, 1, 1, 2, 2]


class PressCtrlC(TrainerCallback):
    def __init__(self, step: int, times: int = 1):
        self.step, self.times = step, times

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)  # is handled at once, while signals of os.kill may merge


def test_ctrl_c_saves_a_checkpoint(tmp_path):
    model, settings = small_model("segmenter"), {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 3}
    handler = signal.getsignal(signal.SIGINT)
    run = trainer(model, tmp_path, callbacks=[PressCtrlC(2)], **settings)
    with pytest.raises(KeyboardInterrupt, match="after step 3; a checkpoint is saved"):
        run.train()
    assert signal.getsignal(signal.SIGINT) is handler and run.state.global_step == 3
    assert not any("eval_loss" in entry for entry in run.state.log_history)  # an evaluation would delay the end
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-3")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    whole = trainer(small_model("segmenter"), tmp_path / "whole", **settings)
    whole.train()
    again = trainer(small_model("segmenter", seed=1), tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(again) == losses(whole)


def test_an_error_saves_a_checkpoint_and_names_the_sample(tmp_path, monkeypatch):
    """An error of an evaluation must not cost the steps before it."""
    settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"}
    run = trainer(small_model("segmenter"), tmp_path, **settings)
    original = type(run).compute_loss

    def failing(self, model, inputs, **options):
        if not model.training:
            raise ValueError("too strange an image")
        return original(self, model, inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(run), "compute_loss", failing)
        with pytest.raises(
            ValueError, match=f"in the evaluation of {run.eval_dataset.name(0)}.*: too strange an image"
        ):
            run.train()
    whole = trainer(small_model("segmenter"), tmp_path / "whole", **settings)
    whole.train()
    again = trainer(small_model("segmenter", seed=1), tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_trainer_does_not_change_its_datasets(tmp_path):
    training, evaluation = TrainingDataset(Scenes(2), crop), EvaluationDataset(Scenes(1), processor())
    before = {**vars(training)}, {**vars(evaluation)}, training[0], evaluation[0]
    run = trainer(small_model("segmenter"), tmp_path, train_dataset=training, eval_dataset=evaluation)
    run.get_train_dataloader()
    run.get_eval_dataloader()
    assert run.train_dataset is training and run.eval_dataset is evaluation
    assert (vars(training), vars(evaluation)) == before[:2]
    for item, other in zip((training[0], evaluation[0]), before[2:], strict=True):
        assert item.keys() == other.keys() and all(torch.equal(item[name], other[name]) for name in item)


def test_masks_without_any_class_are_reported_once(caplog):
    class Empty(Scenes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, labels=np.full_like(sample.labels, 255))

    data = TrainingDataset(Empty(3), crop)
    logger = logging.getLogger("segtransformers.training.samples")
    logger.addHandler(caplog.handler)
    try:
        for index in range(3):
            data[index]
    finally:
        logger.removeHandler(caplog.handler)
    assert len({record.getMessage() for record in caplog.records}) == 1 and "has no pixel with a class" in caplog.text


def test_best_model_by_one_of_several_sets(tmp_path):
    sets = {name: EvaluationDataset(Scenes(1), processor()) for name in ("near", "far")}
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    for wrong in ("mean_iou", "eval_faraway_mean_iou"):
        with pytest.raises(ValueError, match="one of near_mean_iou"):
            trainer(small_model("segmenter"), tmp_path, eval_dataset=sets, metric_for_best_model=wrong, **settings)
    run = trainer(
        small_model("segmenter"), tmp_path, eval_dataset=sets, metric_for_best_model="eval_far_mean_iou", **settings
    )
    run.train()
    assert run.state.best_metric is not None


def test_second_ctrl_c_stops_at_once(tmp_path):
    run = trainer(small_model("segmenter"), tmp_path, callbacks=[PressCtrlC(1, times=2)])
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.state.global_step == 1 and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_loss_names_the_batch(tmp_path, kind):
    def spoilt(image, labels, seed):
        sample = crop(image, labels, seed)
        if seed[2] == 5:
            sample["pixel_values"][0, 0, 0] = float("nan")
        return sample

    data = TrainingDataset(Scenes(8), spoilt)
    run = trainer(small_model(kind), tmp_path, train_dataset=data, train_sampling_strategy="sequential", max_steps=4)
    with pytest.raises(
        FloatingPointError,
        match="loss is nan in step 3, in the batch of scene-4, scene-5; the weights",
    ):
        run.train()
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_training_images_of_several_sizes_are_refused(tmp_path):
    data = EvaluationDataset(Scenes(4, sizes=((SIDE, 96), (80, 80))), processor())
    run = trainer(small_model("segmenter"), tmp_path, train_dataset=data)
    with pytest.raises(ValueError, match=r"must have the same size; scene-., scene-. differ"):
        run.train()


def test_data_that_cannot_be_trained_on_are_refused(tmp_path):
    model = small_model("segmenter")
    with pytest.raises(ValueError, match=r"dicts of pixel_values and labels, as from TrainingDataset .* got Sample"):
        trainer(model, tmp_path, train_dataset=Scenes(8)).train()
    few = TrainingDataset(Scenes(1), crop)
    with pytest.raises(ValueError, match=r"1 samples are fewer than a batch of 2, .* with repeat=2"):
        trainer(model, tmp_path, train_dataset=few, dataloader_drop_last=True).train()
    unlabelled = [{"pixel_values": sample["pixel_values"]} for sample in EvaluationDataset(Scenes(2), processor())]
    run = trainer(model, tmp_path, eval_dataset=unlabelled)
    with pytest.raises(ValueError, match="needs samples with labels"):
        run.evaluate()
    assert run.predict(unlabelled).predictions.shape == (2, 10, SIDE, 96)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing(tmp_path, kind):
    weights = []
    for checkpointing in (False, True):
        run = trainer(small_model(kind), tmp_path, gradient_checkpointing=checkpointing, optim="sgd", learning_rate=0.1)
        run.train()
        assert run.model.is_gradient_checkpointing is checkpointing
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_trunk(tmp_path, kind):
    model = small_model(kind)
    freeze_trunk(model)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    # injectors start with a factor of zero, so the parameters behind it get a gradient from the second step on
    run = trainer(model, tmp_path, max_steps=3, gradient_checkpointing=kind == "upernet")
    run.train()
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    trunk = {name for name in before if name.startswith("backbone.trunk.")}
    assert trunk and changed == set(before) - trunk


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(tmp_path, kind, backend):
    found = []
    for changes in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        run = trainer(small_model(kind), tmp_path, seed=3, **changes)
        run.train()
        run.evaluate()
        run.save_model()
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, run.model.state_dict()[name]), name
        found.append(losses(run))
    np.testing.assert_allclose(*found, rtol=5e-2 if kind == "mask2former" else 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast(tmp_path, kind):
    found = []
    for changes in ({}, {"bf16": True}):
        run = trainer(small_model(kind), tmp_path, max_steps=3, **changes)
        run.train()
        assert np.isfinite(run.evaluate()["eval_loss"])
        found.append(losses(run))
    assert found[0] != found[1]
    np.testing.assert_allclose(*found, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_autocast(kind):
    """No NaN, and gradients as in float32. Without Trainer, because accelerate has float16 on GPUs only."""
    found = []
    for enabled in (False, True):
        model = still_norms(small_model(kind)).train()
        batch = TrainingDataset(Scenes(2), crop)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            loss = model(
                pixel_values=torch.stack([one["pixel_values"] for one in batch]),
                labels=torch.stack([one["labels"] for one in batch]),
            ).loss
        assert loss.dtype == torch.float32
        (1024 * loss).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        assert torch.isfinite(loss) and torch.isfinite(found[-1]).all()
    assert nn.functional.cosine_similarity(*found, dim=0) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_updates_of_the_trunk(tmp_path, kind):
    model = small_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, rank=2)
    run = trainer(model, tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    run.train()
    again = small_model(kind, seed=1)
    add_lora(again, rank=2)
    resumed = trainer(again, tmp_path / "again", max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(run)
    image = EvaluationDataset(Scenes(1), processor())[0]["pixel_values"][None]
    model.eval()
    with torch.no_grad():
        expected = model(image).logits
        merge_lora(model)
        torch.testing.assert_close(model(image).logits, expected, rtol=1e-4, atol=1e-4)
    run.save_model()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == before.keys()
    linears = {f"{name}.weight" for name in trunk_linears(model)}
    trunk = {name for name in before if name.startswith("backbone.trunk.")}
    parameters = {name for name, _ in model.named_parameters()}
    changed = {name for name in parameters if not torch.equal(loaded[name], before[name])}
    assert linears and changed == (parameters - trunk) | linears


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_gives_the_trained_outputs(tmp_path, kind):
    """peft saves running statistics of batch norms only if the config names their modules."""
    from peft import PeftModel, get_peft_model

    base = small_model(kind)
    statistics = {name: tensor.clone() for name, tensor in base.named_buffers() if "running" in name}
    model = get_peft_model(base, lora_config(base, rank=2))
    run = trainer(model, tmp_path, max_steps=3)
    run.train()
    trained = dict(model.named_buffers())
    saved = [name for name in trained if "modules_to_save" in name and "running" in name]
    assert len(saved) == len(statistics)
    for name in saved:
        before = statistics[name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")]
        assert not torch.equal(trained[name], before), name
    run.save_model()
    loaded = PeftModel.from_pretrained(small_model(kind), tmp_path)
    image = EvaluationDataset(Scenes(1), processor())[0]["pixel_values"][None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image).logits, model.eval()(image).logits)
    assert trainer(loaded, tmp_path).evaluate()["eval_mean_iou"] == run.evaluate()["eval_mean_iou"]


def test_adapters_without_running_statistics_are_reported(tmp_path, caplog):
    from peft import LoraConfig, get_peft_model

    for kind, count in (("upernet", 5), ("segmenter", 0)):
        base = small_model(kind)
        config = LoraConfig(r=2, target_modules=trunk_linears(base), modules_to_save=["decode_head", "auxiliary_head"])
        model = get_peft_model(base, config)
        assert bool(unsaved_statistics(model)) == bool(count)
        with caplog.at_level("WARNING", "segtransformers"):
            trainer(model, tmp_path)
        assert ("the saved adapter will lack the running statistics" in caplog.text) == bool(count)
        caplog.clear()
    model = small_model("upernet")
    add_lora(model, rank=2)  # checkpoints hold the whole model
    assert not unsaved_statistics(model)


def test_lora_config_of_a_backbone_with_batch_norms():
    """A convolutional backbone is the trunk itself: its batch norms are saved one by one."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)
    model = small_model("upernet", backbone=backbone)
    names = lora_config(model, rank=2, target_modules="all-linear").modules_to_save
    modules = dict(model.named_modules())
    norms = {name for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
    assert {name for name in norms if name.startswith("backbone.")} == {*names} - {"decode_head", "auxiliary_head"}


def three_stages(kind: str):
    """Small models without dropout that do not use all feature maps of their backbones."""
    stages, small = STAGES[:3], {"trunk": "vit_tiny_patch16_224", "hidden_size": 32, "num_attention_heads": 2}
    backbones = {
        "adapter": lambda: adapter(out_features=stages),
        "internimage": lambda: InternImageConfig(
            embed_dim=16, depths=[1] * 4, num_groups=[1, 2, 4, 8], out_features=stages
        ),
        "comer": lambda: ViTCoMerConfig(**small, num_hidden_layers=4, out_features=stages),
        "swin": lambda: SwinConfig(
            embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], out_features=stages, drop_path_rate=0
        ),
    }
    if kind == "segmenter":  # the second of its two blocks is not used
        vit = SegmenterViTConfig(**small, patch_size=8, num_hidden_layers=2, out_features=["stage1"])
        return settled_model("segmenter", vit)
    return settled_model("upernet", backbones[kind]())


@pytest.mark.parametrize(
    "kind", ["adapter", "internimage", "comer", "swin", "segmenter", "four", "frozen", "mask2former"]
)
def test_unused_parameters_are_found(kind):
    """The answer is True only if each parameter gets a gradient, and asking changes nothing."""
    whole = {"four": "upernet", "frozen": "upernet", "mask2former": "mask2former"}
    model = small_model(whole[kind]) if kind in whole else three_stages(kind)
    if kind == "frozen":
        freeze_trunk(model)
    model.eval()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    claim = uses_all_parameters(model)
    assert torch.equal(torch.get_rng_state(), state) and not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(1)
    model.train()(torch.randn(2, 3, 96, 64), labels=torch.randint(10, (2, 96, 64))).loss.backward()
    is_true = all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert claim == is_true or (kind == "swin" and not claim)
    assert claim or kind not in whole


def test_nothing_is_claimed_of_other_models():
    assert not uses_all_parameters(nn.Linear(2, 2))
    model = small_model("segmenter")
    model.decode_head = nn.Identity()  # the forward of the check fails
    assert not uses_all_parameters(model)


def test_making_a_trainer_leaves_the_dataset_alone(tmp_path):
    data = TrainingDataset(Scenes(8), crop)
    run = trainer(small_model("segmenter"), tmp_path, train_dataset=data)
    batch = next(iter(run.get_train_dataloader()))
    assert batch[SAMPLE_INDEX].shape == (2,)
    assert run.train_dataset is data and set(data[0]) == {"pixel_values", "labels"}
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert run.model(**batch).loss.isfinite()
