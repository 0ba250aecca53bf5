# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers average`: the mean of several checkpoints of one training run."""

from pathlib import Path
from typing import Annotated

import typer

from .common import check_folder
from .errors import UserError, one_line_errors
from .output import document, result


def average(
    models: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of models, such as checkpoints of `train`.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the averaged model.")],
) -> None:
    """Average the weights of models with the same architecture and classes.

    The statistics of batch norms are averaged, too. The image processor is that of the first folder which has one.
    """
    # imports torch, which takes seconds that --help should not cost
    from transformers.utils import logging

    from ..training.averaging import average_models

    logging.disable_progress_bar()
    with one_line_errors(ValueError):
        check_folder(output, f"--output {output}")
        if output.is_dir() and any(output.iterdir()):  # other weights in it might be loaded in place of the average
            raise UserError(f"--output {output} is not empty: choose another folder")
        average_models(models, output)
        result(f"the average of {len(models)} models is in {output}")
        document({"output": str(output), "models": [str(model) for model in models]})
