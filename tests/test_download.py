# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Downloads over https, from a local server with a certificate of its own."""

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

from segtransformers.cache import downloads_folder
from segtransformers.conversion import ConversionError
from segtransformers.conversion.cli import main
from segtransformers.conversion.download import download, shown_url

CASE = ReferenceCase("vit_adapter/tiny-vit-light-upernet")
CONTENT = torch.rand(3_000_000, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serve `files`. Each entry of `cuts` interrupts one answer after this number of bytes."""

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
    """A certificate authority, and the path of its certificate."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "certificates.pem"
    made.cert_pem.write_to_path(path)
    return made, path


@pytest.fixture
def server(authority, monkeypatch, tmp_path):
    """A server whose certificate this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGTRANSFORMERS_CACHE")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr("segtransformers.conversion.download.time.sleep", lambda seconds: None)
    with _running(authority[0]) as running:
        running.files["/best.pth"] = CONTENT
        yield running


def cached_files() -> list[str]:
    return sorted(path.name.partition("-")[2] for path in downloads_folder().glob("[!.]*"))


def test_file_is_downloaded_once(server):
    path = download(f"{server.url}/best.pth", sha256=DIGEST.upper())
    assert path.read_bytes() == CONTENT and path.is_relative_to(downloads_folder())
    assert download(f"{server.url}/best.pth") == path
    assert server.seen == [("/best.pth", None)] and cached_files() == ["best.pth"]


def test_concurrent_downloads_of_a_file_send_one_request(server):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(download, [f"{server.url}/best.pth"] * 4))
    (path,) = paths
    assert path.read_bytes() == CONTENT and len(server.seen) == 1


def test_interrupted_download_is_resumed(server):
    server.cuts = [4_000_000, 1_000_000]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT
    starts = [asked for _, asked in server.seen]
    assert starts[0] is None and len(starts) == 3 and all(asked.startswith("bytes=") for asked in starts[1:])


def test_next_call_resumes_a_failed_download(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError, match=r"cannot download .*best\.pth: .*the next call resumes the download"):
        download(f"{server.url}/best.pth")
    assert cached_files() == ["best.pth.partial", "best.pth.partial.json"]
    server.cuts, begun = [], len(server.seen)
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT
    ((_, asked),) = server.seen[begun:]
    assert asked.startswith("bytes=") and cached_files() == ["best.pth"]


def test_changed_file_is_downloaded_from_the_start(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError):
        download(f"{server.url}/best.pth")
    server.cuts, server.etag, server.files["/best.pth"] = [], '"two"', CONTENT[::-1]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT[::-1]


def test_shorter_file_is_downloaded_from_the_start(server):
    server.cuts = [4_000_000] + [0] * 10
    with pytest.raises(ConversionError):
        download(f"{server.url}/best.pth")
    server.cuts, server.files["/best.pth"] = [], CONTENT[:1000]
    assert download(f"{server.url}/best.pth").read_bytes() == CONTENT[:1000]


def test_new_download_with_another_sha256_is_deleted(server):
    with pytest.raises(ConversionError, match=f"has the SHA-256 {DIGEST}, expected {'0' * 64}"):
        download(f"{server.url}/best.pth", sha256="0" * 64)
    assert not [name for name in cached_files() if name in ("best.pth", "best.pth.partial")]


def test_sha256_in_openmmlab_names_is_checked(server):
    good, bad = f"/segmenter_20220614-{DIGEST[:8]}.pth", "/segmenter_20220614-00000000.pth"
    server.files |= {good: CONTENT, bad: CONTENT}
    assert download(server.url + good).read_bytes() == CONTENT
    with pytest.raises(ConversionError, match=f"has the SHA-256 {DIGEST[:8]}, expected 00000000"):
        download(server.url + bad)


def test_size_and_sha256_in_the_hubs_headers_are_checked(server):
    server.redirects["/resolve/best.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/best.pth"] = {"X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": str(len(CONTENT))}
    assert download(f"{server.url}/resolve/best.pth").read_bytes() == CONTENT
    server.redirects["/resolve/other.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/other.pth"] = {"X-Linked-Etag": f'"{"1" * 64}"'}
    with pytest.raises(ConversionError, match=f"expected {'1' * 64}"):
        download(f"{server.url}/resolve/other.pth")
    server.redirects["/resolve/short.pth"] = f"{server.url}/best.pth"
    server.headers_of["/resolve/short.pth"] = {"X-Linked-Size": "10"}
    with pytest.raises(ConversionError, match="sends more than the expected 10 bytes"):
        download(f"{server.url}/resolve/short.pth")


def test_earlier_download_with_another_sha256_is_refused_and_kept(server):
    """The expected SHA-256 may be wrong, so only the user deletes the file."""
    path = download(f"{server.url}/best.pth")
    with pytest.raises(ConversionError, match=f"expected {'0' * 64}: the expected value is wrong, .* delete {path}"):
        download(f"{server.url}/best.pth", sha256="0" * 64)
    assert path.read_bytes() == CONTENT
    assert download(f"{server.url}/best.pth", sha256=DIGEST) == path and len(server.seen) == 1
    path.write_bytes(b"changed")
    with pytest.raises(ConversionError, match="or the file is another one or damaged"):
        download(f"{server.url}/best.pth", sha256=DIGEST)
    path.unlink()
    assert download(f"{server.url}/best.pth", sha256=DIGEST).read_bytes() == CONTENT


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
def test_only_https_is_allowed(server, url):
    with pytest.raises(ConversionError, match="is not downloaded: only https addresses are allowed"):
        download(url)
    assert not server.seen


@pytest.mark.parametrize("url", ["https://[::1/best.pth", "https://localhost:99999999/best.pth"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ConversionError, match="is not a valid address"):
        download(url)


def test_redirects_to_other_schemes_are_refused(server):
    with _running(None) as plain:
        plain.files["/best.pth"] = CONTENT
        server.redirects["/moved.pth"] = f"{plain.url}/best.pth"
        with pytest.raises(
            ConversionError, match=r"redirects to http://localhost:\d+/best\.pth, which is not downloaded"
        ):
            download(f"{server.url}/moved.pth")
        assert not plain.seen
    server.redirects["/here.pth"] = "file:///etc/hostname"
    with pytest.raises(ConversionError, match=r"'file:///etc/hostname' is not allowed"):  # refused by Python
        download(f"{server.url}/here.pth")


def test_unknown_certificates_are_refused(server, monkeypatch, tmp_path):
    (tmp_path / "others.pem").write_bytes(trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "others.pem"))
    with pytest.raises(ConversionError, match="CERTIFICATE_VERIFY_FAILED"):
        download(f"{server.url}/best.pth")
    assert not server.seen


def test_answers_without_a_file_are_errors(server):
    server.files["/page.pth"] = b"<html>please log in</html>"
    server.headers_of["/page.pth"] = {"Content-Type": "text/html; charset=utf-8"}
    for name, message in (
        ("page.pth", "is a web page, not a file"),
        ("absent.pth", "the server answers 404"),
        ("folder", "is not the address of a file"),
    ):
        with pytest.raises(ConversionError, match=message):
            download(f"{server.url}/{name}")
    assert "page.pth" not in cached_files()


def test_file_names_cannot_leave_the_folder(server):
    server.files["/a/..%2f..%2fescape.pth"] = CONTENT
    path = download(f"{server.url}/a/..%2f..%2fescape.pth")
    assert path.parent == downloads_folder() and path.read_bytes() == CONTENT


def test_shown_address_has_no_secrets():
    assert shown_url("https://me:word@hub.test:8/x/y.pth?token=hf_abc#z") == "https://hub.test:8/x/y.pth"


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"meta": CASE.manifest["meta"], "state_dict": CASE.state_dict(torch.float32)}, buffer)
    return buffer.getvalue()


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main("vit_adapter", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_addresses_and_published_names_are_converted(server, capsys, monkeypatch, tmp_path):
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
    monkeypatch.setattr("segtransformers.conversion.converter.published_row", lambda name: rows[name])
    monkeypatch.setattr("segtransformers.hub.model_card._row", lambda record: (None, {}))
    status, _, error = run(capsys, "--checkpoint", "tiny", "--output", tmp_path / "by-name")
    assert (status, error) == (0, "")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "by-name")
    assert model.config.source_config == "tiny"
    signed = f"{server.url}/model.pth.tar?token=hf_abcdefgh"
    server.files["/model.pth.tar?token=hf_abcdefgh"] = _checkpoint()
    status, printed, error = run(capsys, "--checkpoint", signed, "--config", "tiny", "--output", tmp_path / "signed")
    assert (status, error) == (0, "")
    written = "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "signed").iterdir())
    assert f"{server.url}/model.pth.tar" in written and "hf_abcdefgh" not in written + printed
    secret = f"{server.url.replace('https://', 'https://me:word@')}/model.pth.tar"
    status, _, error = run(capsys, "--checkpoint", secret, "--config", "tiny", "--output", tmp_path / "not")
    assert status == 1 and "remove the user and password from the address" in error and "word@" not in error
    for name, message in (
        ("absent", "published no file for it"),
        ("page", "published its file on a page that programs cannot read"),
        ("nobody", "nobody is neither a file nor a published config nor an https address"),
        ("http://localhost/x.pth", "only https addresses are allowed"),
    ):
        status, _, error = run(capsys, "--checkpoint", name, "--output", tmp_path / "not")
        assert status == 1 and message in error and not (tmp_path / "not").exists()
