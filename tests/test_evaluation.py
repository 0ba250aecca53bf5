# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a data set: results, several processes and threads, interruptions, resume logs, and the command."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import SegmentationImageProcessor, packaged_model_path
from segtransformers.cli import app
from segtransformers.cli.common import load_model
from segtransformers.datasets import load_segmentation_dataset
from segtransformers.datasets.scenes import SCENE_CLASSES, draw_scene
from segtransformers.evaluation import check_classes, compare_with_published, evaluate_segmentation, results_table
from segtransformers.evaluation.resume_log import ResumeLog, ResumeLogError, ResumeLogWriter
from segtransformers.evaluation.subject import describe_model
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.metrics import MeanIoU
from segtransformers.published import published_row

SIZES = ((64, 96), (128, 192), (90, 70))
NAME = "upernet_deit_adapter_tiny_512_160k_ade20k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine scenes of three sizes, some without labels at an edge."""
    path = tmp_path_factory.mktemp("scenes")
    for part in ("images", "masks"):
        (path / part).mkdir()
    (path / "classes.txt").write_text("\n".join(SCENE_CLASSES))
    for seed in range(9):
        image, labels = draw_scene(seed, SIZES[seed % 3])
        labels[:, : seed % 4] = 255
        Image.fromarray(image).save(path / "images" / f"{seed}.png")
        Image.fromarray(labels).save(path / "masks" / f"{seed}.png")
    return path


@pytest.fixture(scope="module")
def packaged():
    path = packaged_model_path()
    model = AutoModelForSemanticSegmentation.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoImageProcessor.from_pretrained(path)


def command(folder, output, *options) -> list[str]:
    words = ["evaluate", "--model", packaged_model_path(), "--data", folder, "--output", output, "--device", "cpu"]
    return [str(word) for word in (*words, *options)]


def run(*arguments):
    return CliRunner().invoke(app, command(*arguments))


def environment() -> dict[str, str]:
    """Return an environment with as many threads as this process has, so that the numbers are equal."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def assert_refused(result, message):
    assert result.exit_code == 1 and not result.stdout, result.stdout
    assert message in result.stderr and result.stderr.splitlines()[-1].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("options", [{}, {"scales": [0.9, 1.1], "flip": True, "window": (64, 64)}])
def test_results_equal_those_of_single_images(folder, packaged, options):
    model, processor = packaged
    data = load_segmentation_dataset(folder)
    metric, protocol = MeanIoU(10), InferenceProtocol(**options)
    for sample in data:
        metric.add(prediction=segment_image(model, processor, sample.image, protocol), reference=sample.labels)
    expected = metric.compute()
    found = evaluate_segmentation(model, processor, data, protocol)
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice", "mean_precision", "mean_recall"):
        assert found[name] == expected[name], name
    for name in ("iou", "precision", "recall"):
        figures = [math.nan if one[name] is None else one[name] for one in found["classes"]]
        np.testing.assert_array_equal(figures, expected[f"per_category_{name}"])
    assert [one["name"] for one in found["classes"]] == list(SCENE_CLASSES)
    assert found["images"] == 9 and found["protocol"]["flip"] == bool(options)
    assert found["protocol"]["window_size"] == ([64, 64] if options else [128, 128])
    assert found["protocol"]["window_stride"] == ([42, 42] if options else [85, 85])
    json.dumps(found, allow_nan=False)


def test_command(folder, tmp_path):
    done = run(folder, tmp_path / "r" / "one.json", "--save-predictions", tmp_path / "p", "--workers", "1")
    assert done.exit_code == 0, done.stderr
    results = json.loads((tmp_path / "r" / "one.json").read_text())
    assert os.listdir(tmp_path / "r") == ["one.json"]
    assert "9/9" in done.stderr and f"mIoU {100 * results['mean_iou']:.2f}" in done.stderr and "image" in done.stderr
    assert done.stdout.startswith(results_table(results))
    lines = done.stdout.splitlines()
    assert lines[2].replace("|", " ").split() == ["Class", "IoU", "Acc", "Dice", "Precision"]
    car = results["classes"][SCENE_CLASSES.index("car")]
    shown = [f"{100 * car[name]:.2f}" for name in ("iou", "accuracy", "dice", "precision")]
    assert ["car", *shown] in [line.replace("|", " ").split() for line in lines]
    # the saved predictions are label maps that give the same results
    data = load_segmentation_dataset(folder)
    metric = MeanIoU(10)
    for sample in data:
        with Image.open(tmp_path / "p" / f"{sample.name}.png") as saved:
            assert saved.mode == "P" and saved.getpalette()[:3] == [135, 190, 235]
            metric.add(prediction=np.array(saved), reference=sample.labels)
    assert metric.compute()["mean_iou"] == results["mean_iou"]
    limited = run(folder, tmp_path / "two.json", "--limit", "2", "--scales", "1,1.1", "--flip")
    assert limited.exit_code == 0
    limited = json.loads((tmp_path / "two.json").read_text())
    assert limited["images"] == 2 and limited["protocol"]["scales"] == [1.0, 1.1] and limited["protocol"]["flip"]


@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        # --cpu of accelerate starts several processes only through MPI
        pytest.param("accelerate.commands.launch --multi_gpu --num_processes 2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_results_of_one(folder, tmp_path, launcher):
    """Nine images: one process takes five, the other four."""
    alone = run(folder, tmp_path / "one.json")
    assert alone.exit_code == 0, alone.stderr
    start = [sys.executable, "-m", *launcher.split(), "-m", "segtransformers"]
    words = [*start, *command(folder, tmp_path / "two.json")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout.replace("one.json", "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.json", "two.json"]


def test_killed_and_resumed(folder, tmp_path):
    """After SIGKILL and a cut line in the resume log, the results file is the same in the end."""
    assert run(folder, tmp_path / "whole.json").exit_code == 0
    words = [sys.executable, "-m", "segtransformers", *command(folder, tmp_path / "two.json")]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "two.json.resume" / "process-0.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9 and not (tmp_path / "two.json").exists()
    done = log.read_bytes().count(b"\n") - 1
    assert 3 <= done < 9
    log.write_bytes(log.read_bytes() + b'{"index":8,"name":"8","cou')

    refused = run(folder, tmp_path / "two.json")
    assert_refused(refused, f"interrupted after {done} images: continue it with resume=True (--resume)")
    assert_refused(run(folder, tmp_path / "two.json", "--flip", "--resume"), "protocol.flip is false, now it is true")
    assert_refused(run(folder, tmp_path / "two.json", "--limit", "5", "--resume"), "data.images is 9, now it is 5")

    resumed = run(folder, tmp_path / "two.json", "--resume")
    assert resumed.exit_code == 0 and f"{9 - done}/{9 - done}" in resumed.stderr
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not log.parent.exists()


def test_a_log_of_an_earlier_version_is_refused(folder, tmp_path):
    (tmp_path / "r.json.journal").mkdir()
    for options in ((), ("--resume",)):
        assert_refused(run(folder, tmp_path / "r.json", *options), "is the resume log of an earlier version")


class Interrupted(Exception):
    pass


def interrupted(model, processor, data, after: int, **options):
    """Evaluate, and raise `Interrupted` after some images."""

    class Until:
        def __init__(self):
            self.__dict__ = dict(data.__dict__)
            self.num_labels, self.ignore_index = data.num_labels, data.ignore_index
            self.multi_label = data.multi_label

        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            if index == after:
                raise Interrupted
            return data[index]

    with pytest.raises(Interrupted):
        evaluate_segmentation(model, processor, Until(), **options)


def test_the_file_of_a_resume_log_is_closed_after_an_error(folder, packaged, tmp_path, monkeypatch):
    opened = []
    real = ResumeLogWriter._open
    monkeypatch.setattr(ResumeLogWriter, "_open", lambda self: opened.append(real(self)) or opened[-1])
    interrupted(*packaged, load_segmentation_dataset(folder), 1, resume_log=tmp_path / "log")
    assert len(opened) == 1 and opened[0].closed


def test_an_optimized_model_is_described_as_it_was(folder, tmp_path):
    """So the command, which optimizes, can continue a resume log on another machine."""
    model, processor = load_model("packaged", "cpu")
    data = load_segmentation_dataset(folder).select(range(3))
    plain = evaluate_segmentation(model, processor, data)
    optimized = evaluate_segmentation(model, processor, data, optimize=True)
    assert model.is_optimized and optimized["model"] == plain["model"]
    assert optimized["mean_iou"] == pytest.approx(plain["mean_iou"], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", ["torchao", "quantize_dynamic"])
def test_quantized_models_are_described(packaged, tool):
    """Their state dicts have tensors in tensors, tuples and values that are no tensors."""
    digests = {describe_model(packaged[0])["sha256"]}
    for change in (0.0, 1.0):
        model = copy.deepcopy(packaged[0])
        model.backbone.trunk.blocks[0].attn.qkv.weight.data[0, 0] += change
        if tool == "torchao":
            quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
            quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        else:
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        digest = describe_model(model)["sha256"]
        assert digest == describe_model(copy.deepcopy(model))["sha256"]
        digests.add(digest)
    assert len(digests) == 3


def test_many_threads_share_a_model(folder, packaged, tmp_path):
    """Every thread gets the results of a single thread."""
    model, processor = packaged
    data = load_segmentation_dataset(folder).select(range(3))
    before = model.config.to_dict()
    protocols = [
        InferenceProtocol(),
        InferenceProtocol(flip=True),
        InferenceProtocol(window=(64, 64)),
        InferenceProtocol(scales=[0.75, 1.25], window=(48, 64), stride=(40, 40)),
    ] * 2
    expected = [evaluate_segmentation(model, processor, data, protocol) for protocol in protocols[:4]] * 2
    start = threading.Barrier(len(protocols))

    def evaluate(index):
        start.wait()
        kept = {"resume_log": tmp_path / f"log-{index}", "save_predictions": tmp_path / f"predictions-{index}"}
        return evaluate_segmentation(model, processor, data, protocols[index], **kept)

    with ThreadPoolExecutor(len(protocols)) as pool:
        assert list(pool.map(evaluate, range(len(protocols)))) == expected
    assert model.config.to_dict() == before


def test_another_model_does_not_continue(folder, packaged, tmp_path):
    model, processor = packaged
    data = load_segmentation_dataset(folder).select(range(4))
    interrupted(model, processor, data, 2, resume_log=tmp_path / "log")
    weight = next(model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    try:
        with pytest.raises(ResumeLogError, match=r"its model\.sha256 is"):
            evaluate_segmentation(model, processor, data, resume_log=tmp_path / "log", resume=True)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    found = evaluate_segmentation(model, processor, data, resume_log=tmp_path / "log", resume=True)
    assert found == evaluate_segmentation(model, processor, data)


def test_missing_predictions_are_made_again_and_counted_once(folder, packaged, tmp_path):
    model, processor = packaged
    data = load_segmentation_dataset(folder).select(range(4))
    options = {"resume_log": tmp_path / "log", "save_predictions": tmp_path / "p"}
    interrupted(model, processor, data, 3, **options)
    (tmp_path / "p" / f"{data.names[1]}.png").unlink()
    found = evaluate_segmentation(model, processor, data, **options, resume=True)
    assert len(list((tmp_path / "p").iterdir())) == 4
    assert found == evaluate_segmentation(model, processor, data)
    # also if all images are done, and the resume log has an image twice
    assert found == evaluate_segmentation(model, processor, data, **options, resume=True)
    ResumeLog(tmp_path / "log", {}).remove()
    assert not (tmp_path / "log").exists()


def test_a_damaged_resume_log_is_refused(tmp_path):
    (tmp_path / "process-0.jsonl").write_text('{"a": 1}\n{"index": 0}\n')
    with pytest.raises(ResumeLogError, match=r"process-0.jsonl is damaged"):
        ResumeLog(tmp_path, {"a": 1}).read(resume=True)


def test_a_resume_log_without_an_image_does_no_harm(tmp_path):
    """A process may be killed between the first line and the first image."""
    (tmp_path / "process-0.jsonl").write_text('{"a": 2}\n{"index"')
    log = ResumeLog(tmp_path, {"a": 1})
    assert log.read(resume=False) == {}
    with log.writer(0) as writer:
        writer.add(3, "three", torch.tensor([[0, 5], [0, 0]]))
    assert log.read(resume=True) == {3: [[0, 1, 5]]}


def test_errors_name_the_image(folder, packaged, tmp_path):
    model, processor = packaged
    failing = model.register_forward_pre_hook(lambda *_: torch.empty(0).item())
    with pytest.raises(ValueError, match="cannot evaluate 0: a Tensor with 0 elements"):
        evaluate_segmentation(model, processor, load_segmentation_dataset(folder))
    failing.remove()
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "masks" / "3.png").write_bytes(b"nothing")
    result = run(tmp_path / "data", tmp_path / "s.json", "--workers", "1")
    assert_refused(result, "3.png")
    assert not (tmp_path / "s.json").exists()


def test_wrong_arguments(folder, tmp_path):
    out = tmp_path / "r.json"
    assert_refused(run(tmp_path / "nothing", out), "does not exist")
    assert_refused(run(folder, tmp_path), "is a folder, where a file is needed")
    assert_refused(run(folder, out, "--published", "nonsense"), "'nonsense' is not a published config")
    assert_refused(run(folder, out, "--stride", "5"), "--stride needs --window")
    assert_refused(run(folder, out, "--model", tmp_path), "cannot load the model")
    assert_refused(run(folder, out, "--kind", "nonsense"), "nonsense")
    (tmp_path / "file").write_text("")
    in_the_way = f"{tmp_path / 'file'} is a file, where a folder is needed"
    assert_refused(run(folder, tmp_path / "file" / "x" / "y.json"), in_the_way)
    assert_refused(run(folder, tmp_path / "x" / "y.json", "--save-predictions", tmp_path / "file"), in_the_way)
    assert os.listdir(tmp_path) == ["file"]


def test_options_of_the_data(folder, tmp_path):
    """Masks that count from 1 and have another file name ending give the same results by both options."""
    other, names = tmp_path / "other", ["3.png", "4.png"]
    for part in ("images", "masks"):
        (other / part).mkdir(parents=True)
    for name in names:
        shutil.copy(folder / "images" / name, other / "images" / name)
        labels = np.asarray(Image.open(folder / "masks" / name))
        counted_from_one = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
        Image.fromarray(counted_from_one).save(other / "masks" / name.replace(".png", "_mask.png"))
    options = ["--classes", folder / "classes.txt", "--mask-ending", "_mask.png"]
    done = run(other, tmp_path / "one.json", *options, "--reduce-labels")
    assert done.exit_code == 0, done.stderr
    done = run(
        other, tmp_path / "two.json", *options, "--label-map", "0:255," + ",".join(f"{i + 1}:{i}" for i in range(10))
    )
    assert done.exit_code == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["classes"] == two["classes"] and one["images"] == 2 and one["mean_iou"] > 0.3
    assert one["data"]["reduce_labels"] and two["data"]["label_map"]["1"] == 0
    assert_refused(run(other, tmp_path / "three.json", *options), "3_mask.png has labels that are no class: 10")


def test_classes_must_fit(packaged, folder):
    model, _ = packaged
    data = load_segmentation_dataset(folder)
    names = dict(data.id2label)
    check_classes(model, data)
    data.id2label = {**names, 0: names[1], 1: names[0]}
    with pytest.raises(ValueError, match="another order: class 0 is 'sky' in the model and 'mountain' in"):
        check_classes(model, data)
    data.id2label = {**names, 10: "person"}
    with pytest.raises(ValueError, match="the model has 10 classes, but the data set has 11"):
        check_classes(model, data)
    data.id2label = {index: names[index] for index in range(8)}
    with pytest.raises(ValueError, match="it lacks the model's 'car' and 1 more"):
        check_classes(model, data)


def test_outputs_beyond_the_classes_are_always_wrong(packaged, folder, monkeypatch):
    """In the original code they fall out of the histogram. Some published rows have such outputs."""
    model, processor = packaged
    data = load_segmentation_dataset(folder).select([0])
    (sample,) = data
    whole = segment_image(model, processor, sample.image)
    monkeypatch.setattr(model.config, "id2label", {**model.config.id2label, 8: "unused 8", 9: "unused 9"})
    data.id2label = {index: data.id2label[index] for index in range(8)}
    monkeypatch.setattr(
        "segtransformers.evaluation.evaluation.segment_image",
        lambda *_, **__: torch.where(whole == 2, 9, whole.clamp(max=7)),
    )
    labels = np.minimum(sample.labels, 7)
    monkeypatch.setattr(type(data), "__getitem__", lambda *_: type(sample)(sample.name, sample.image, labels))
    found = evaluate_segmentation(model, processor, data)
    assert found["classes"][2]["iou"] == 0 and len(found["classes"]) == 8 and found["classes"][0]["iou"] > 0.8


def results_of(row_name, processor, **changes):
    row = published_row(row_name)
    protocol = {"scales": None, "flip": False, "window_is_own": False, **changes}
    data = {"kind": row["dataset"], "split": "validation"}
    return {"mean_iou": 0.4251, "model": {"source_config": row_name}, "data": data, "protocol": protocol}


def test_comparison_with_the_published_figures():
    processor = SegmentationImageProcessor()
    found = compare_with_published(results_of(NAME, processor), processor)
    assert (found["config"], found["published"]) == (NAME, 42.6)
    assert found["measured"] == pytest.approx(42.51) and found["difference"] == pytest.approx(-0.09)
    both = {"scales": processor.multi_scale["scales"], "flip": True}
    assert compare_with_published(results_of(NAME, processor, **both), processor)["published"] == 43.6
    for changes, reason in (
        ({"flip": True}, "single scale"),
        ({"scales": [1.0], "flip": True}, "single scale"),
        ({"window_is_own": True}, "windows of the checkpoint"),
    ):
        assert reason in compare_with_published(results_of(NAME, processor, **changes), processor)["reason"]
    results = results_of(NAME, processor)
    assert "whole split" in compare_with_published(results, processor, complete=False)["reason"]
    results["data"]["split"] = "train"
    assert "validation split" in compare_with_published(results, processor)["reason"]
    results["data"]["kind"] = "folders"
    assert "these data are folders" in compare_with_published(results, processor)["reason"]
    results["model"]["source_config"] = None
    assert compare_with_published(results, processor) is None
    with pytest.raises(ValueError, match="not a published config"):
        compare_with_published(results, processor, "nonsense")
    unknown = "upernet_deit_adapter_light_base_512_160k_ade20k"
    assert "no figure" in compare_with_published(results_of(unknown, processor), processor)["reason"]


def test_exit_status_says_whether_the_published_figure_was_met(folder, tmp_path, monkeypatch):
    """Drawn scenes stand for ADE20K here. The comparison itself is tested above."""
    assert_status = {0.5: 0, 0.01: 2}
    row = {**published_row(NAME), "dataset": "folders"}
    needs = "error: --tolerance needs a published figure to compare with: "
    for options, reason in (
        ((), "the model names no published config as its source, and --published is not given"),
        (("--published", NAME), "its figure is of ade20k, these data are folders"),
    ):
        refused = run(folder, tmp_path / "r" / "a.json", "--tolerance", "1", *options)
        assert_refused(refused, needs + reason)
        assert "image/s" not in refused.stderr and not os.listdir(tmp_path)  # nothing was evaluated
    assert run(folder, tmp_path / "a.json", "--limit", "2").exit_code == 0
    measured = json.loads((tmp_path / "a.json").read_text())["mean_iou"]
    row["miou"] = round(100 * measured + 0.2, 4)
    monkeypatch.setattr("segtransformers.evaluation.published_comparison.published_row", lambda name: row)
    small = tmp_path / "data"
    for part in ("images", "masks"):
        (small / part).mkdir(parents=True)
        for name in "01":
            shutil.copy(folder / part / f"{name}.png", small / part)
    shutil.copy(folder / "classes.txt", small)
    for tolerance, status in assert_status.items():
        done = run(small, tmp_path / "b.json", "--published", NAME, "--tolerance", str(tolerance))
        assert done.exit_code == status, done.stderr
        assert f"published for {NAME}: {row['miou']} (-0.20)" in done.stdout


def test_table_without_figures():
    table = results_table(
        {
            "classes": [{"name": "sky", "iou": None, "accuracy": None, "dice": 0.5, "precision": None}],
            "overall_accuracy": 0.5,
            "mean_iou": 0.25,
            "mean_accuracy": None,
            "mean_dice": None,
        }
    )
    assert "|  sky  | nan | nan | 50.00 |    nan    |" in table and "| 50.00 | 25.00 | nan  |  nan  |" in table
