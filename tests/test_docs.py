# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The pages of the documentation: their snippets run, their commands and options exist, their links lead somewhere."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import torch
import yaml
from hub_server import client_environment, running_hub
from reference_cases import ReferenceCase
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser, TrainingArguments
from typer.main import get_command
from typer.testing import CliRunner

from segtransformers import example_image_path, packaged_model_path
from segtransformers.cli import app
from segtransformers.conversion.cli import conversion_parser
from segtransformers.datasets.scenes import write_scenes
from segtransformers.published import FAMILIES
from segtransformers.training import Recipe
from segtransformers.training.loss_settings import check_recipe_losses

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"```(\w+)([^\n]*)\n(.*?)```", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")


def blocks(language: str) -> list:
    """Return the blocks of a language as parameters (page, words after the language, text)."""
    found = []
    for page, text in TEXTS.items():
        matches = [match for match in BLOCK.finditer(text) if match[1] == language]
        found += [
            pytest.param(page, match[2].split(), match[3], id=f"{page}-{index}") for index, match in enumerate(matches)
        ]
    return found


def command_lines() -> list:
    """Return the lines that start a command of this package, from the blocks for a shell."""
    found = []
    for parameter in [*blocks("bash"), *blocks("text")]:
        page, _, text = parameter.values
        for line in text.replace("\\\n", " ").splitlines():
            if re.search(r"(^|-m )segtransformers( |$)", line):
                found.append(pytest.param(line, id=f"{page}-{len(found)}"))
    return found


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def training_options() -> set[str]:
    actions = HfArgumentParser(TrainingArguments)._actions
    return {option for action in actions for option in action.option_strings}


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_their_options_exist(line):
    words = shlex.split(line.partition(" #")[0])
    words = words[words.index("segtransformers") + 1 :]
    group = get_command(app)
    if not words or words[0].startswith("-"):
        return
    name, arguments = words[0], words[1:]
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"no command {name}"
    if name == "convert":
        assert arguments[0] in FAMILIES
        conversion_parser(arguments[0], None).parse_args(arguments[1:])
        return
    known = options_of(command) | (training_options() if name == "train" else set())
    unknown = [word for word in arguments if OPTION.fullmatch(word) and word not in known]
    assert not unknown, f"{name} has no {unknown}"


@pytest.mark.parametrize("page", TEXTS)
def test_options_named_in_the_text_exist(page):
    group = get_command(app)
    known = {"--help", *training_options()}
    for name in group.list_commands(click.Context(group)):
        known |= options_of(group.get_command(click.Context(group), name))
    for family in FAMILIES:
        known |= {option for action in conversion_parser(family, None)._actions for option in action.option_strings}
    text = BLOCK.sub("", TEXTS[page])
    spans = [
        span
        for span in re.findall(r"`([^`]+)`", text)
        if not re.match(r"(pip|python|tools|torchrun|nvcc|hf|git) ", span)
    ]
    unknown = {option for span in spans for option in OPTION.findall(span)} - known - FOREIGN_OPTIONS
    assert not unknown


FOREIGN_COMMANDS = ("pip ", "python ", "benchmarks/", "tools/", "torchrun ", "accelerate ")
# of MMSegmentation's tools, accelerate and benchmarks
FOREIGN_OPTIONS = {
    "--eval",
    "--aug-test",
    "--show-dir",
    "--resume-from",
    "--auto-resume",
    "--multi_gpu",
    "--num_processes",
    "--height",
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with what a user of a page has: a model, drawn scenes as data, a checkpoint, a photo."""
    shutil.copytree(packaged_model_path(), tmp_path / "my-model")
    write_scenes(tmp_path / "my-data", 2, split="train")
    write_scenes(tmp_path / "my-data", 1, seed=2, split="validation")
    shutil.copy(example_image_path(), tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_runs_from_top_to_bottom(page, folder, monkeypatch):
    """Blocks without a word after their language: commands in this process, and Python with the names so far."""
    found = [(match[1], match[3]) for match in BLOCK.finditer(TEXTS[page]) if not match[2].strip()]
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    if page == "convert_publish":
        case = ReferenceCase("vit_adapter/full-upernet_deit_adapter_tiny_512_160k_ade20k")
        checkpoint = {"meta": {}, "state_dict": case.state_dict(torch.float32)}
        torch.save(checkpoint, folder / "upernet_deit_adapter_tiny_512_160_ade20k.pth.tar")
    for language, text in found:
        if language == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
        for line in text.splitlines() if language == "bash" else ():
            if line.startswith("segtransformers "):
                done = CliRunner().invoke(app, shlex.split(line)[1:])
                assert done.exit_code == 0, (line, done.output)


def test_a_pushed_model_loads_in_a_new_process(folder):
    """The commands of the page on publishing, against a server on this machine."""
    (command,) = re.findall(r"^segtransformers push .*$", TEXTS["convert_publish"], re.MULTILINE)
    (snippet,) = re.findall(r"```python hub\n(.*?)```", TEXTS["convert_publish"], re.DOTALL)
    words = shlex.split(command)
    for auto_class in (AutoModelForSemanticSegmentation, AutoImageProcessor):
        auto_class.from_pretrained(folder / "my-model").save_pretrained(folder / words[2])
    with running_hub() as hub:
        environment = client_environment(hub, folder, token="hf_yourTokenForTests")
        for arguments in (["-m", *words], ["-c", snippet + "assert segmenter.model.config.num_labels == 10"]):
            done = subprocess.run(
                [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (arguments, done.stderr)
        assert hub.repositories[words[3]].private


def test_the_list_of_published_models_is_the_data(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generate = importlib.import_module("generate")
    for name, page in (("zoo", generate.zoo()), ("benchmarks", generate.benchmarks())):
        assert TEXTS[name] == generate.GENERATED + page, "run `python -m sphinx docs docs/_build`"


def test_measured_times_of_the_list_are_those_of_the_file(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generate = importlib.import_module("generate")
    fast = {"median_ms": 12.3, "peak_mib": 45}
    setting = {"machine": "A machine", "threads": 2, "size": 512}
    results = {
        "segmenter-t-mask": {"setting": setting, "engines": {"PyTorch": fast, "OpenVINO": {"failed": "no"}}},
        "swin-t-upernet": {"setting": setting | {"threads": 4}, "engines": {"OpenVINO": fast}},
        "not published": {"setting": setting, "engines": {"PyTorch": fast}},
    }
    (tmp_path / "engines.json").write_text(json.dumps(results))
    lines = generate.measured(tmp_path / "engines.json")
    assert "| `segmenter_vit-t_mask_8x1_512x512_160k_ade20k` | 12 ms, 45 MiB | - |" in lines
    assert sum(line.startswith("| `") for line in lines) == 2 and sum("A machine" in line for line in lines) == 2
    (tmp_path / "engines.json").write_text("{}")
    assert generate.measured(tmp_path / "engines.json") == []


@pytest.mark.parametrize(("page", "words", "code"), [block for block in blocks("python") if block.values[1]])
def test_imports_of_snippets_that_are_not_run(page, words, code):
    """Only the imports of this package. The rest needs the network, a data set or another package."""
    assert words[0] in {"no-run", "hub", "training", "frozen"}
    for statement in ast.parse(code, f"{page}.md").body:
        if isinstance(statement, ast.ImportFrom) and statement.module.startswith("segtransformers"):
            exec(ast.unparse(statement), {})


@pytest.mark.parametrize(("page", "words", "code"), blocks("yaml"))
def test_recipes_are_valid(page, words, code):
    recipe = Recipe.from_dict(yaml.safe_load(code))
    check_recipe_losses(recipe)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_pages_and_files(page):
    """Sphinx checks the links between pages, too; here also those to files, and without a build."""
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", TEXTS[page]):
        path, _, heading = unquote(target).partition("#")
        if path.startswith("generated/"):
            continue
        file = ROOT / "docs" / path
        assert not path or file.exists() or file.with_name(file.name + ".md").exists(), target
        if heading and not path:
            assert heading in headings(TEXTS[page]), target


def headings(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^(\w+)$", TEXTS["index"], re.MULTILINE))
    assert listed == TEXTS.keys() - {"index"}
