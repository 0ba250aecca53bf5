# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A small server with the part of the Hub's HTTP interface that huggingface_hub's client uses for models and kernels.

It can create a repository and branches, receive files by git LFS, commit, open a pull request and serve downloads. It
keeps everything in memory, and requests can be made to fail. The servers on PyPI wrap programs that must be compiled.
A kernel repository `owner/name` has the key `kernels:owner/name` here.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

TOKENS = {"hf_writerTokenForTests": "writer", "hf_readerTokenForTests": "reader", "hf_yourTokenForTests": "you"}
LARGE = 10_000  # bytes; larger files and all *.safetensors are uploaded by LFS


@dataclass
class Repository:
    """A repository. A commit is a whole tree: path -> content. A revision is a branch, a pull request or a hash."""

    owner: str
    private: bool = False
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pull_requests: int = 0

    def commit(self, revision: str, tree: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(repr((sorted(tree.items()), message, len(self.messages))).encode()).hexdigest()
        self.trees[oid], self.heads[revision] = tree, oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.heads.get(revision) or (revision if revision in self.trees else None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.trees[self.heads["main"]]


class Hub:
    """The state of the server. `failing` maps a part of a request line to the status of the response."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.failing: dict[str, int] = {}
        self.requests: list[str] = []
        self.url = ""

    def create(self, name: str, owner: str, private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(owner, private)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repository


def client_environment(hub: Hub, folder: Path, token: str | None) -> dict[str, str]:
    """Return the environment of a process that uses this server as the Hub, with a cache in `folder`."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return variables | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "SEGTRANSFORMERS_KERNELS": "off",
        **({"HF_TOKEN": token} if token else {}),
    }


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty Hub within the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Answer(Exception):
    """An error response."""

    def __init__(self, status: int, code: str, message: str = "", **more: str):
        self.status, self.code, self.message, self.more = status, code, message, more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self):
        self._answer(self._post)

    def do_PUT(self):
        self._answer(self._put)

    def _answer(self, handle) -> None:
        self.path, _, query = self.path.partition("?")
        self.query = urllib.parse.parse_qs(query)
        self.body = self._read_body()
        line = f"{self.command} {urllib.parse.unquote(self.path)}"
        self.path = re.sub("^/api/kernels/", "/api/models/kernels:", re.sub("^/kernels/", "/kernels:", self.path))
        self.hub.requests.append(line)
        try:
            for part, status in self.hub.failing.items():
                if part in line:
                    raise _Answer(status, "Broken", "this request was made to fail")
            handle(urllib.parse.unquote(self.path).strip("/"))
        except _Answer as answer:
            content = json.dumps({"error": answer.message or answer.code, **answer.more}).encode()
            self._send(content, answer.status, {"X-Error-Code": answer.code, "X-Error-Message": answer.message})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    @property
    def user(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _repository(self, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.user != repository.owner):
            raise _Answer(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        if write and self.user != repository.owner:
            raise _Answer(403, "Forbidden", "You don't have the rights to write here")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(revision)
        if oid is None:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def _get(self, path: str) -> None:
        if path == "api/whoami-v2":
            if self.user is None:
                raise _Answer(401, "Unauthorized", "Invalid credentials in Authorization header")
            self._json({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)/refs", path):
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in self._repository(found[1]).heads.items()
                if not name.startswith("refs/")
            ]
            self._json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)/tree/([^/]+|refs/pr/[0-9]+)(/.*)?", path):
            repository = self._repository(found[1])
            tree = repository.trees[self._commit(repository, found[2])]
            start = (found[3] or "").strip("/")
            inside = {name: content for name, content in tree.items() if name.startswith(f"{start}/" if start else "")}
            if self.query.get("recursive", ["false"])[0].lower() == "true" or not start:
                self._json([{"type": "file", **self._described(name, content)} for name, content in inside.items()])
            else:
                folders = sorted({name[len(start) + 1 :].partition("/")[0] for name in inside})
                self._json([{"type": "directory", "path": f"{start}/{name}", "oid": "0" * 40} for name in folders])
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository = self._repository(found[1])
            oid = self._commit(repository, found[2] or "main")
            names = [{"rfilename": name} for name in repository.trees[oid]]
            data = self._metadata(repository.trees[oid])
            self._json(
                {"_id": "0", "id": found[1], "modelId": found[1], "sha": oid, "private": repository.private}
                | {"siblings": names, "tags": data.get("tags", []), "pipeline_tag": data.get("pipeline_tag")}
                | {"cardData": data, "downloads": 0, "likes": 0}
            )
        elif found := re.fullmatch("([^/]+/[^/]+)/(?:resolve|raw)/(refs/pr/[0-9]+|[^/]+)/(.+)", path):
            repository = self._repository(found[1])
            oid = self._commit(repository, found[2])
            content = repository.trees[oid].get(found[3])
            if content is None:
                raise _Answer(404, "EntryNotFound", "Entry not found")
            described = self._described(found[3], content)
            headers = {"X-Repo-Commit": oid, "ETag": f'"{described["oid"]}"', "Accept-Ranges": "bytes"}
            if "lfs" in described:
                headers |= {"X-Linked-Etag": f'"{described["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
            start = re.fullmatch("bytes=([0-9]+)-", self.headers.get("Range") or "")
            self._send(content[int(start[1]) :] if start else content, 206 if start else 200, headers)
        elif path.startswith("api/datasets/"):  # this Hub has none
            raise _Answer(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        else:
            raise _Answer(404, "NotFound", path)

    def _post(self, path: str) -> None:
        if path == "api/repos/create":
            wanted = json.loads(self.body)
            if self.user is None:
                raise _Answer(401, "Unauthorized", "Invalid credentials in Authorization header")
            owner = wanted.get("organization") or self.user
            name = f"{'kernels:' if wanted.get('type') == 'kernel' else ''}{owner}/{wanted['name']}"
            if owner != self.user:
                raise _Answer(403, "Forbidden", f'You don\'t have the rights to create a model under "{owner}"')
            if name in self.hub.repositories:
                raise _Answer(409, "Conflict", "You already created this model repo", url=f"{self.hub.url}/{name}")
            self.hub.create(name, owner, wanted.get("visibility") == "private")
            self._json({"url": f"{self.hub.url}/{name.replace(':', '/')}", "name": name.removeprefix("kernels:")})
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repository = self._repository(found[1], write=True)
            if found[2] in repository.heads:
                raise _Answer(409, "Conflict", "Reference already exists")
            repository.heads[found[2]] = self._commit(repository, json.loads(self.body).get("startingPoint", "main"))
            self._json({})
        elif path == "api/validate-yaml":
            self._json(_validation(json.loads(self.body)["content"]))
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            repository = self._repository(found[1], write="create_pr" not in self.query)
            tree = repository.trees[self._commit(repository, found[2])]
            self._json({"files": [self._preupload(tree, item) for item in json.loads(self.body)["files"]]})
        elif found := re.fullmatch(r"([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repository(found[1])
            self._json({"objects": [self._upload(item) for item in json.loads(self.body)["objects"]]})
        elif path == "lfs/verify":
            self._json({})
        elif found := re.fullmatch("api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._json(self._committed(found[1], found[2]))
        else:
            raise _Answer(404, "NotFound", path)

    def _put(self, path: str) -> None:
        oid = path.removeprefix("lfs/")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(400, "BadRequest", "the content has another hash")
        self.hub.large[oid] = self.body
        self._send(b"")

    def _preupload(self, tree: dict[str, bytes], item: dict) -> dict:
        """Describe how a file is uploaded, with the hash of the present one, by which clients skip unchanged files."""
        path = item["path"]
        answer = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
        if path.endswith(".safetensors") or item["size"] > LARGE:
            answer["uploadMode"] = "lfs"
        if path in tree:
            described = self._described(path, tree[path])
            answer["oid"] = described.get("lfs", described)["oid"]
        return answer

    def _upload(self, item: dict) -> dict:
        if item["oid"] in self.hub.large:
            return item
        actions = {
            "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
            "verify": {"href": f"{self.hub.url}/lfs/verify"},
        }
        return {**item, "actions": actions}

    def _committed(self, name: str, revision: str) -> dict:
        create_pr = "create_pr" in self.query
        repository = self._repository(name, write=not create_pr)
        if self.user is None:
            raise _Answer(401, "Unauthorized", "Invalid credentials in Authorization header")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines.pop(0)["value"]
        parent = self._commit(repository, revision)
        if header.get("parentCommit", parent) != parent:
            raise _Answer(412, "PreconditionFailed", "A commit has happened since")
        tree = dict(repository.trees[parent])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Answer(400, "BadRequest", "an LFS pointer points to a file that was not uploaded")
                tree[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        if create_pr:
            repository.pull_requests += 1
            revision = f"refs/pr/{repository.pull_requests}"
        oid = repository.commit(revision, tree, header["summary"])
        address = f"{self.hub.url}/{name.replace(':', '/')}"
        request = f"{address}/discussions/{repository.pull_requests}" if create_pr else None
        return {"commitUrl": f"{address}/commit/{oid}", "commitOid": oid, "pullRequestUrl": request}

    def _described(self, name: str, content: bytes) -> dict:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        described: dict = {"path": name, "oid": oid, "size": len(content)}
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.hub.large:
            described["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return described

    @staticmethod
    def _metadata(tree: dict[str, bytes]) -> dict:
        return _front_matter(tree.get("README.md", b"").decode()) or {}


def _front_matter(card: str) -> dict | None:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def _validation(card: str) -> dict:
    """Check the metadata of a card as the Hub does, as far as our cards are concerned."""
    data, errors = _front_matter(card), []
    if data is None:
        return {"errors": [{"message": "no metadata"}], "warnings": []}
    if not isinstance(data.get("license", "other"), str):
        errors.append("license must be a string")
    for name in ("datasets", "metrics", "tags"):
        if not all(isinstance(item, str) for item in data.get(name) or []):
            errors.append(f"{name} must be strings")
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["dataset"]:
                errors.append("a result lacks its task, dataset or metrics")
    return {"errors": [{"message": message} for message in errors], "warnings": []}
