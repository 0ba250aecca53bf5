# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Fetches checkpoints: over https only, resumed where it was cut off, checked before it gets its name."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
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
from tqdm import tqdm

from ..operators.dispatcher import cache_folder
from .archive import WEIGHT_SUFFIXES
from .mapping import ConversionError

FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".zip", ".safetensors", ".npz")
ATTEMPTS = 5  # in a row without a single new byte
_TIMEOUT = 30  # seconds without an answer
_CHUNK = 2**20


@dataclass
class _Known:
    """What is known of a file before it is here.

    Attributes:
        sha256: its SHA-256 in hexadecimal digits, or the first eight of them, as OpenMMLab puts them into names.
        size: in bytes.
    """

    sha256: str | None = None
    size: int | None = None


def is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def shown_url(url: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def downloads_folder() -> Path:
    """Where files are kept: `~/.cache/segtransformers/downloads`."""
    return cache_folder().with_name("downloads")


def download(url: str, sha256: str | None = None, folder: Path | None = None) -> Path:
    """Fetch a file, or find it where an earlier call left it.

    What is there of an interrupted download is kept and goes on with the next call, if the server still has the same
    file. Size and SHA-256 are checked where they are known: from `sha256`, from OpenMMLab's file names, which end in
    its first eight digits, and from what the Hub says about its files.

    Args:
        url: an https address. Redirects must lead to https addresses, too.
        sha256: of the file, in hexadecimal digits.
        folder: where to keep it, by default [`downloads_folder`].

    Returns:
        the file's path.

    Raises:
        ConversionError: saying what is wrong with the address, the answer or the file.
    """
    parts = urllib.parse.urlsplit(url)
    shown = shown_url(url)
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise ConversionError(f"{shown} is not fetched: only https addresses are")
    if parts.username or parts.password:
        raise ConversionError(f"{shown} is not fetched with a user and a password: take them out of the address")
    name = re.sub(r"[^\w.+-]", "_", urllib.parse.unquote(parts.path).rpartition("/")[2])[-150:].lstrip(".")
    if not name.lower().endswith(FILE_SUFFIXES):
        raise ConversionError(
            f"{shown} is no address of a file ({', '.join(FILE_SUFFIXES)}): fetch it with a browser, then give the file"
        )
    known = _Known(sha256.lower() if sha256 else None)
    if known.sha256 is None and (found := re.search(r"-([0-9a-f]{8})\.pth$", name)):
        known.sha256 = found[1]
    folder = folder or downloads_folder()
    # the name of a row may stand for other addresses tomorrow
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{target.name}.lock"):  # two processes would mix what they write
            if not target.is_file():
                _fetch(url, shown, target, known)
            _check_digest(target, known, shown)
    except OSError as error:
        raise ConversionError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses; remembers what the Hub says about the file on the way."""

    def __init__(self, known: _Known):
        self.known = known

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).scheme.lower() != "https":
            raise ConversionError(
                f"{shown_url(req.full_url)} leads to {shown_url(newurl)}, which is not fetched: only https is"
            )
        _learn(self.known, headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _learn(known: _Known, headers: Any) -> None:
    """Size and SHA-256 of a large file on the Hub stand in the first answer."""
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
    with tqdm(unit="B", unit_scale=True, desc=target.name.partition("-")[2], disable=None) as progress:
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                _fetch_rest(opener, url, shown, partial, notes, known, progress)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempts + 1 >= ATTEMPTS:
                    raise ConversionError(f"{shown} answers {error.code} {error.reason}") from None
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                attempts = 0 if partial.exists() and partial.stat().st_size > before else attempts
                if attempts + 1 >= ATTEMPTS or "CERTIFICATE_VERIFY_FAILED" in str(error):
                    reason = str(getattr(error, "reason", error)) or type(error).__name__
                    left = " (what is here goes on with the next call)" if partial.exists() else ""
                    raise ConversionError(f"cannot fetch {shown}: {reason}{left}") from None
            attempts += 1
            time.sleep(min(2**attempts / 4, 8))
    size = partial.stat().st_size
    if known.size is not None and size != known.size:
        _forget(partial, notes)
        raise ConversionError(f"{shown} gave {size} bytes, expected {known.size}: try again")
    _check_digest(partial, known, shown)
    partial.replace(target)
    _forget(partial, notes)


def _fetch_rest(
    opener: urllib.request.OpenerDirector,
    url: str,
    shown: str,
    partial: Path,
    notes: Path,
    known: _Known,
    progress: tqdm,
) -> None:
    """One request for what is still missing."""
    request = urllib.request.Request(url, headers={"User-Agent": "segtransformers", "Accept-Encoding": "identity"})
    there = partial.stat().st_size if partial.exists() else 0
    validator = _validator(notes)
    if there and validator:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", validator)
    try:
        answer = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        _forget(partial, notes)  # it is longer than the server's file
        raise ConnectionError("the server's file is shorter than what is here") from None
    with answer:
        headers: Mapping[str, str] = answer.headers
        _learn(known, headers)
        if (headers.get("Content-Type") or "").startswith("text/html"):
            raise ConversionError(f"{shown} gives a web page, not a file: fetch it with a browser, then give the file")
        resumed = answer.status == 206 and (headers.get("Content-Range") or "").startswith(f"bytes {there}-")
        if not resumed:
            there = 0
            notes.write_text(json.dumps(headers.get("ETag") or headers.get("Last-Modified")))
        length = headers.get("Content-Length") or ""
        expected = there + int(length) if length.isdigit() else None
        if expected is not None:
            known.size = expected if known.size is None else known.size
            free = shutil.disk_usage(partial.parent).free
            if expected - there > free:
                raise ConversionError(
                    f"{shown} has {expected - there} bytes to come, and {partial.parent} room for {free}"
                )
        progress.total, progress.n = known.size, there
        progress.refresh()
        with partial.open("ab" if resumed else "wb") as copy:
            while chunk := answer.read(_CHUNK):
                if known.size is not None and copy.tell() + len(chunk) > known.size:
                    raise ConversionError(f"{shown} sends more than the {known.size} bytes that it has: not fetched")
                copy.write(chunk)
                progress.update(len(chunk))
            written = copy.tell()
    if expected is not None and written < expected:
        raise ConnectionError(f"the connection ended after {written} of {expected} bytes")


def _validator(notes: Path) -> str | None:
    """What tells whether the server's file is still the one that was begun; a weak one cannot."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(notes.read_text())
        return value if isinstance(value, str) and not value.startswith("W/") else None
    return None


def _check_digest(path: Path, known: _Known, shown: str) -> None:
    if known.sha256 is None:
        return
    actual = file_sha256(path)
    if not actual.startswith(known.sha256):
        path.unlink()
        raise ConversionError(
            f"{shown} has the SHA-256 {actual[: len(known.sha256)]}, expected {known.sha256}: it is damaged, or it is "
            "another file; it was deleted"
        )


def _forget(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
