# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Push a saved folder to the Hub in one commit, so that nobody ever sees half a model."""

import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..files import check_folder_readable
from ..remote_code import MODULE

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")

FIRST_WITH_KERNELS = (2, 3)  # version of huggingface_hub; older ones make no commits in repositories of kernels


class PublishingError(ValueError):
    """A push that is refused or that failed. The message is one line and contains no token."""


@dataclass
class Destination:
    """A repository that can be pushed to.

    Attributes:
        repo_id: `owner/name`.
        exists: whether the repository exists.
        parent: hash of its last commit, or None if it does not exist.
        files: names of its files.
    """

    repo_id: str
    exists: bool
    parent: str | None
    files: list[str]


def can_push_kernels() -> bool:
    """Return whether the installed huggingface_hub can commit to repositories of kernels."""
    return tuple(int(part) for part in huggingface_hub.__version__.split(".")[:2]) >= FIRST_WITH_KERNELS


def check_destination(
    repo_id: str, private: bool = False, create_pr: bool = False, repo_type: str = "model"
) -> Destination:
    """Check that a push can begin, without changing anything.

    Args:
        repo_id: `owner/name`, or only a name for a repository of the user.
        private: whether the repository must be private.
        create_pr: whether a pull request will be opened.
        repo_type: "model" or "kernel".

    Raises:
        PublishingError: if the name is invalid, nobody is logged in, the Hub cannot be reached, the repository is
            public despite `private`, a pull request is asked for and the repository does not exist, or huggingface_hub
            is too old for kernels.
    """
    if repo_type == "kernel" and not can_push_kernels():
        raise PublishingError(
            f"pushing a kernel needs huggingface_hub {'.'.join(map(str, FIRST_WITH_KERNELS))} or newer, not "
            f"{huggingface_hub.__version__}: pip install -U huggingface_hub"
        )
    api = HfApi()
    try:
        validate_repo_id(repo_id)
        if get_token() is None:
            raise PublishingError(
                "nobody is logged in: run `hf auth login`, or set HF_TOKEN to a token with write access"
            )
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        if create_pr:
            raise PublishingError(
                f"{repo_id} does not exist or is not visible to you: a pull request needs a repository"
            ) from None
        return Destination(repo_id, False, None, [])
    except PublishingError:
        raise
    except Exception as error:  # huggingface_hub passes on the errors of its HTTP client
        raise failure(f"cannot push to {repo_id}", error) from None
    if private and not info.private:
        raise PublishingError(
            f"{repo_id} is public: --private cannot hide it. Choose another name, or make it private on the Hub"
        )
    siblings = (info.siblings or []) if isinstance(info, ModelInfo) else []
    return Destination(repo_id, True, info.sha, [sibling.rfilename for sibling in siblings])


def check_pushable(folder: Path) -> None:
    """Check that a folder can be pushed.

    Raises:
        PublishingError: if the folder does not exist or `save_pretrained` did not write it.
    """
    if not folder.is_dir():
        raise PublishingError(f"there is no folder {folder}")
    try:
        check_folder_readable(folder)
    except OSError as error:
        raise PublishingError(str(error)) from None
    for needed in ("config.json", f"{MODULE}.py"):
        if not (folder / needed).is_file():
            raise PublishingError(f"{folder} holds no {needed}: push a folder that save_pretrained wrote")


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
) -> str:
    """Push a folder that `save_pretrained` or a conversion wrote, and create the repository if it does not exist.

    One commit adds all files and deletes weights of an earlier push that have other names. Large files are uploaded
    before and stay invisible until the Hub has accepted the commit; until then, a new repository is empty. The push
    fails if somebody else commits meanwhile.

    Args:
        folder: the folder. Its subfolders and hidden files are left out.
        repo_id, private, create_pr: see [`check_destination`].
        message: of the commit.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        PublishingError: if the push failed. The message says what the repository holds now.
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
        state = f"{repo_id} was created and is empty" if created else f"{repo_id} is unchanged"
        raise failure(f"the push failed, {state}", error) from None
    return commit.pr_url or str(commit.repo_url)


def failure(what: str, error: Exception) -> PublishingError:
    """Return an error whose message is one line without tokens, whatever the client's message contains."""
    response = getattr(error, "response", None)
    server_message = getattr(error, "server_message", None)
    status = f"{response.status_code} " if response is not None else ""
    reason = f"{status}{server_message}" if server_message else str(error) or type(error).__name__
    return PublishingError(f"{what}: {scrubbed(' '.join(reason.split()))[:400]}")


def scrubbed(text: str) -> str:
    """Return the text without the Hub's tokens, passwords in addresses, and the query strings that sign addresses."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_\w{6,}", "hf_***", text)
    text = re.sub(r"(?i)(bearer)\s+\S+", r"\1 ***", text)
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)
