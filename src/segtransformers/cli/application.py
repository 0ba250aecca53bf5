# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The `segtransformers` command."""

import typer

from ..operators import dispatcher
from .build_kernels import build_kernels
from .check_data import check_data
from .common import one_line_errors
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .export import export
from .info import info
from .push import push
from .recipes import recipes
from .segment import segment
from .train import train

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _main() -> None:
    """Semantic segmentation with ViT-Adapter, ViT-CoMer, InternImage and Segmenter."""
    with one_line_errors(ValueError):
        dispatcher.default_mode()  # before work is done, and in one line


app.command()(segment)
app.command()(evaluate)
app.command()(check_data)
app.command()(export)
app.command()(demo)
app.command()(info)
app.command()(build_kernels)
app.command()(recipes)
app.command()(push)
# its options are those of the conversion scripts, --help among them
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    convert
)
# what it does not know are options of transformers' TrainingArguments
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
