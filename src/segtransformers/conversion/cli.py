# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Command line of the conversion scripts and of `segtransformers convert`."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..command_process import prepare_process
from ..datasets import DATASETS
from ..escaping import one_line, printable
from ..files import scratch_folder
from ..published import published_rows
from ..published.names import find_published
from ..terminal import hide_bars
from ..version import __version__
from .errors import ConversionError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # names of torch's


def main(family: str, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Convert a checkpoint into a folder that `from_pretrained` loads, check it, and push it to the Hub if requested.

    Args:
        family: one of `published.FAMILIES`; `--config` and `--checkpoint` take the names of its published configs.
        arguments: the command line, by default that of the process.
        program: name of the program in its help, by default that of the script.

    Returns:
        the exit status.
    """
    prepare_process()
    options = conversion_parser(family, program).parse_args(arguments)

    # torch takes seconds to import, and --help does without
    from transformers.utils import logging

    from ..hub.publishing import PublishingError

    logging.disable_progress_bar()
    hide_bars(options.quiet)
    try:
        with _output_folder(options) as output:
            _convert(options, output, family)
    except (ConversionError, PublishingError) as error:
        print("error:", one_line(error), file=sys.stderr)
        return 1
    return 0


def _full_name(checkpoint: str, family: str) -> str:
    """Return the full name of a published config of this family, or the text itself: a file, an address or a mistake.

    Raises:
        ConversionError: if a shortened name has several full names.
    """
    if Path(checkpoint).exists() or "/" in checkpoint:
        return checkpoint
    try:
        return find_published(checkpoint, published_rows(family)) or checkpoint
    except ValueError as error:
        raise ConversionError(str(error)) from None


def _convert(options: argparse.Namespace, output: Path, family: str) -> None:
    import torch

    from ..hub.publishing import check_destination, push_folder
    from .converter import convert_to_folder

    repository = options.push_to_hub
    if repository is not None:
        repository = check_destination(repository, options.private, options.create_pr).repo_id
    conversion = convert_to_folder(
        _full_name(options.checkpoint, family),
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
        ema=options.ema,
        trunk_weights=options.trunk_weights,
        separate_trunk=options.separate_trunk,
    )
    pushed = None
    if repository is not None:
        message = f"Convert {conversion.source.file} with segtransformers {__version__}"
        pushed = push_folder(output, repository, options.private, options.create_pr, message)
    if options.json:
        written = None if options.output is None else str(output)
        print(json.dumps({"output": written, "pushed": pushed, **conversion.to_dict()}, indent=2))
        return
    if not options.quiet:
        print(conversion.describe())
    if options.output is not None:
        print(f"written to {output}")
    if pushed is not None:
        print(f"pushed to {pushed}")


def conversion_parser(family: str, program: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line of `main`."""
    rows = "\n  ".join(f"{name:<60} {_describe(row)}" for name, row in published_rows(family).items())
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
        help="a .pth, .pth.tar, .zip, .bin or .safetensors file, the https address of such a file, or the name of a "
        "published config to download its file",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="the name of a published config; a .py or .json file with the resolved config or its model dict; the "
        "config.json of an image classifier on the Hub; or an official Segmenter's variant.yml. By default the "
        "published config named by --checkpoint, the config that mmcv or mmengine saved in the checkpoint, or the "
        "variant.yml beside it",
    )
    parser.add_argument(
        "--trunk-weights",
        metavar="FILE|URL",
        help="the backbone's file, for heads that DINOv2 and DINOv3 publish or save without their backbone. A "
        "published config downloads its own",
    )
    parser.add_argument(
        "--separate-trunk",
        metavar="NAME",
        help="leave the weights of the backbone's ViT out of the folder, which may not be published in some cases. "
        "NAME is the place from which from_pretrained takes them: a folder or repository with the same ViT, or "
        "pre-trained weights of timm",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, help="take class names and palette from this data set instead of the checkpoint"
    )
    parser.add_argument(
        "--sha256", type=_sha256, metavar="HEX", help="expected SHA-256 of the checkpoint file; another file is refused"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the stored weights; by default that of the checkpoint"
    )
    parser.add_argument(
        "--max-shard-size",
        type=_size,
        default="50GB",
        metavar="SIZE",
        help="largest size of one file with weights, such as 2GB; by default 50GB",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also load the folder in float32, run it on an image, and print the difference of its outputs from those "
        "of the converted model in memory; the folder is not written if they differ",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="convert the averaged weights that some trainers save beside the weights, such as mmcv's EMAHook",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write; it must be new or empty")
    parser.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="push the folder to this repository on the Hub in one commit; a missing repository is created. "
        "Needs `hf auth login` or HF_TOKEN",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="licence of the weights for the model card, by its name on the Hub; by default that of the authors of a "
        "published checkpoint",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print where the model is, and errors only")
    parser.add_argument(
        "--json", action="store_true", help="print the record of the conversion as one JSON document, and nothing else"
    )
    return parser


def _describe(row: dict[str, Any]) -> str:
    figures = [f"mIoU {row['miou']}"] if row["miou"] is not None else []
    return ", ".join([row["dataset"], str(row["crop_size"]), *figures])


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9A-Fa-f]{64}", text):
        raise argparse.ArgumentTypeError("expected 64 hexadecimal digits")
    return text.lower()


def _size(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]*(KB|MB|GB)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected an integer with KB, MB or GB, such as 2GB")
    return text


@contextlib.contextmanager
def _output_folder(options: argparse.Namespace) -> Iterator[Path]:
    """Yield the folder to write: that of `--output`, or a temporary one if the result is only pushed to the Hub."""
    if options.push_to_hub is None and (options.private or options.create_pr):
        raise ConversionError("--private and --create-pr need --push-to-hub")
    if options.output is not None:
        yield _checked_output(options.output)
        return
    if options.push_to_hub is None:
        raise ConversionError("add --output to write a folder, or --push-to-hub to push it")
    with scratch_folder() as folder:
        yield folder / options.push_to_hub.rpartition("/")[2]


def _checked_output(name: str) -> Path:
    """Return the path of `--output`. It is checked before the conversion.

    Raises:
        ConversionError: if it is neither new nor an empty folder, or not a valid path.
    """
    try:
        output = Path(name).expanduser().resolve()
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"--output {printable(name, 200)} is not a valid path: {reason}") from error
    if output == Path.cwd() or taken:
        raise ConversionError(f"{output} is not a new or empty folder: choose another --output")
    return output
