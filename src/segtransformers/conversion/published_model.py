# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Published models by name: downloaded and converted on first use, afterwards read from the cache."""

import json
import os
import sys
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from ..cache import cached_model, user_cache
from ..escaping import one_line, printable
from ..hub.model_card import RECORD
from ..published import download_addresses, published_rows, trunk_addresses
from ..published.names import published_name, published_names
from ..published.originals import DATA_TERMS, original_of
from .converter import convert_to_folder
from .download import cached_download, shown_url
from .errors import ConversionError


def published_model(name: str, checkpoint: str | Path | None = None, trunk_weights: str | Path | None = None) -> Path:
    """Return the folder of a published model, which `from_pretrained` loads.

    The first call downloads the authors' file, converts it, and deletes the file, whose tensors the folder has. The
    terms of the weights and of the training data are then printed to stderr. Further calls need no network. Processes
    that ask for the same model at the same time convert it once.

    Args:
        name: the name of a published model (`segtransformers models` lists them), or some words of it, such as
            "deit-adapter-tiny-ade20k", if no other name has all of them.
        checkpoint: the authors' file, if it is there already. It is kept, and not read if the model is in the cache.
        trunk_weights: the authors' file of the backbone, likewise, for models that they published as two files.

    Raises:
        ValueError: if no published model, or more than one, has this name.
        ConversionError: if the file cannot be downloaded, converted or written, or the folder in the cache is damaged.
    """
    full_name = published_name(name)
    folder = cached_model(full_name)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{full_name}.lock"):
                if not folder.is_dir():  # another process may have converted it in the meantime
                    _convert(full_name, folder, checkpoint, trunk_weights)
        except OSError as error:
            raise ConversionError(
                f"cannot write to the cache {user_cache()}: {error.strerror or error}; SEGTRANSFORMERS_CACHE names "
                "another folder"
            ) from error
    _check(full_name, folder)
    return folder


def _convert(name: str, folder: Path, checkpoint: str | Path | None, trunk_weights: str | Path | None = None) -> None:
    family = published_names()[name]
    row = published_rows(family)[name]
    original = original_of(family, row)
    addresses = [*download_addresses(row), *trunk_addresses(row)]
    if checkpoint is None and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConversionError(
            f"{name} is not in the cache {user_cache()}, and HF_HUB_OFFLINE forbids to download it: unset the "
            f"variable, or run `segtransformers models {name} --checkpoint FILE` if you have the authors' file"
        )
    title, _, terms = DATA_TERMS[row["dataset"]]
    print(
        f"{name}: weights of {original.repository} under the licence {original.shown_license}, trained on {title} "
        f"(terms of the images: {terms})",
        file=sys.stderr,
    )
    kept = {path for path in map(cached_download, addresses) if path.exists()}
    convert_to_folder(
        str(checkpoint or name),
        folder,
        family,
        config=name,
        trunk_weights=None if trunk_weights is None else str(trunk_weights),
    )
    for path in map(cached_download, addresses):
        if path not in kept:
            path.unlink(missing_ok=True)


def _check(name: str, folder: Path) -> None:
    """Refuse a folder whose files are missing or cut off; of the weights only the headers are read.

    A folder that was converted from another file than the row names now stays in use, and a line says so.
    """
    weights = sorted(folder.glob("*.safetensors"))
    try:
        if not weights:
            raise OSError("it has no weights")
        for path in (folder / "config.json", folder / "preprocessor_config.json"):
            json.loads(path.read_text(encoding="utf-8"))
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        for path in weights:
            with safe_open(path, "pt"):  # compares the size of the file with its header
                pass
    except (OSError, ValueError, SafetensorError) as error:
        raise ConversionError(
            f"the cached model {folder} is damaged ({one_line(error)}): `segtransformers models {name} --clear-cache` "
            "removes it, and the next use converts it again"
        ) from None
    source = record.get("source") if isinstance(record, dict) else None
    url = source.get("url") if isinstance(source, dict) else None
    addresses = [shown_url(address) for address in download_addresses(published_rows(published_names()[name])[name])]
    if url is not None and addresses and url not in addresses:
        print(
            f"{name}: the model in the cache is an earlier version, from {printable(url, 200)}; the file is now "
            f"{addresses[0]}: `segtransformers models {name} --clear-cache` removes it, and the next use converts the "
            "new one",
            file=sys.stderr,
        )


__all__ = ["published_model"]
