# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Run every snippet of the README, except the installation, which .ci/run does."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import client_environment, running_hub
from reference_cases import ReferenceCase
from typer.testing import CliRunner

from segtransformers import packaged_model_path, training
from segtransformers.cli import app
from segtransformers.conversion.cli import conversion_parser
from segtransformers.datasets.scenes import write_scenes
from segtransformers.published import FAMILIES, published_table
from segtransformers.training import Recipe, get_recipe
from segtransformers.training.loss_settings import check_recipe_losses

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONVERT = "segtransformers convert "
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a user's files: a model, drawn scenes, and a checkpoint with a published model's shapes."""
    path = tmp_path_factory.mktemp("readme")
    case = ReferenceCase("vit_adapter/full-upernet_deit_adapter_tiny_512_160k_ade20k")
    shutil.copytree(packaged_model_path(), path / "my-model")
    write_scenes(path / "my-data", 2, split="train")
    write_scenes(path / "my-data", 1, seed=2, split="validation")
    torch.save({"meta": {}, "state_dict": case.state_dict(torch.float32)}, path / _word("--checkpoint"))
    return path


def _word(option: str) -> str:
    """Return the value of an option in the README's conversion command."""
    (command,) = [code for kind, code in BLOCKS if "convert_vit_adapter.py" in code]
    words = shlex.split(command)
    return words[words.index(option) + 1]


@pytest.fixture(scope="module")
def exported(folder):
    """Return the folder after the README's export command, whose file a snippet reads."""
    (command,) = [shlex.split(code) for kind, code in BLOCKS if kind == "bash" and " export " in code]
    with pytest.MonkeyPatch.context() as monkeypatch:
        _output(command, folder, monkeypatch)
    assert (folder / command[-1]).exists()
    return folder


def _run(words: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def _output(words: list[str], folder: Path, monkeypatch) -> str:
    """Run a command in this process, which has imported everything already. test_cli.py runs some as a user does."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, (words, done.output)
    return done.stdout


def test_commands(folder, monkeypatch):
    commands = [code.strip() for kind, code in BLOCKS if kind == "bash" and not code.startswith(CONVERT)]
    assert len(commands) == 9
    printed = ""
    for command in commands:
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            words = words[words.index("&&") + 1 :]
        if words[:3] == ["python", "-m", "pytest"]:
            assert len(words) == 3  # this run
            continue
        if words[1:] == ["build-kernels"]:
            assert words[1] in CliRunner().invoke(app, ["--help"]).stdout  # test_kernels.py runs it
            continue
        if words[1] == "export":
            continue  # `exported` runs it
        if words[1] == "push":
            _push(folder, words)
            continue
        if words[1] == "train":
            continue  # test_train_command.py runs it
        if words[0] == "python":
            printed += _run([sys.executable, str(ROOT / words[1]), *words[2:]], folder)
        else:
            printed += _output(words, folder, monkeypatch)
    assert (folder / "segmentation.png").exists()
    assert "150 classes (names of ade20k)" in printed and (folder / _word("--output") / "config.json").exists()


def test_conversions_of_files_that_nobody_has_here():
    """Their options exist; test_dino_conversion.py and test_dino_mask2former_conversion.py run such commands."""
    commands = [shlex.split(code) for kind, code in BLOCKS if kind == "bash" and code.startswith(CONVERT)]
    assert len(commands) >= 2
    for words in commands:
        assert words[2] in FAMILIES
        assert conversion_parser(words[2], None).parse_args(words[3:]).output


def _push(folder: Path, words: list[str]) -> None:
    """Push to a server on this machine, and run the README's next snippet in a new process, which loads that model."""
    (snippet,) = re.findall(r"```python hub\n(.*?)```", README, re.DOTALL)
    with running_hub() as hub:
        environment = client_environment(hub, folder, token="hf_yourTokenForTests")
        for arguments in (["-m", *words], ["-c", snippet + "assert segmenter.model.config.num_labels == 150"]):
            _run([sys.executable, *arguments], folder, environment)
        assert hub.repositories[words[3]].private


def test_python_snippets(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported)
    snippets = [code for kind, code in BLOCKS if kind == "python"]
    assert len(snippets) == 13
    names: dict[str, object] = {}
    for code in snippets:
        exec(code, names)
    assert names["loss"].item() > 0
    assert names["window"].shape == (2, 256, 256)
    assert capsys.readouterr().out


def test_fine_tuning_in_python(folder, monkeypatch, capsys):
    """Train two steps of two small crops instead of 20000 steps of 16 large crops."""
    monkeypatch.chdir(folder)
    changes = {"batch_size": 2, "augmentation": {"shortest_edge": 96, "crop_size": [96, 96]}}
    monkeypatch.setattr(training, "get_recipe", lambda name: Recipe.from_dict({"base": name, **changes}))
    (code,) = re.findall(r"```python training\n(.*?)```", README, re.DOTALL)
    assert "max_steps=20000" in code
    names: dict[str, object] = {}
    exec(next(block for kind, block in BLOCKS if kind == "python"), names)
    exec(code.replace("max_steps=20000", "max_steps=2"), names)
    run = names["trainer"]
    assert run.state.global_step == 2 and len(run.class_metrics["per_category_iou"]) == len(names["train"].id2label)
    assert f"{run.state.log_history[-1]['eval_mean_iou']}" in capsys.readouterr().out
    assert (folder / "trained" / "checkpoint-2" / "model.safetensors").exists()


@pytest.mark.parametrize("code", re.findall(r"```python no-run\n(.*?)```", README, re.DOTALL))
def test_imports_of_snippets_that_are_not_run(code):
    """Run only the imports of this package. The rest needs the network, a data set or another package."""
    for statement in ast.parse(code, "README.md").body:
        if isinstance(statement, ast.ImportFrom) and statement.module.startswith("segtransformers"):
            exec(ast.unparse(statement), {})


def test_recipes_are_valid():
    losses, recipe = [Recipe.from_dict(yaml.safe_load(code)) for kind, code in BLOCKS if kind == "yaml"]
    check_recipe_losses(losses)
    assert losses.weight_average.interval == 2 and [loss["name"] for loss in losses.losses] == ["cross_entropy", "dice"]
    assert recipe.schedule.steps == 20000
    assert recipe.crop_size == (384, 384)
    assert get_recipe("upernet_deit_adapter_tiny_512_160k_ade20k").known_issues
    assert not recipe.known_issues


def test_published_tables_are_the_data():
    for family in FAMILIES:
        assert published_table(family) in README


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
