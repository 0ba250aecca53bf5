# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Help, listings and mistyped commands answer at once: they import neither torch nor transformers."""

import json
import os
import subprocess
import sys

import pytest

from segtransformers import __version__

COMMANDS = (
    "autolabel",
    "average",
    "build-kernels",
    "check-data",
    "convert",
    "demo",
    "evaluate",
    "export",
    "info",
    "models",
    "push",
    "push-kernels",
    "recipes",
    "segment",
    "train",
)
# arguments -> exit status, and a part of the output
INVOCATIONS = {
    (): (0, "segtransformers train --data my-data --output trained "),
    ("--widow",): (2, "No such option: --widow"),
    ("-h",): (0, "Usage: segtransformers"),
    ("--help",): (0, "Usage: segtransformers"),
    ("--version",): (0, f"segtransformers {__version__}\n"),
    ("models",): (0, "upernet_deit_adapter_tiny_512_160k_ade20k"),
    ("models", "nosuch"): (1, "error: 'nosuch' is no published model"),
    ("recipes",): (0, "upernet_deit_adapter_tiny_512_160k_ade20k  ade20k"),
    ("recipes", "upernet_deit_adapter_tiny_512_160k_ade20k"): (0, '"layer_decay"'),
    ("recipes", "upernet"): (1, "error: "),
    ("convert",): (1, "error: name the family first"),
    ("convert", "nosuch"): (1, "error: nosuch is no family of checkpoints: name the family first"),
    ("convert", "segmenter", "-h"): (0, "usage: segtransformers convert segmenter"),
    ("convert", "segmenter", "--output", "x"): (2, "--checkpoint"),
    ("segmnt",): (2, "No such command 'segmnt'"),
    ("evaluate", "--model", "packaged"): (2, "Missing option '--data'"),
    ("train",): (2, "Missing option '--data'"),
    **{(command, "--widow"): (2, "No such option: --widow") for command in ("segment", "evaluate", "export")},
    **{(command, option): (0, f"segtransformers {command}") for command in COMMANDS for option in ("-h", "--help")},
}
RUN_WITHOUT_HEAVY_PACKAGES = """
import json
import sys

HEAVY = {"datasets", "gradio", "huggingface_hub", "kernels", "numpy", "PIL", "scipy", "timm", "torch", "transformers"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise AssertionError(f"{name} was imported")


sys.meta_path.insert(0, Refuse())
from typer.testing import CliRunner

from segtransformers.cli import app

results = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments, prog_name="segtransformers")
    refused = isinstance(result.exception, AssertionError)
    results.append([result.exit_code, str(result.exception) if refused else result.output])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, ...], list]:
    """Exit status and output of every invocation, in one process that refuses to import heavy packages."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_HEAVY_PACKAGES],
        input=json.dumps(list(INVOCATIONS)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(INVOCATIONS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("arguments", INVOCATIONS, ids=" ".join)
def test_output(results, arguments):
    status, output = results[arguments]
    expected_status, part = INVOCATIONS[arguments]
    assert part in output and status == expected_status, output


def test_every_command_is_tested():
    from segtransformers.cli import app

    names = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert sorted(names) == list(COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"), [("se", "segment"), ("evaluate --mult", "--multi-scale"), ("train --fre", "--freeze-trunk")]
)
def test_a_shell_completes_commands_and_options(words, expected):
    line = f"segtransformers {words}"
    environment = {"_SEGTRANSFORMERS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": f"{line.count(' ')}"}
    done = subprocess.run(
        [sys.executable, "-c", "from segtransformers.cli import app; app(prog_name='segtransformers')"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout.split(), done.stderr
