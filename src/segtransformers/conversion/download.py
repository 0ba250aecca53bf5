# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Download checkpoints over https; interrupted downloads are resumed, and every file is checked."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..cache import downloads_folder
from ..escaping import printable
from ..terminal import Bar, progress_bar
from .archive import WEIGHT_SUFFIXES
from .errors import ConversionError, is_memory_error

FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".zip", ".safetensors", ".npz")
ATTEMPTS = 5  # consecutive attempts without a new byte
_TIMEOUT = 30  # seconds without an answer
_CHUNK = 2**20


@dataclass
class _Known:
    """Expected properties of a file; None if unknown.

    Attributes:
        sha256: its SHA-256 in hexadecimal digits, or the first eight of them.
        size: its size in bytes.
    """

    sha256: str | None = None
    size: int | None = None


def is_url(text: str) -> bool:
    """Return True if a text starts with a scheme such as `https://`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def shown_url(url: str) -> str:
    """Remove user, password, query and fragment from an address, because they may be secret."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def is_file_url(url: str) -> bool:
    """Return True if an address ends like a checkpoint file, and not like a page."""
    return _file_name(url).lower().endswith(FILE_SUFFIXES)


def cached_download(url: str, folder: Path | None = None) -> Path:
    """Return the path of a downloaded file, by default in [`downloads_folder`].

    Files are named by their address, too, because different files with equal names exist.
    """
    return (folder or downloads_folder()) / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{_file_name(url)}"


def _file_name(url: str) -> str:
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    return re.sub(r"[^\w.+-]", "_", path.rpartition("/")[2])[-150:].lstrip(".")


def download(url: str, sha256: str | None = None, folder: Path | None = None) -> Path:
    """Download a file, or return it from an earlier download.

    The part that an interrupted download has written is kept. The next call resumes it if the server still has the same
    file. Size and SHA-256 are checked if they are known: from `sha256`, from the Hub's headers, or from OpenMMLab's
    file names, which end with the first eight digits. A new download that fails the check is deleted, an earlier one is
    kept.

    Args:
        url: an https address. Redirects must lead to https addresses, too.
        sha256: expected SHA-256 of the file, in hexadecimal digits.
        folder: the folder of downloaded files, by default [`downloads_folder`].

    Returns:
        the path of the file.

    Raises:
        ConversionError: if the address is not allowed, the download fails, or the file has another size or SHA-256.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConversionError(f"{printable(url, 200)} is not a valid address: {error}") from error
    shown = shown_url(url)
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise ConversionError(f"{shown} is not downloaded: only https addresses are allowed")
    if parts.username or parts.password:
        raise ConversionError(f"{shown} is not downloaded: remove the user and password from the address")
    name = _file_name(url)
    if not is_file_url(url):
        raise ConversionError(
            f"{shown} is not the address of a file ({', '.join(FILE_SUFFIXES)}): download the file with a browser and "
            "pass its path"
        )
    known = _Known(sha256.lower() if sha256 else None)
    if known.sha256 is None and (found := re.search(r"-([0-9a-f]{8})\.pth$", name)):
        known.sha256 = found[1]
    target = cached_download(url, folder)
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{target.name}.lock"):  # two processes would mix what they write
            if target.is_file():
                _check_digest(target, known, shown, f". To download it again, delete {target}")
            else:
                _fetch(url, shown, target, known)
    except OSError as error:
        if is_memory_error(error):
            raise
        raise ConversionError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https addresses only, and keep the size and SHA-256 in the Hub's redirects."""

    def __init__(self, known: _Known):
        self.known = known

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).scheme.lower() != "https":
            raise ConversionError(
                f"{shown_url(req.full_url)} redirects to {shown_url(newurl)}, which is not downloaded: only https "
                "addresses are allowed"
            )
        _learn(self.known, headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _learn(known: _Known, headers: Any) -> None:
    """Read size and SHA-256 from the headers of the Hub's first answer for a large file."""
    etag = (headers.get("X-Linked-Etag") or "").strip('"').lower()
    if known.sha256 is None and re.fullmatch("[0-9a-f]{64}", etag):
        known.sha256 = etag
    size = headers.get("X-Linked-Size") or ""
    if known.size is None and size.isdigit():
        known.size = int(size)


def _fetch(url: str, shown: str, target: Path, known: _Known) -> None:
    partial, notes = target.with_name(target.name + ".partial"), target.with_name(target.name + ".partial.json")
    opener = urllib.request.build_opener(_OnlyHttps(known))
    attempts = 0
    with progress_bar(None, "byte", target.name.partition("-")[2]) as progress:
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                _fetch_rest(opener, url, shown, partial, notes, known, progress)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempts + 1 >= ATTEMPTS:
                    raise ConversionError(f"the server answers {error.code} {error.reason} for {shown}") from None
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                attempts = 0 if partial.exists() and partial.stat().st_size > before else attempts
                no_network = isinstance(getattr(error, "reason", error), socket.gaierror) and not partial.exists()
                if attempts + 1 >= ATTEMPTS or no_network or "CERTIFICATE_VERIFY_FAILED" in str(error):
                    reason = str(getattr(error, "reason", error)) or type(error).__name__
                    note = "; the next call resumes the download" if partial.exists() else ""
                    raise ConversionError(f"cannot download {shown}: {reason}{note}") from None
            attempts += 1
            time.sleep(min(2**attempts / 4, 8))
    size = partial.stat().st_size
    if known.size is not None and size != known.size:
        _delete(partial, notes)
        raise ConversionError(f"{shown} has {size} bytes, expected {known.size}: try again")
    try:
        _check_digest(partial, known, shown)
    except ConversionError:
        _delete(partial, notes)
        raise
    partial.replace(target)
    _delete(notes)


def _fetch_rest(
    opener: urllib.request.OpenerDirector,
    url: str,
    shown: str,
    partial: Path,
    notes: Path,
    known: _Known,
    progress: Bar,
) -> None:
    """Send one request for the part that is missing, and append the answer to `partial`."""
    request = urllib.request.Request(url, headers={"User-Agent": "segtransformers", "Accept-Encoding": "identity"})
    present = partial.stat().st_size if partial.exists() else 0
    validator = _validator(notes)
    if present and validator:
        request.add_header("Range", f"bytes={present}-")
        request.add_header("If-Range", validator)
    try:
        answer = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        _delete(partial, notes)
        raise ConnectionError("the file on the server is shorter than the part that was downloaded") from None
    with answer:
        headers: Mapping[str, str] = answer.headers
        _learn(known, headers)
        if (headers.get("Content-Type") or "").startswith("text/html"):
            raise ConversionError(
                f"{shown} is a web page, not a file: download the file with a browser and pass its path"
            )
        resumed = answer.status == 206 and (headers.get("Content-Range") or "").startswith(f"bytes {present}-")
        if not resumed:
            present = 0
            notes.write_text(json.dumps(headers.get("ETag") or headers.get("Last-Modified")))
        length = headers.get("Content-Length") or ""
        expected = present + int(length) if length.isdigit() else None
        if expected is not None:
            known.size = expected if known.size is None else known.size
            free = shutil.disk_usage(partial.parent).free
            if expected - present > free:
                raise ConversionError(f"{shown} needs {expected - present} bytes, but {partial.parent} has {free} free")
        progress.restart(known.size, present)
        with partial.open("ab" if resumed else "wb") as copy:
            while chunk := answer.read(_CHUNK):
                if known.size is not None and copy.tell() + len(chunk) > known.size:
                    raise ConversionError(f"{shown} sends more than the expected {known.size} bytes: not downloaded")
                copy.write(chunk)
                progress.update(len(chunk))
            written = copy.tell()
    if expected is not None and written < expected:
        raise ConnectionError(f"the connection ended after {written} of {expected} bytes")


def _validator(notes: Path) -> str | None:
    """Return the strong ETag or the date of the partly downloaded file. A weak ETag does not identify its bytes."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(notes.read_text())
        return value if isinstance(value, str) and not value.startswith("W/") else None
    return None


def _check_digest(path: Path, known: _Known, shown: str, advice: str = "") -> None:
    if known.sha256 is None:
        return
    actual = file_sha256(path)
    if not actual.startswith(known.sha256):
        raise ConversionError(
            f"{shown} has the SHA-256 {actual[: len(known.sha256)]}, expected {known.sha256}: the expected value is "
            f"wrong, or the file is another one or damaged{advice}"
        )


def _delete(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
