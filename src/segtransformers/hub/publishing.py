# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Pushes a saved folder to the Hub: everything in one commit, so that nobody ever sees half of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..remote_code import MODULE

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


class PublishingError(ValueError):
    """A push that cannot be done or failed; the message is one line and holds no token."""


@dataclass
class Destination:
    """A repository that may be pushed to.

    Attributes:
        repo_id: with its owner.
        exists: whether it is there.
        parent: hash of its last commit; None where it is not there.
        files: what it holds.
    """

    repo_id: str
    exists: bool
    parent: str | None
    files: list[str]


def check_destination(repo_id: str, private: bool = False, create_pr: bool = False) -> Destination:
    """Whether a push can begin, before any work is done. Nothing is changed.

    Args:
        repo_id: `owner/name`, or a name of the user's own.
        private: whether nobody else shall see the repository.
        create_pr: whether a pull request shall be opened.

    Raises:
        PublishingError: if the name is none, nobody is logged in, the Hub cannot be reached, the repository is public
            although `private` is asked for, or it is not there to open a pull request in.
    """
    api = HfApi()
    try:
        validate_repo_id(repo_id)
        if get_token() is None:
            raise PublishingError("nobody is logged in: run `hf auth login`, or set HF_TOKEN to a token that may write")
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        if create_pr:
            raise PublishingError(f"{repo_id} is not there, or not to be seen: no pull request can be opened") from None
        return Destination(repo_id, False, None, [])
    except PublishingError:
        raise
    except Exception as error:  # the client's transports have errors of their own
        raise _failure(f"cannot push to {repo_id}", error) from None
    if private and not info.private:
        raise PublishingError(f"{repo_id} is public: --private cannot hide it. Choose another name, or change it there")
    return Destination(repo_id, True, info.sha, [sibling.rfilename for sibling in info.siblings or []])


def check_pushable(folder: Path) -> None:
    """Whether a folder can be pushed.

    Raises:
        PublishingError: if there is no such folder, or not what `save_pretrained` writes in it.
    """
    if not folder.is_dir():
        raise PublishingError(f"there is no folder {folder}")
    for needed in ("config.json", f"{MODULE}.py"):
        if not (folder / needed).is_file():
            raise PublishingError(f"{folder} holds no {needed}: it is no folder that save_pretrained wrote")


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
) -> str:
    """Push a folder that `save_pretrained` or a conversion wrote; the repository is created where it is not there.

    All files go in one commit, and weights of an earlier push that have other names go in the same. Until the Hub has
    accepted it, nothing is visible but an empty repository, if it is new; large files are uploaded before, where nobody
    sees them. A commit that somebody else makes meanwhile is not overwritten.

    Args:
        folder: with the files; folders in it are left out.
        repo_id, private, create_pr: as of [`check_destination`].
        message: of the commit.

    Returns:
        the address of the repository, or of the pull request.

    Raises:
        PublishingError: saying what failed and what is there now.
    """
    folder = Path(folder)
    check_pushable(folder)
    destination = check_destination(repo_id, private, create_pr)
    repo_id, api = destination.repo_id, HfApi()
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    names = {path.name for path in paths}
    stale = [
        name
        for name in destination.files
        if name not in names and any(Path(name).match(kind) for kind in WEIGHT_FILES) and "/" not in name
    ]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path.name, path) for path in paths),
        *(CommitOperationDelete(name) for name in stale),
    ]
    created = False
    try:
        if not destination.exists:
            api.create_repo(repo_id, private=private or None)
            created = True
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Push {folder.resolve().name}",
            create_pr=create_pr,
            parent_commit=destination.parent,
        )
    except Exception as error:
        state = f"{repo_id} is there now, but empty" if created else f"{repo_id} is as it was"
        raise _failure(f"the push failed, {state}", error) from None
    return commit.pr_url or str(commit.repo_url)


def _failure(what: str, error: Exception) -> PublishingError:
    """One line without a token, whatever the client put into its message."""
    response = getattr(error, "response", None)
    told = getattr(error, "server_message", None)
    status = f"{response.status_code} " if response is not None else ""
    reason = f"{status}{told}" if told else str(error) or type(error).__name__
    return PublishingError(f"{what}: {scrubbed(' '.join(reason.split()))[:400]}")


def scrubbed(text: str) -> str:
    """The text without tokens of the Hub, passwords in addresses, and what signs an address."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_\w{6,}", "hf_***", text)
    text = re.sub(r"(?i)(bearer)\s+\S+", r"\1 ***", text)
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)
