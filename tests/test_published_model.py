# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Published models by name: small checkpoints stand in for the released ones, on a local server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_cases import relative_error
from test_download import CASE, _checkpoint, authority, server  # noqa: F401
from transformers import AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from segtransformers import SegmentationPipeline, example_image_path, published_model
from segtransformers.cache import cached_model, downloads_folder, user_cache
from segtransformers.cli import app
from segtransformers.conversion import ConversionError
from segtransformers.conversion.cli import _full_name
from segtransformers.files import PREFIX
from segtransformers.model_names import SMALL_MODEL, model_folder
from segtransformers.published import published_rows
from segtransformers.published.names import find_published, published_names

NAME = "upernet_stand_in_tiny_64_ade20k"


def row_at(*addresses: str) -> dict:
    real = published_rows("vit_adapter")["upernet_deit_adapter_tiny_512_160k_ade20k"]
    return {**real, "model": CASE.config, "download": list(addresses), "note": None}


@pytest.fixture
def released(server, monkeypatch):  # noqa: F811
    """A server with the file of a published row, which is in the tables of this process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    server.files["/model.pth.tar"] = _checkpoint()
    monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at(f"{server.url}/model.pth.tar"))
    return server


def assert_is_the_original(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).double().eval()
    model.config.inference_mode = "whole"
    expected = CASE.outputs()["segmentation_logits"]
    with torch.no_grad():
        found = CASE.sampled("segmentation_logits", model(CASE.pixel_values()).logits)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("deit-adapter-tiny-ade20k", "upernet_deit_adapter_tiny_512_160k_ade20k"),
        ("comer_base", "upernet_vit_comer_base_512_160k_ade20k"),
        (SMALL_MODEL, SMALL_MODEL),
        ("nosuch", None),
        ("", None),
        ("openmmlab/upernet-swin-tiny", None),
    ],
)
def test_names_may_be_shortened(short, full):
    assert find_published(short) == full


@pytest.mark.parametrize("name", [5, None, Path("adapter-tiny"), "a" * 5000])
def test_odd_names_are_refused_in_one_short_line(name):
    with pytest.raises(ValueError, match="published model") as caught:
        published_model(name)
    assert len(str(caught.value)) < 300


def test_unclear_names_are_errors_with_suggestions():
    with pytest.raises(ValueError, match="'adapter-tiny' may be 2 published models: upernet_deit_adapter_tiny_512"):
        published_model("adapter-tiny")
    with pytest.raises(ValueError, match="no published model: did you mean upernet_deit_adapter_tiny_512_160k_ade20k"):
        published_model("deit_adaptor_tiny")
    assert all(find_published(name) == name for name in published_names())


def test_the_model_for_photos_is_the_best_small_one():
    rows = {name: published_rows(family)[name] for name, family in published_names().items()}
    small = {
        name: row["miou"]
        for name, row in rows.items()
        if row["dataset"] == "ade20k" and row["download"] and row["miou"] and 4 * (row["num_parameters"] or 1e9) < 150e6
    }
    assert max(small, key=small.get) == SMALL_MODEL


def test_a_model_is_downloaded_and_converted_once(released, monkeypatch, capsys):
    folder = published_model(NAME)
    assert folder == cached_model(NAME)
    assert_is_the_original(folder)
    told = capsys.readouterr().err
    assert told.count("under the licence apache-2.0") == 1 and "non-commercial research" in told
    assert [path for path in downloads_folder().iterdir() if not path.name.startswith(".")] == []
    record = json.loads((folder / "conversion.json").read_text())
    assert record["source"]["row"] == NAME and record["source"]["url"] == f"{released.url}/model.pth.tar"
    requests = len(released.seen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for short in (NAME, "stand-in-tiny"):
        assert published_model(short) == folder
    assert len(released.seen) == requests and capsys.readouterr().err == ""
    assert model_folder("stand-in") == str(folder)
    segments = SegmentationPipeline("stand-in")(str(example_image_path()))
    assert segments[0]["mask"].size == (384, 256)


@pytest.mark.parametrize("first", ["{}/gone.pth", "{}/model-00000000.pth", "https://localhost:1/model.pth"])
def test_the_next_address_is_tried(released, monkeypatch, first):
    """The first has no file, a file with another SHA-256 than its name says, or no server."""
    released.files["/model-00000000.pth"] = released.files["/model.pth.tar"]
    addresses = first.format(released.url), f"{released.url}/model.pth.tar"
    monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at(*addresses))
    assert_is_the_original(published_model(NAME))
    assert published_model(NAME).is_dir()
    record = json.loads((cached_model(NAME) / "conversion.json").read_text())
    assert record["source"]["url"] == addresses[1]


def test_without_a_network(released, monkeypatch, tmp_path):
    monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at("https://localhost:1/model.pth"))
    words = ["segment", str(example_image_path()), "--model", NAME, "--output", str(tmp_path / "out.png")]
    done = CliRunner().invoke(app, words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and len(errors) == 1 and "localhost:1" in errors[0] and "refused" in errors[0]
    assert not cached_model(NAME).exists() and not (tmp_path / "out.png").exists()


def test_failures_leave_nothing(released, monkeypatch, tmp_path):
    released.files["/cut.pth"] = released.files["/model.pth.tar"][:-3000]
    released.files["/other.pth"] = b"no checkpoint"
    for address, message in (
        (f"{released.url}/gone.pth", "the server answers 404"),
        (f"{released.url}/cut.pth", "cut.pth"),
        (f"{released.url}/other.pth", "other.pth"),
        (f"{released.url}/share?pwd=x", "--checkpoint FILE"),
    ):
        monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at(address))
        with pytest.raises(ConversionError, match=message) as error:
            published_model(NAME)
        assert "\n" not in str(error.value)
        assert not [path for path in user_cache("models").iterdir() if not path.name.endswith(".lock")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConversionError, match=r"not in the cache .* HF_HUB_OFFLINE"):
        published_model(NAME)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConversionError, match=r"cannot write to the cache .*SEGTRANSFORMERS_CACHE"):
        published_model(NAME)


def test_a_damaged_cache_is_named(released):
    folder = published_model(NAME)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ConversionError, match=f"is damaged .*segtransformers models {NAME} --clear-cache"):
        published_model(NAME)
    done = CliRunner().invoke(app, ["models", NAME, "--clear-cache"])
    assert done.exit_code == 0 and not folder.exists()
    assert_is_the_original(published_model(NAME))
    (downloads_folder() / "part.partial").write_text("half of a file")
    assert CliRunner().invoke(app, ["models", "--clear-cache"]).exit_code == 0
    assert not folder.exists() and not downloads_folder().exists()


def test_the_whole_cache_is_cleared_but_for_compiled_operators(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "cache"))
    names = ("models", "downloads", "features", "class_counts", "deformable-ops")
    for name in names[1:]:
        (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "cache" / "models").symlink_to(tmp_path / "disk")
    done = CliRunner().invoke(app, ["models", "--clear-cache"])
    assert done.exit_code == 0 and done.output.count("deleted") == 4
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["deformable-ops", "models"]
    assert (tmp_path / "disk").is_dir() and not any((tmp_path / "disk").iterdir())


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", '{"model_type": ', "Expecting value"),
        ("preprocessor_config.json", "", "Expecting value"),
        ("conversion.json", None, "No such file"),
        ("model.safetensors", "cut", "header"),
    ],
)
def test_each_damaged_file_is_named_in_one_line(released, file, content, reason):
    folder = published_model(NAME)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ConversionError, match=rf"is damaged \(.*{reason}.*--clear-cache") as error:
        published_model(NAME)
    assert "\n" not in str(error.value)


def test_an_earlier_version_of_a_row_is_named(released, monkeypatch, capsys):
    folder = published_model(NAME)
    assert_is_the_original(folder)
    capsys.readouterr()
    released.files["/newer.pth"] = released.files["/model.pth.tar"]
    monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at(f"{released.url}/newer.pth"))
    assert published_model(NAME) == folder
    told = capsys.readouterr().err
    assert f"from {released.url}/model.pth.tar; the file is now {released.url}/newer.pth" in told
    assert "--clear-cache" in told and told.count("\n") == 1
    assert CliRunner().invoke(app, ["models", NAME, "--clear-cache"]).exit_code == 0
    published_model(NAME)
    assert json.loads((folder / "conversion.json").read_text())["source"]["url"] == f"{released.url}/newer.pth"
    capsys.readouterr()
    published_model(NAME)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk(released, tmp_path, size):
    """No file fits, or all but the download and the weights."""
    from test_full_disk import largest_file  # needs a module of Unix

    file = tmp_path / "mine.pth"
    file.write_bytes(_checkpoint())
    for checkpoint in (None, file):
        with largest_file(size), pytest.raises(ConversionError, match=r"cannot write .*File too large") as error:
            published_model(NAME, checkpoint)
        assert "\n" not in str(error.value)
        assert [path.name for path in user_cache("models").iterdir() if not path.name.endswith(".lock")] == []
    assert_is_the_original(published_model(NAME))


KILLED = """
import json, sys, time
from segtransformers.conversion import converter
from segtransformers.published import published_rows
name, row, place = json.load(sys.stdin)
published_rows("vit_adapter")[name] = row
from segtransformers import published_model
from segtransformers.command_process import prepare_process
prepare_process()
original = getattr(converter, place)
def waiting(*arguments, **keywords):
    result = original(*arguments, **keywords)
    print("there", flush=True)
    time.sleep(600)
    return result
setattr(converter, place, waiting)
published_model(name)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals of Unix")
# after the download, and after the weights were written
@pytest.mark.parametrize(("sent", "place"), [("SIGTERM", "_find_checkpoint"), ("SIGKILL", "_save")])
def test_a_kill_leaves_nothing_half(released, sent, place):
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    running.stdin.write(json.dumps([NAME, row_at(f"{released.url}/model.pth.tar"), place]))
    running.stdin.close()
    assert running.stdout.readline() == "there\n"
    running.send_signal(getattr(signal, sent))
    assert running.wait(60) != 0
    assert not cached_model(NAME).exists()
    left = [path for path in user_cache("models").iterdir() if not path.name.endswith(".lock")]
    assert all(path.name.startswith(PREFIX) for path in left) and (sent == "SIGKILL" or not left)
    requests = len(released.seen)
    assert_is_the_original(published_model(NAME))  # the lock is free, and the file of the download is used
    assert len(released.seen) == requests
    assert [path for path in user_cache("models").iterdir() if path.name.startswith(PREFIX)] == []


def test_a_photo_by_a_short_name(released, tmp_path):
    target = tmp_path / "out.png"
    done = CliRunner().invoke(
        app, ["segment", str(example_image_path()), "--model", "stand-in-tiny", "--output", str(target)]
    )
    assert done.exit_code == 0 and target.is_file(), done.output
    assert (
        "under the licence apache-2.0" in done.stderr
        and f"model: {NAME}, 5 classes" in done.stdout
        and "no use for" not in done.stderr
    )
    done = CliRunner().invoke(app, ["segment", str(example_image_path()), "--model", "deit-adaptor-tiny-ade20k"])
    assert done.exit_code == 1 and "did you mean upernet_deit_adapter_tiny_512_160k_ade20k" in done.stderr
    card = (cached_model(NAME) / "README.md").read_text()
    assert f"# {NAME}" in card and "ViT-Adapter" in card and "license: apache-2.0" in card


def test_a_file_that_is_there_is_converted_and_kept(released, monkeypatch, tmp_path):
    monkeypatch.setitem(published_rows("vit_adapter"), NAME, row_at("https://pan.test/s/1?pwd=x"))
    file = tmp_path / "mine.pth"
    file.write_bytes(_checkpoint())
    done = CliRunner().invoke(app, ["models", NAME, "--checkpoint", str(file)])
    assert done.exit_code == 0 and file.exists() and released.seen == []
    assert_is_the_original(published_model(NAME))
    again = CliRunner().invoke(app, ["models", NAME, "--checkpoint", str(file)])
    assert again.exit_code == 1 and "is in the cache already" in again.stderr


PROCESS = """
import json, sys
from segtransformers.published import published_rows
name, row = json.load(sys.stdin)
published_rows("vit_adapter")[name] = row
from segtransformers import published_model
print(published_model(name))
"""


def test_processes_convert_once(released):
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    text = json.dumps([NAME, row_at(f"{released.url}/model.pth.tar")])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in running:
        process.stdin.write(text)
        process.stdin.close()
    printed = [process.stdout.read().strip() for process in running]
    told = "".join(process.stderr.read() for process in running)
    assert [process.wait() for process in running] == [0, 0], told
    assert set(printed) == {str(cached_model(NAME))} and told.count("under the licence") == 1
    assert len(released.seen) == 1
    assert_is_the_original(Path(printed[0]))


def test_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path))
    done = CliRunner().invoke(app, ["models", "--json"])
    listed = json.loads(done.stdout)
    assert [one["name"] for one in listed] == list(published_names()) and not any(one["cached"] for one in listed)
    cached_model(SMALL_MODEL).mkdir(parents=True)
    table = CliRunner().invoke(app, ["models", "--data", "ade20k", "--family", "segmenter"]).stdout.splitlines()
    assert table[0].split()[:4] == ["name", "data", "crop", "mIoU"] and len(table) == 6
    (line,) = (line for line in table if line.startswith(SMALL_MODEL))
    assert line.split()[-1] == "yes"
    details = CliRunner().invoke(app, ["models", "segmenter-vit-s-mask"]).stdout
    assert SMALL_MODEL in details and "@article" in details and "segtransformers segment photo.jpg" in details
    assert CliRunner().invoke(app, ["models", "--where"]).stdout.strip() == str(tmp_path)
    for arguments, message in (
        (["--data", "nosuch"], "--data must be one of ade20k"),
        (["--family", "nosuch"], "--family must be one of vit_adapter"),
        (["--family", "vit_comer", "--data", "cityscapes"], "vit_comer has no published model for cityscapes"),
        (["--checkpoint", "x"], "--checkpoint needs the name of the model"),
    ):
        done = CliRunner().invoke(app, ["models", *arguments])
        assert done.exit_code == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("is_offline", [False, True])
def test_photos_without_a_model(released, monkeypatch, tmp_path, is_offline):
    monkeypatch.setattr("segtransformers.cli.segment.SMALL_MODEL", NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(is_offline)))
    target = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["segment", str(example_image_path()), "--output", str(target)])
    assert done.exit_code == 0 and target.is_file(), done.output
    if is_offline:
        assert done.stdout.startswith("model: packaged, 10 classes")
        assert "knows drawn scenes only" in done.stderr and f"--model {NAME}" in done.stderr
    else:
        assert done.stdout.startswith(f"model: {NAME}, ")


def test_the_cache_lies_beside_that_of_hugging_face(monkeypatch, tmp_path):
    monkeypatch.delenv("SEGTRANSFORMERS_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert user_cache("models") == tmp_path / "segtransformers/models"
    monkeypatch.setenv("SEGTRANSFORMERS_CACHE", str(tmp_path / "own"))
    assert user_cache("models") == tmp_path / "own/models"


def test_shortened_names_for_the_conversion():
    full = "upernet_deit_adapter_tiny_512_160k_ade20k"
    assert _full_name("deit-adapter-tiny-ade20k", "vit_adapter") == _full_name(full, "vit_adapter") == full
    assert _full_name("deit-adapter-tiny-ade20k", "internimage") == "deit-adapter-tiny-ade20k"
    assert _full_name("folder/best.pth", "vit_adapter") == "folder/best.pth"
    with pytest.raises(ConversionError, match="published models: "):
        _full_name("upernet", "vit_adapter")
