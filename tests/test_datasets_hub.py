# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Loading by name: `datasets` and `huggingface_hub` load from a small server in place of the Hub."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import json, sys
from segtransformers.datasets import load_segmentation_dataset

for name, split in json.loads(sys.argv[1]):
    try:
        data = load_segmentation_dataset(name, split)
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
        continue
    facts = {"kind": data.kind, "split": data.split, "names": data.names, "labels": data[0].labels[0, :3].tolist()}
    print(json.dumps({**facts, "classes": list(data.id2label.values()), "mode": data[0].image.mode}))
"""


class Handler(BaseHTTPRequestHandler):
    """Serve data set repositories. `repositories` maps names to revisions, and revisions to files."""

    repositories: dict[str, dict[str, dict[str, bytes]]]

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        path = unquote(path).strip("/")
        api = re.fullmatch(r"api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path)
        file = re.fullmatch(r"datasets/([^/]+/[^/]+)/resolve/(.+)", path)
        found = api or file
        if found is None or found[1] not in self.repositories:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound" if found else "NotFound"})
        revisions = self.repositories[found[1]]
        rest = (api[3] or "main") if api else file[2]
        names = {self.commit(name): name for name in revisions} | {name: name for name in revisions}
        revision = next((name for name in names if f"{rest}/".startswith(f"{name}/")), None)
        if revision is None:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files, within = revisions[names[revision]], rest[len(revision) + 1 :]
        commit = self.commit(names[revision])
        if file:
            if within not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return self.answer(200, files[within], {"X-Repo-Commit": commit, "ETag": f'"{self.hash(files[within])}"'})
        if api[2] == "tree":
            inside = [name for name in files if name.startswith(f"{within}/" if within else "")]
            if not inside:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            depth = len(within.split("/")) + 1 if within else 1
            children = dict.fromkeys("/".join(name.split("/")[:depth]) for name in inside)
            children = inside if "recursive=true" in query.lower() else children
            return self.json([self.described(name, files) for name in children])
        if api[2] == "paths-info":
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self.json([self.described(name, files) for name in wanted if name in files])
        siblings = [{"rfilename": name} for name in files]
        return self.json(
            {"_id": "0", "id": found[1], "sha": commit, "siblings": siblings, "tags": [], "private": False}
        )

    do_HEAD = do_POST = do_GET

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def described(self, name, files):
        if name not in files:
            return {"type": "directory", "path": name, "size": 0, "oid": self.hash(name.encode())}
        return {"type": "file", "path": name, "size": len(files[name]), "oid": self.hash(files[name])}

    @staticmethod
    def hash(content):
        return hashlib.sha1(content).hexdigest()

    def commit(self, revision):
        return self.hash(revision.encode())


@pytest.fixture
def hub(tmp_path):
    """Return a function that runs `SCRIPT` on names and splits; the server offers its `repositories`."""
    repositories: dict[str, dict[str, dict[str, bytes]]] = {}
    handler = type("OneHub", (Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def load(*wanted, offline=False):
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    load.repositories = repositories
    yield load
    server.shutdown()
    server.server_close()


def parquet(mask_column, *names):
    """Return a file with two image columns whose masks hold 0, 1 and 150."""
    import datasets

    def encoded(array, kind):
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind)
        return file.getvalue()

    image = encoded(np.zeros((6, 9, 3), np.uint8), "JPEG")
    mask = encoded(np.resize(np.array([0, 1, 150], np.uint8), (6, 9)), "PNG")
    columns = {
        "image": [{"bytes": image, "path": f"{name}.jpg"} for name in names],
        mask_column: [{"bytes": mask, "path": f"{name}.png"} for name in names],
    }
    features = datasets.Features({"image": datasets.Image(), mask_column: datasets.Image()})
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns, features).to_parquet(file)
    return file.getvalue()


def test_loading_by_name(hub):
    """Load Parquet files beside class names, and the converted files of a script; refuse a missing data set."""
    hub.repositories["someone/street"] = {
        "main": {
            "README.md": b"---\nlicense: mit\n---\n",
            "data/train-00000-of-00001.parquet": parquet("label", "a", "b"),
            "data/validation-00000-of-00001.parquet": parquet("label", "c"),
            "id2label.json": json.dumps({index: f"class {index}" for index in range(151)}).encode(),
        }
    }
    hub.repositories["zhoubolei/scene_parse_150"] = {
        "main": {"README.md": b"", "scene_parse_150.py": b"raise AssertionError('scripts are not run')"},
        "refs/convert/parquet": {
            "scene_parsing/train/0000.parquet": parquet("annotation", "ADE_train_00000001"),
            "scene_parsing/validation/0000.parquet": parquet("annotation", "ADE_val_00000001", "ADE_val_00000002"),
            "instance_segmentation/validation/0000.parquet": parquet("other", "x"),
        },
    }
    hub.repositories["someone/script"] = {
        "main": {"README.md": b"", "script.py": b""},
        "refs/convert/parquet": {"default/train/0000.parquet": parquet("mask", "a")},
    }
    ade = "zhoubolei/scene_parse_150"
    names = [("someone/street", "train"), (ade, "validation"), ("someone/nothing", "train"), (ade, "test")]
    street, scenes, nothing, no_split, script = hub(*names, ("someone/script", "train"))
    assert street["kind"] == "folders" and street["names"] == ["a", "b"] and street["labels"] == [0, 1, 150]
    assert street["classes"][150] == "class 150" and street["mode"] == "RGB"
    assert scenes["kind"] == "ade20k" and scenes["split"] == "validation" and scenes["labels"] == [255, 0, 149]
    assert scenes["names"] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert "cannot load the data set someone/nothing" in nothing["error"] and "doesn't exist" in nothing["error"]
    assert "has no split 'test': it has train, validation" in no_split["error"]
    assert "the classes of someone/script are unknown" in script["error"]
    assert hub(*names[:2], offline=True) == [street, scenes]  # from the cache
