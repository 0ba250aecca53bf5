# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The `segtransformers` command.

The modules of the commands import torch, transformers and what needs them inside their functions, because these take
seconds to import, and help, listings and mistyped options need none of them.
"""

from typing import Annotated

import typer

from ..command_process import prepare_process
from ..operators.modes import default_mode
from ..version import __version__
from .autolabel import autolabel
from .average import average
from .build_kernels import build_kernels
from .check_data import check_data
from .convert import convert
from .demo import demo
from .errors import one_line_errors
from .evaluate import evaluate
from .export import export
from .info import info
from .models import models
from .output import with_output_options
from .push import push
from .push_kernels import push_kernels
from .recipes import recipes
from .segment import segment
from .train import train

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segtransformers {__version__}")
        raise typer.Exit


FIRST_STEPS = """\
segtransformers segment photo.jpg                                          draw the classes of a photo
segtransformers check-data my-data                                         check a folder of images and masks
segtransformers train --data my-data --output trained                      fine-tune a model on it
segtransformers evaluate --model trained --data my-data --output iou.json  measure its mean IoU
segtransformers export --model trained --output model.onnx                 write a file for other runtimes

segtransformers --help lists all commands, and COMMAND --help the options of one.
"""


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Segment images with ViT-Adapter, InternImage, Segmenter, DINOv2, DINOv3, EVA and others, and train them."""
    prepare_process()
    with one_line_errors(ValueError):
        default_mode()  # checked here, so that no command fails later because of it
    if context.invoked_subcommand is None:
        typer.echo(FIRST_STEPS, nl=False)


app.command()(with_output_options(segment))
app.command()(with_output_options(evaluate))
app.command()(with_output_options(check_data))
app.command()(with_output_options(export))
app.command()(demo)
app.command()(with_output_options(info, quiet=False))
app.command()(build_kernels)
app.command()(with_output_options(models, quiet=False))
app.command()(with_output_options(recipes, quiet=False))
app.command()(with_output_options(autolabel))
app.command()(with_output_options(average))
app.command()(with_output_options(push))
app.command()(push_kernels)
# `convert` passes its options on to the conversion scripts, `train` to transformers' TrainingArguments
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    convert
)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(with_output_options(train))
