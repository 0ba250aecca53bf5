# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check the name of a repository on the Hub at once.

The libraries that download repositories ask several times and wait in between, for a minute and more, when the Hub
cannot be reached.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

Kind = Literal["model", "dataset"]
WAIT = 10  # seconds for the answer of the Hub


def check_hub_name(name: str, kind: Kind, cache_dir: str | Path | None = None) -> bool:
    """Check that a repository exists on the Hub or in the local cache.

    Args:
        name: `owner/name`, which is no folder here.
        kind: of the repository.
        cache_dir: folder of the local cache; None takes the Hub's default.

    Returns:
        whether the Hub can be reached. False means that only the cached files can be used.

    Raises:
        LookupError: if the name cannot be a repository, if the Hub has no such repository, or if the Hub cannot be
            reached and the repository is not cached. The message says which.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise LookupError(f"it is no name on the Hub, such as owner/{kind}") from None
    if kind == "model" and "/" not in name:  # some data sets have no owner
        raise LookupError("a model on the Hub has a name such as owner/model")
    if constants.HF_HUB_OFFLINE:
        return _only_cached(name, kind, cache_dir, "the Hub is not asked, because HF_HUB_OFFLINE is set")
    api = HfApi()
    try:
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=WAIT)
    except RepositoryNotFoundError:
        if is_cached(name, kind, cache_dir):
            return True
        raise LookupError(
            f"the Hub has no {kind} of that name, or one that is private and not yours (hf auth login)"
        ) from None
    except HfHubHTTPError:  # such as a server that is busy: the download may succeed
        return True
    except (httpx.HTTPError, OSError):
        return _only_cached(name, kind, cache_dir, "the Hub cannot be reached")
    return True


def is_cached(name: str, kind: Kind, cache_dir: str | Path | None = None) -> bool:
    """Return whether the local cache has files of a repository."""
    folders = [Path(cache_dir or constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"]
    if kind == "dataset":  # `datasets` has a cache of its own
        own = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
        folders.append(own / name.replace("/", "___"))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def cached_folder(name: str, kind: Kind) -> Path:
    """Return the folder in the local cache that has the files of a repository, without asking the Hub.

    Raises:
        OSError: if the cache has no files of the branch `main`.
    """
    return Path(snapshot_download(name, repo_type=kind, local_files_only=True))


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Let no library ask the Hub in this context. They take files from the cache then, without attempts and waits."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _only_cached(name: str, kind: Kind, cache_dir: str | Path | None, reason: str) -> bool:
    if is_cached(name, kind, cache_dir):
        return False
    raise LookupError(f"{reason}, and the {kind} is not in the local cache")


__all__ = ["Kind", "cached_folder", "check_hub_name", "is_cached", "without_hub"]
