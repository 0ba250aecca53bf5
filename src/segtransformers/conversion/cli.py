# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What the conversion scripts and `segtransformers convert` do: find a checkpoint, convert it, write a folder that
`from_pretrained` loads, check it, and push it to the Hub."""

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..datasets import DATASETS
from ..published import published_rows
from ..version import __version__
from .errors import ConversionError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # names of torch's


def main(family: str, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one family's conversion script; returns the exit status.

    Args:
        family: one of `published.FAMILIES`, whose published rows `--config` and `--checkpoint` know.
        arguments: the command line, by default the process's own.
        program: what the help calls it, by default the name of the script.
    """
    options = _parser(family, program).parse_args(arguments)

    # torch takes seconds to import, and --help does without
    from transformers.utils import logging

    from ..hub.publishing import PublishingError

    logging.disable_progress_bar()
    try:
        with _output_folder(options) as output:
            _convert(options, output, family)
    except (ConversionError, PublishingError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _convert(options: argparse.Namespace, output: Path, family: str) -> None:
    import torch

    from ..hub.publishing import check_destination, push_folder
    from .converter import convert_to_folder

    repository = options.push_to_hub
    if repository is not None:
        repository = check_destination(repository, options.private, options.create_pr).repo_id
    conversion = convert_to_folder(
        options.checkpoint,
        output,
        family,
        config=options.config,
        dataset=options.dataset,
        sha256=options.sha256,
        dtype=getattr(torch, DTYPES[options.dtype]) if options.dtype else None,
        max_shard_size=options.max_shard_size,
        verify=options.verify,
        repo_id=repository,
        license=options.license,
    )
    print(conversion.describe())
    if options.output is not None:
        print(f"written to {output}")
    if repository is not None:
        message = f"Convert {conversion.source.file} with segtransformers {__version__}"
        print(f"pushed to {push_folder(output, repository, options.private, options.create_pr, message)}")


def _parser(family: str, program: str | None) -> argparse.ArgumentParser:
    rows = "\n  ".join(f"{name:<60} {_described(row)}" for name, row in published_rows(family).items())
    parser = argparse.ArgumentParser(
        prog=program,
        description="Convert an original MMSegmentation 0.x checkpoint into a folder that from_pretrained loads.",
        epilog=f"published configs:\n  {rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE|URL|NAME",
        help="local .pth, .pth.tar, .zip, .bin or .safetensors file, the https address of one, or the name of a "
        "published config, whose file is downloaded",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="name of a published config, or a .py or .json file with the resolved config, its model dict, or the "
        "config.json of an image classifier on the Hub, or an official Segmenter's variant.yml; "
        "by default that of the published config named, the config that mmcv or mmengine saved in the checkpoint, or "
        "the variant.yml beside it",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, help="take class names and palette from this data set, not from the checkpoint"
    )
    parser.add_argument(
        "--sha256", type=_sha256, metavar="HEX", help="refuse the checkpoint file if its SHA-256 is another"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="store the weights in this precision; by default in that of the checkpoint"
    )
    parser.add_argument(
        "--max-shard-size",
        type=_size,
        default="50GB",
        metavar="SIZE",
        help="split the weights into files of at most this size, such as 2GB; by default 50GB",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also load the folder anew in float32, run it on an image, and print how far its outputs are from those "
        "of the converted model in memory; nothing is written if they differ",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write; it must be new or empty")
    parser.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="push the folder to this repository of the Hub, in one commit; it is created where it is not there. "
        "Needs `hf auth login` or HF_TOKEN",
    )
    parser.add_argument("--private", action="store_true", help="nobody else shall see the repository")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request in it, change nothing yourself")
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="of the weights, as the Hub calls licences, for the model card; by default that of a published "
        "checkpoint's authors",
    )
    return parser


def _described(row: dict[str, Any]) -> str:
    figures = [f"mIoU {row['miou']}"] if row["miou"] is not None else []
    return ", ".join([row["dataset"], str(row["crop_size"]), *figures])


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9A-Fa-f]{64}", text):
        raise argparse.ArgumentTypeError("64 hexadecimal digits are needed")
    return text.lower()


def _size(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]*(KB|MB|GB)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; a whole number of KB, MB or GB is, such as 2GB")
    return text


@contextlib.contextmanager
def _output_folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder to write, which is kept where the user named it."""
    if options.push_to_hub is None and (options.private or options.create_pr):
        raise ConversionError("--private and --create-pr mean nothing without --push-to-hub")
    if options.output is not None:
        yield _checked_output(options.output)
        return
    if options.push_to_hub is None:
        raise ConversionError("say where to write, with --output, or where to push, with --push-to-hub")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / options.push_to_hub.rpartition("/")[2]


def _checked_output(name: str) -> Path:
    """Where to write: a new or empty folder. Checked before any work is done."""
    try:
        output = Path(name).expanduser().resolve()
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConversionError(f"--output {name!r} is no path to write to: {error}") from error
    if output == Path.cwd() or taken:
        raise ConversionError(f"{output} is not a new or empty folder: choose another --output")
    return output
