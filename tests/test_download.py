# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Downloads from a server on this machine with a certificate of its own: the rule that only https is fetched holds,
too."""

import contextlib
import hashlib
import io
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import trustme
from reference_cases import ReferenceCase
from transformers import AutoModelForSemanticSegmentation

from segtransformers.conversion import ConversionError
from segtransformers.conversion.cli import main
from segtransformers.conversion.download import download, downloads_folder, shown_url

CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")
CONTENT = torch.rand(3_000_000, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `files`; breaks off after `cuts` bytes, once for each of them; the rest is said by the names."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    cuts: list[int]
    seen: list[tuple[str, str | None]]
    redirects: dict[str, str]
    headers_of: dict[str, dict[str, str]]
    etag = '"one"'

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        self.seen.append((self.path, asked))
        more = self.headers_of.get(self.path, {})
        if self.path in self.redirects:
            self.reply(302, b"", {"Location": self.redirects[self.path], **more})
        elif self.path not in self.files:
            self.reply(404, b"no such file", {})
        else:
            content, start = self.files[self.path], 0
            if asked and self.headers.get("If-Range") == self.etag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.reply(416, b"", {})
                    return
                more = {**more, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self.reply(206 if start else 200, content[start:], {"ETag": self.etag, **more})

    def reply(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.cuts and content:
            self.wfile.write(content[: self.cuts.pop(0)])
            self.close_connection = True
        else:
            with contextlib.suppress(OSError):
                self.wfile.write(content)


@contextlib.contextmanager
def _running(tls: trustme.CA | None):
    kind = type("Own", (Handler,), {"files": {}, "cuts": [], "seen": [], "redirects": {}, "headers_of": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    kind.url = f"{'http' if tls is None else 'https'}://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield kind
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority, and the file that says so."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "certificates.pem"
    made.cert_pem.write_to_path(path)
    return made, path


@pytest.fixture
def server(authority, monkeypatch, tmp_path):
    """A server whose certificate this process trusts, as it would that of a real one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr("segtransformers.conversion.download.time.sleep", lambda seconds: None)
    with _running(authority[0]) as running:
        running.files["/best.pth"] = CONTENT
        yield running


def left_files() -> list[str]:
    return sorted(path.name.partition("-")[2] for path in downloads_folder().glob("[!.]*"))


def test_files_are_fetched_once(server):
    path = download(f"{server.url}/best.pth", sha256=DIGEST.upper())
    assert path.read_bytes() == CONTENT and path.is_relative_to(downloads_folder())
    assert download(f"{server.url}/best.pth") == path
    assert server.seen == [("/best.pth", None)] and left_files() == ["best.pth"]


def test_two_downloads_of_a_file_do_not_mix(server):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(download, [f"{server.url}/best.pth"] * 4))
    (path,) = paths
    assert path.read_bytes() == CONTENT and len(server.seen) == 1


def test_interrupted_downloads_go_on(server):
    server.cuts = [4_000_000, 1_000_000]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT
    starts = [asked for _, asked in server.seen]
    assert starts[0] is None and len(starts) == 3 and all(asked.startswith("bytes=") for asked in starts[1:])


def test_what_is_there_goes_on_in_the_next_call(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError, match=r"cannot fetch .*best\.pth: .*goes on with the next call"):
        download(f"{server.url}/best.pth")
    assert left_files() == ["best.pth.partial", "best.pth.partial.json"]
    server.cuts, begun = [], len(server.seen)
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT
    ((_, asked),) = server.seen[begun:]
    assert asked.startswith("bytes=") and left_files() == ["best.pth"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError):
        download(f"{server.url}/best.pth")
    server.cuts, server.etag, server.files["/best.pth"] = [], '"two"', CONTENT[::-1]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT[::-1]


def test_a_file_that_shrank_meanwhile_is_fetched_anew(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError):
        download(f"{server.url}/best.pth")
    server.cuts, server.files["/best.pth"] = [], CONTENT[:1000]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT[:1000]


def test_other_files_than_expected_are_refused_and_deleted(server):
    with pytest.raises(ConversionError, match=f"has the SHA-256 {DIGEST}, expected {'0' * 64}"):
        download(f"{server.url}/best.pth", sha256="0" * 64)
    assert not [name for name in left_files() if name in ("best.pth", "best.pth.partial")]


def test_openmmlab_names_hold_a_digest(server):
    good, bad = f"/segmenter_20220614-{DIGEST[:8]}.pth", "/segmenter_20220614-00000000.pth"
    server.files |= {good: CONTENT, bad: CONTENT}
    assert download(server.url + good).read_bytes() == CONTENT
    with pytest.raises(ConversionError, match=f"has the SHA-256 {DIGEST[:8]}, expected 00000000"):
        download(server.url + bad)


def test_what_the_hub_says_about_its_files_is_checked(server):
    server.redirects["/resolve/best.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/best.pth"] = {"X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": str(len(CONTENT))}
    assert download(f"{server.url}/resolve/best.pth").read_bytes() == CONTENT
    server.redirects["/resolve/other.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/other.pth"] = {"X-Linked-Etag": f'"{"1" * 64}"'}
    with pytest.raises(ConversionError, match=f"expected {'1' * 64}"):
        download(f"{server.url}/resolve/other.pth")
    server.redirects["/resolve/short.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/short.pth"] = {"X-Linked-Size": "10"}
    with pytest.raises(ConversionError, match="sends more than the 10 bytes"):
        download(f"{server.url}/resolve/short.pth")


def test_a_file_on_disk_that_was_changed_is_found_out(server):
    path = download(f"{server.url}/best.pth")
    path.write_bytes(b"changed")
    with pytest.raises(ConversionError, match="it is damaged"):
        download(f"{server.url}/best.pth", sha256=DIGEST)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/best.pth",
        "ftp://localhost/best.pth",
        "file:///etc/passwd.pth",
        "HTTP://x/a.pth",
        "https:///a.pth",
    ],
)
def test_only_https_is_fetched(server, url):
    with pytest.raises(ConversionError, match="is not fetched: only https addresses are"):
        download(url)
    assert not server.seen


def test_redirects_lead_to_https_only(server):
    with _running(None) as plain:
        plain.files["/best.pth"] = CONTENT
        server.redirects["/moved.pth"] = f"{plain.url}/best.pth"
        with pytest.raises(ConversionError, match=r"leads to http://localhost:\d+/best\.pth, which is not fetched"):
            download(f"{server.url}/moved.pth")
        assert not plain.seen
    server.redirects["/here.pth"] = "file:///etc/hostname"
    with pytest.raises(ConversionError, match=r"'file:///etc/hostname' is not allowed"):  # Python's own rule
        download(f"{server.url}/here.pth")


def test_servers_that_nobody_vouches_for_are_refused(server, monkeypatch, tmp_path):
    (tmp_path / "others.pem").write_bytes(trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "others.pem"))
    with pytest.raises(ConversionError, match="CERTIFICATE_VERIFY_FAILED"):
        download(f"{server.url}/best.pth")
    assert not server.seen


def test_answers_that_are_no_file(server):
    server.files["/page.pth"] = b"<html>please log in</html>"
    server.headers_of["/page.pth"] = {"Content-Type": "text/html; charset=utf-8"}
    for name, message in (
        ("page.pth", "gives a web page, not a file"),
        ("absent.pth", "answers 404"),
        ("folder", "is no address of a file"),
    ):
        with pytest.raises(ConversionError, match=message):
            download(f"{server.url}/{name}")
    assert "page.pth" not in left_files()


def test_names_stay_in_their_folder(server):
    server.files["/a/..%2f..%2fescape.pth"] = CONTENT
    path = download(f"{server.url}/a/..%2f..%2fescape.pth")
    assert path.parent == downloads_folder() and path.read_bytes() == CONTENT


def test_secrets_in_addresses_are_not_shown():
    assert shown_url("https://me:word@hub.test:8/x/y.pth?token=hf_abc#z") == "https://hub.test:8/x/y.pth"


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"meta": CASE.manifest["meta"], "state_dict": CASE.state_dict(torch.float32)}, buffer)
    return buffer.getvalue()


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main("vit_adapter", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_addresses_and_names_of_rows_are_converted(server, capsys, monkeypatch, tmp_path):
    server.files["/model.pth.tar"] = _checkpoint()
    row = {
        "dataset": "ade20k",
        "miou": 42.6,
        "miou_ms": None,
        "crop_size": 64,
        "download": f"{server.url}/model.pth.tar",
        "note": None,
        "model": CASE.config,
    }
    rows = {"tiny": row, "absent": {**row, "download": None}, "page": {**row, "download": f"{server.url}/share?pwd=x"}}
    for module in ("converter", "config_source", "cli"):
        monkeypatch.setattr(f"segtransformers.conversion.{module}.published_rows", lambda family: rows)
    monkeypatch.setattr("segtransformers.hub.model_card._row", lambda record: {})
    status, _, complaint = run(capsys, "--checkpoint", "tiny", "--output", tmp_path / "by-name")
    assert (status, complaint) == (0, "")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "by-name")
    assert model.config.source_config == "tiny"
    signed = f"{server.url}/model.pth.tar?token=hf_abcdefgh"
    server.files["/model.pth.tar?token=hf_abcdefgh"] = _checkpoint()
    status, said, complaint = run(capsys, "--checkpoint", signed, "--config", "tiny", "--output", tmp_path / "signed")
    assert (status, complaint) == (0, "")
    written = "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "signed").iterdir())
    assert f"{server.url}/model.pth.tar" in written and "hf_abcdefgh" not in written + said
    secret = f"{server.url.replace('https://', 'https://me:word@')}/model.pth.tar"
    status, _, complaint = run(capsys, "--checkpoint", secret, "--config", "tiny", "--output", tmp_path / "not")
    assert status == 1 and "take them out of the address" in complaint and "word@" not in complaint
    for name, message in (
        ("absent", "have published no file for it"),
        ("page", "is no address of a file"),
        ("nobody", "there is no file nobody, and it is no published config or https address"),
        ("http://localhost/x.pth", "only https addresses are"),
    ):
        status, _, complaint = run(capsys, "--checkpoint", name, "--output", tmp_path / "not")
        assert status == 1 and message in complaint and not (tmp_path / "not").exists()
