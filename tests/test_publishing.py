# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Push checkpoints to the Hub and load them again, with huggingface_hub's client and a server in the tests.

Files are uploaded by git LFS. The client's newer protocol, Xet, is switched off as the Hub's documentation describes,
because a test cannot serve its storage.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import TOKENS, client_environment, running_hub
from huggingface_hub import ModelCard
from PIL import Image
from reference_cases import ReferenceCase, relative_error
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

import segtransformers
from segtransformers.cli import app
from segtransformers.conversion.cli import main
from segtransformers.hub.publishing import PublishingError, check_destination, push_folder, scrubbed

SCRIPTS = Path(__file__).parent.parent / "conversion_scripts"
WRITER, READER, _ = TOKENS
# family -> reference case, and the name of its recorded logits
CASES = {
    "vit_adapter": ("vit_adapter/tiny-beit-mask2former", "segmentation_logits"),
    "vit_comer": ("vit_comer/tiny-upernet", "segmentation_logits"),
    "internimage": ("internimage/tiny-t-upernet", "segmentation_logits"),
    "segmenter": ("segmenter/tiny-mask-slide", "slide_logits"),
    "eva02": ("eva/tiny-eva02-upernet", "segmentation_logits"),
    "flash_internimage": ("flash_internimage/tiny-flash-t-upernet", "segmentation_logits"),
}
# Each job runs in a child process in which segtransformers was not imported, and prints one line of JSON.
LOADER = """
import json, os, re, sys
import kernels, scipy.optimize, timm, torch, torchvision.transforms.v2  # imported here once, because they take long
from huggingface_hub import hf_hub_download
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from PIL import Image


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "segtransformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load(family):
    model = AutoModelForSemanticSegmentation.from_pretrained(f"writer/{family}", trust_remote_code=True)
    model = model.double().eval()
    if family != "segmenter":
        model.config.inference_mode = "whole"
    with torch.no_grad():
        torch.save(model(torch.load(f"{family}.input.pt")).logits, f"{family}.logits.pt")
    return {"class": type(model).__name__}


def plain_pipeline():
    segments = pipeline("image-segmentation", model="writer/segmenter", trust_remote_code=True)("photo.jpg")
    return {"segments": len(segments), "size": segments[0]["mask"].size}


def own_pipeline():
    segmenter = pipeline("semantic-segmentation", model="writer/segmenter", trust_remote_code=True)
    return {"segments": len(segmenter("photo.jpg", flip=True)), "class": type(segmenter).__name__}


def card():
    text = open(hf_hub_download("writer/segmenter", "README.md")).read()
    names, blocks = {}, re.findall(r"```python\\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(block, names)
    return {"blocks": len(blocks), "labels": list(names["labels"].shape)}


def saved_again():
    model = AutoModelForSemanticSegmentation.from_pretrained("writer/segmenter", trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained("writer/segmenter", trust_remote_code=True)
    model.save_pretrained("again")
    processor.save_pretrained("again")
    config = json.load(open("again/config.json"))
    return {"files": sorted(os.listdir("again")), "auto_map": config["auto_map"]}


def without_the_package():
    sys.meta_path.insert(0, Absent())
    try:
        AutoModelForSemanticSegmentation.from_pretrained("writer/segmenter", trust_remote_code=True)
    except ImportError as error:
        return {"error": str(error)}


jobs = {family: (lambda family=family: load(family)) for family in sys.argv[1:]}
jobs |= {job.__name__: job for job in (plain_pipeline, own_pipeline, card, saved_again, without_the_package)}
for name, job in jobs.items():
    sys.stdout.flush()
    if os.fork() == 0:
        status = 1
        try:
            assert not any(module.partition(".")[0] == "segtransformers" for module in sys.modules)
            result = job()
            print("RESULT " + json.dumps({name: result}), flush=True)
            status = 0
        finally:
            os._exit(status)
    assert os.wait()[1] == 0, name
"""
PUSHER = """
import runpy, sys
for script, checkpoint, repository in zip(*[iter(sys.argv[1:])] * 3):
    sys.argv = [script, "--checkpoint", checkpoint, "--push-to-hub", repository, "--verify", "--license", "mit"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, script

import segtransformers
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained(segtransformers.packaged_model_path())
model.push_to_hub("writer/tuned")
AutoImageProcessor.from_pretrained(segtransformers.packaged_model_path()).push_to_hub("writer/tuned")
"""


def case_files(folder: Path, family: str) -> Path:
    case, _ = CASES[family]
    case = ReferenceCase(case)
    meta = {**case.manifest["meta"], "config": f"model = {case.config!r}"}
    torch.save({"meta": meta, "state_dict": case.state_dict(torch.float32)}, folder / f"{family}.pth")
    torch.save(case.pixel_values(), folder / f"{family}.input.pt")
    return folder / f"{family}.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("publishing")


@pytest.fixture(scope="module")
def pushed(folder):
    """A server with one repository per family, pushed by the family's conversion script."""
    with running_hub() as hub:
        arguments = []
        for family in CASES:
            arguments += [SCRIPTS / f"convert_{family}.py", case_files(folder, family), f"writer/{family}"]
        done = subprocess.run(
            [sys.executable, "-c", PUSHER, *map(str, arguments)],
            env=client_environment(hub, folder, WRITER),
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert WRITER not in done.stdout + done.stderr
        hub.said = done.stdout
        yield hub


@pytest.fixture(scope="module")
def loaded(pushed, folder):
    """The results of the jobs of `LOADER`, which load the repositories with `trust_remote_code=True`."""
    Image.new("RGB", (90, 70), (120, 150, 90)).save(folder / "photo.jpg")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *CASES],
        env=client_environment(pushed, folder, token=None),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = re.findall(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    return {name: result for line in results for name, result in json.loads(line).items()}


@pytest.mark.parametrize("family", CASES)
def test_pushed_checkpoints_give_the_outputs_of_the_original(loaded, folder, family):
    case, output = ReferenceCase(CASES[family][0]), CASES[family][1]
    logits = torch.load(folder / f"{family}.logits.pt")
    assert relative_error(case.sampled(output, logits), case.outputs()[output]) < 1e-5
    assert loaded[family]["class"].endswith("ForSemanticSegmentation")


@pytest.mark.parametrize("family", CASES)
def test_a_push_is_one_commit_with_all_files_of_a_model(pushed, family):
    repository = pushed.repositories[f"writer/{family}"]
    assert repository.messages == [
        "initial commit",
        f"Convert {family}.pth with segtransformers {segtransformers.__version__}",
    ]
    assert set(repository.files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "conversion.json",
        "model.safetensors",
        "modeling_segtransformers.py",
        "preprocessor_config.json",
    }
    assert repository.files["model.safetensors"] in pushed.large.values()  # by LFS
    assert f"pushed to {pushed.url}/writer/{family}" in pushed.said
    config = json.loads(repository.files["config.json"])
    meta = ReferenceCase(CASES[family][0]).manifest["meta"]
    assert list(config["id2label"].values()) == list(meta["CLASSES"]) and config["palette"] == meta["PALETTE"]
    assert {"inference_mode", "window_size", "window_stride"} <= config.keys()
    modules = re.findall(r'"(\w+)\.\w+"', json.dumps([config["auto_map"], config["custom_pipelines"]]))
    assert set(modules) == {"modeling_segtransformers"} and len(modules) == 3
    record = json.loads(repository.files["conversion.json"])
    assert record["source"]["file"] == f"{family}.pth" and re.fullmatch("[0-9a-f]{64}", record["source"]["sha256"])
    assert record["versions"]["segtransformers"] == segtransformers.__version__
    assert record["verification"]["relative_error"] < 1e-5 and record["verification"]["same_class"] == 1
    placed = [name for names in record["tensors"]["used"].values() for name in names]
    assert len(placed) + len(record["tensors"]["made"]) == len(set(placed)) == record["tensors_checked"]


def test_pipelines_of_a_pushed_model(loaded):
    assert loaded["plain_pipeline"]["size"] == [90, 70] and loaded["plain_pipeline"]["segments"] >= 1
    assert loaded["own_pipeline"]["class"] == "SegmentationPipeline" and loaded["own_pipeline"]["segments"] >= 1


def test_snippets_of_a_card_run(loaded):
    assert loaded["card"] == {"blocks": 2, "labels": [70, 90]}


def test_commands_of_a_card_exist(pushed):
    card = pushed.repositories["writer/segmenter"].files["README.md"].decode()
    commands = re.findall(r"```bash\n(.*?)\n```", card, re.DOTALL)
    assert commands == [
        "pip install segtransformers",
        "segtransformers evaluate --model writer/segmenter --data FOLDER",
    ]
    shown = CliRunner().invoke(app, ["evaluate", "--help"]).stdout
    assert "--model" in shown and "--data" in shown


def test_models_loaded_as_remote_code_can_be_saved(loaded):
    assert loaded["saved_again"]["files"] == [
        "config.json",
        "model.safetensors",
        "modeling_segtransformers.py",
        "preprocessor_config.json",
    ]
    assert set(loaded["saved_again"]["auto_map"].values()) == {
        "modeling_segtransformers.SegmenterConfig",
        "modeling_segtransformers.SegmenterForSemanticSegmentation",
    }


def test_the_error_without_the_package_says_how_to_install_it(loaded):
    assert "pip install segtransformers" in loaded["without_the_package"]["error"]


def test_push_to_hub_of_transformers(pushed):
    """Users call it after fine-tuning. It pushes the same files, with transformers' own card."""
    files = pushed.repositories["writer/tuned"].files
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_segtransformers.py",
        "preprocessor_config.json",
    }
    stub = files["modeling_segtransformers.py"].decode()
    assert "SegmentationImageProcessor" in stub
    assert ModelCard(files["README.md"].decode()).data.library_name == "transformers"


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A server for huggingface_hub in this process."""
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _with_endpoint(hub.url))
        yield hub


def _with_endpoint(url):
    original = huggingface_hub.HfApi.__init__

    def init(self, endpoint=None, **kwargs):
        original(self, endpoint=endpoint or url, **kwargs)

    return init


@pytest.fixture(scope="module")
def saved(folder) -> Path:
    path = folder / "saved"
    for auto_class in (AutoModelForSemanticSegmentation, AutoImageProcessor):
        auto_class.from_pretrained(segtransformers.packaged_model_path()).save_pretrained(path)
    return path


def test_private_repositories(client, saved, monkeypatch):
    push_folder(saved, "writer/hidden", private=True)
    assert client.repositories["writer/hidden"].private
    assert push_folder(saved, "hidden").endswith("/writer/hidden")  # a name without an owner is the user's
    client.create("writer/seen", "writer")
    with pytest.raises(PublishingError, match=r"writer/seen is public: --private cannot hide it"):
        push_folder(saved, "writer/seen", private=True)
    assert client.repositories["writer/seen"].messages == ["initial commit"]


def test_optimized_models_are_refused_before_a_repository_is_created(client, saved):
    model = segtransformers.optimize_for_inference(AutoModelForSemanticSegmentation.from_pretrained(saved))
    with pytest.raises(RuntimeError, match="an optimized model cannot be pushed: load the model again"):
        model.push_to_hub("writer/optimized")
    assert not client.repositories


def test_pull_requests(client, saved, monkeypatch):
    client.create("writer/model", "writer")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert push_folder(saved, "writer/model", create_pr=True) == f"{client.url}/writer/model/discussions/1"
    repository = client.repositories["writer/model"]
    assert set(repository.files) == {".gitattributes"}
    assert "model.safetensors" in repository.trees[repository.heads["refs/pr/1"]]
    with pytest.raises(PublishingError, match="does not exist or is not visible to you"):
        push_folder(saved, "writer/other", create_pr=True)


def test_weights_of_an_earlier_push_go_in_the_same_commit(client, saved, tmp_path):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved)
    model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    push_folder(tmp_path / "shards", "writer/model")
    repository = client.repositories["writer/model"]
    assert sum(name.endswith(".safetensors") for name in repository.files) > 1
    push_folder(saved, "writer/model", message="One file")
    assert [name for name in repository.files if "safetensors" in name] == ["model.safetensors"]
    assert repository.messages == ["initial commit", "Push shards", "One file"]


@pytest.mark.parametrize("part", ["/lfs/", "preupload", "/commit/", "objects/batch"])
def test_failed_pushes_change_no_file(client, saved, part, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    client.failing = {part: 403}
    with pytest.raises(PublishingError, match="the push failed, writer/new was created and is empty: 403"):
        push_folder(saved, "writer/new")
    assert set(client.repositories["writer/new"].files) == {".gitattributes"}
    client.failing = {}
    push_folder(saved, "writer/new")
    before = dict(client.repositories["writer/new"].files)
    (saved / "extra.txt").write_text(part)
    client.failing = {part: 403}
    try:
        if part in ("/commit/", "preupload"):  # unchanged weights are not sent again
            with pytest.raises(PublishingError, match="writer/new is unchanged"):
                push_folder(saved, "writer/new")
            assert client.repositories["writer/new"].files == before
    finally:
        (saved / "extra.txt").unlink()


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(client, saved, monkeypatch):
    repository = client.create("writer/model", "writer")
    original = huggingface_hub.HfApi.preupload_lfs_files

    def meanwhile(self, *args, **kwargs):
        repository.commit("main", {**repository.files, "theirs": b"x"}, "theirs")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", meanwhile)
    with pytest.raises(PublishingError, match="412 A commit has happened since"):
        push_folder(saved, "writer/model")
    assert set(repository.files) == {".gitattributes", "theirs"}


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("writer/model", None, "nobody is logged in"),
        ("writer/model", "hf_thisOneIsNotKnown", "cannot push to writer/model: Invalid user token"),
        ("a/b/c", WRITER, "cannot push to a/b/c: Repo id must"),
        ("somebody/model", WRITER, "don't have the rights to create a model under"),
    ],
)
def test_refused_pushes(client, saved, monkeypatch, repository, token, message):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("segtransformers.hub.publishing.get_token", lambda: None)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishingError) as refused:
        push_folder(saved, repository)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not client.repositories and (token is None or token not in str(refused.value))


def test_unreachable_hub_is_one_line(client, saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _with_endpoint("http://127.0.0.1:9"))
    with pytest.raises(PublishingError, match=r"^cannot push to writer/model: [^\n]+$"):
        check_destination("writer/model")


def test_tokens_are_never_printed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-without-prefix")
    text = (
        "403 for url https://user:word@hub.test/x?X-Amz-Signature=abc&y=1 Authorization: Bearer hf_abcdefghijkl "
        "secret-without-prefix"
    )
    assert scrubbed(text) == "403 for url https://hub.test/x Authorization: Bearer *** ***"


def test_failures_on_the_command_line_are_one_line_without_the_token(client, tmp_path, capsys):
    file = case_files(tmp_path, "segmenter")
    client.failing = {"/commit/": 500}
    arguments = ["--checkpoint", file, "--push-to-hub", "writer/x", "--output", tmp_path / "out"]
    status = main("segmenter", list(map(str, arguments)))
    captured = capsys.readouterr()
    assert status == 1 and captured.err.startswith("error: the push failed") and captured.err.count("\n") == 1
    assert WRITER not in captured.out + captured.err
    assert (tmp_path / "out" / "model.safetensors").is_file()  # converted, to be pushed later
    client.failing = {}
    pushed = CliRunner().invoke(app, ["push", str(tmp_path / "out"), "writer/x"])
    assert pushed.exit_code == 0 and "writer/x" in (tmp_path / "out" / "README.md").read_text()
    assert set(client.repositories["writer/x"].files) > {"README.md", "model.safetensors"}


def test_options_that_need_other_options(tmp_path, capsys):
    for options, message in (
        ([], "add --output to write a folder, or --push-to-hub"),
        (["--output", str(tmp_path / "x"), "--private"], "--private and --create-pr need --push-to-hub"),
    ):
        assert main("segmenter", ["--checkpoint", "x.pth", *options]) == 1
        assert message in capsys.readouterr().err


def test_fine_tuned_folders_get_a_card(client, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "tuned")
    pushed = CliRunner().invoke(app, ["push", str(tmp_path / "tuned"), "tuned", "--license", "mit", "--private"])
    assert pushed.exit_code == 0, pushed.output
    card = ModelCard(client.repositories["writer/tuned"].files["README.md"].decode())
    assert card.data.license == "mit" and "Reported by the authors: none" in card.text
    (tmp_path / "tuned" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    assert CliRunner().invoke(app, ["push", str(tmp_path / "tuned"), "tuned"]).exit_code == 0
    assert client.repositories["writer/tuned"].files["README.md"].endswith(b"mine")


def test_folders_that_cannot_be_pushed_are_refused(monkeypatch, tmp_path):
    """The folder is checked before the login."""
    monkeypatch.setattr("segtransformers.hub.publishing.get_token", lambda: None)
    for folder, message in ((tmp_path / "nowhere", "there is no folder"), (tmp_path, "holds no config.json")):
        refused = CliRunner().invoke(app, ["push", str(folder), "writer/tuned"])
        assert refused.exit_code == 1 and message in refused.stderr and refused.stderr.count("\n") == 1
