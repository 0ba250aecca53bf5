# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Names on the Hub are checked by one request, and without a Hub only the cache is used."""

import contextlib
import shutil
import socket
import threading

import huggingface_hub
import pytest
from hub_server import running_hub
from huggingface_hub import constants
from typer.testing import CliRunner

from segtransformers import hub_names, packaged_model_path
from segtransformers.cli import app
from segtransformers.hub_names import cached_folder, check_hub_name, without_hub


@contextlib.contextmanager
def silent_hub(closes: bool):
    """Yield the address of a server that never answers, and a list of the paths that it was asked for."""
    connections: list[socket.socket] = []
    paths: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    connections.append(server.accept()[0])
                    path = connections[-1].recv(4096).split()[1].decode()
                    if path.startswith(("/api/models", "/api/datasets", "/writer", "/owner", "/timm")):
                        paths.append(path)
                    if closes:
                        connections[-1].close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", paths
        server.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a client that may ask a Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return tmp_path / "hub"


def use(monkeypatch, url: str) -> None:
    original = huggingface_hub.HfApi.__init__
    monkeypatch.setattr(
        huggingface_hub.HfApi, "__init__", lambda self, **options: original(self, **{"endpoint": url, **options})
    )


def put_into_cache(cache, name: str, kind: str = "model") -> None:
    folder = cache / f"{kind}s--{name.replace('/', '--')}"
    (folder / "snapshots" / "0a1b").mkdir(parents=True)
    (folder / "snapshots" / "0a1b" / "config.json").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b")


def test_names_on_a_hub_that_answers(cache, monkeypatch):
    with running_hub() as hub:
        hub.create("writer/model", "writer")
        use(monkeypatch, hub.url)
        assert check_hub_name("writer/model", "model") is True
        for kind in ("model", "dataset"):
            with pytest.raises(LookupError, match=f"the Hub has no {kind} of that name, or one that is private"):
                check_hub_name("writer/other", kind)
        assert len(hub.requests) == 3
        put_into_cache(cache, "writer/other")  # private now, or deleted: the files are there
        assert check_hub_name("writer/other", "model") is True
        hub.failing = {"writer/model": 503}
        assert check_hub_name("writer/model", "model") is True, "the server is busy: the download may succeed"


@pytest.mark.parametrize("closes", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(closes, cache, monkeypatch):
    monkeypatch.setattr(hub_names, "WAIT", 0.2)
    with silent_hub(closes) as (url, paths):
        use(monkeypatch, url)
        for kind in ("model", "dataset"):
            with pytest.raises(LookupError, match=f"the Hub cannot be reached, and the {kind} is not in the local"):
                check_hub_name("writer/model", kind)
        assert paths == ["/api/models/writer/model", "/api/datasets/writer/model"]
    put_into_cache(cache, "writer/model")
    assert check_hub_name("writer/model", "model") is False
    assert (cached_folder("writer/model", "model") / "config.json").exists()
    with pytest.raises(LookupError, match="not in the local cache"):
        check_hub_name("writer/model", "dataset")
    (cache.parent / "datasets" / "writer___model" / "default").mkdir(parents=True)  # the cache of `datasets`
    assert check_hub_name("writer/model", "dataset") is False


def test_offline_mode_asks_nobody(cache, monkeypatch):
    with silent_hub(True) as (url, paths), without_hub():
        use(monkeypatch, url)
        with pytest.raises(LookupError, match="the Hub is not asked, because HF_HUB_OFFLINE is set, and the model"):
            check_hub_name("writer/model", "model")
        put_into_cache(cache, "writer/model")
        assert check_hub_name("writer/model", "model") is False and not paths
        put_into_cache(cache.parent / "other", "writer/data", "dataset")
        assert check_hub_name("writer/data", "dataset", cache_dir=cache.parent / "other") is False
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b", "no name on the Hub, such as owner/model"),
        ("owner/model/more", "no name on the Hub"),
        ("x" * 200, "no name on the Hub"),
        ("owner/a\x1b[2J", "no name on the Hub"),
        ("nosuch", "a model on the Hub has a name such as owner/model"),
    ],
)
def test_names_that_cannot_be_on_the_hub_ask_nobody(name, message, cache, monkeypatch):
    with silent_hub(True) as (url, paths):
        use(monkeypatch, url)
        with pytest.raises(LookupError, match=message):
            check_hub_name(name, "model")
        assert not paths


def test_commands_use_the_cache_while_the_hub_is_down(cache, monkeypatch, tmp_path):
    """One request: no library asks again. A trunk of timm that is not cached ends `train` before data are read."""
    monkeypatch.chdir(tmp_path)
    put_into_cache(cache, "writer/model")
    shutil.copytree(packaged_model_path(), cached_folder("writer/model", "model"), dirs_exist_ok=True)
    train = ["train", "--data", "none", "--recipe", "upernet_deit_adapter_tiny_512_160k_ade20k", "--output", "out"]
    for command, status, message in (
        (["segment", "--model", "writer/model", "--output", "segmented.png"], 0, "segmented.png"),
        ([*train, "--model", "vit_tiny_patch16_224"], 1, "'vit_tiny_patch16_224' (timm/vit_tiny_patch16_224."),
        ([*train, "--model", "owner/other"], 1, "cannot load the model owner/other: there is no such folder; the Hub"),
        (["check-data", "owner/data"], 1, "cannot load the data set owner/data: there is no such folder; the Hub"),
    ):
        with silent_hub(True) as (url, paths), monkeypatch.context() as context:
            use(context, url)
            context.setattr(constants, "ENDPOINT", url)
            done = CliRunner().invoke(app, command)
        assert done.exit_code == status and message in done.output and len(paths) == 1, (done.output, paths)
        assert status == 0 or done.stderr.startswith("error: "), done.stderr
    assert (tmp_path / "segmented.png").exists() and not (tmp_path / "out").exists()
