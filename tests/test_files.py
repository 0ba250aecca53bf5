# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Files that appear only when they are complete, and the leftovers of killed processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from segtransformers import files
from segtransformers.files import PREFIX, check_readable, complete_file, staging_folder

KEEP_A_FOLDER = """
import sys, time
from pathlib import Path
from segtransformers.command_process import prepare_process
from segtransformers.files import staging_folder

prepare_process()
with staging_folder(Path(sys.argv[1]) / "result") as folder:
    (folder / "part").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def search_again(monkeypatch):
    monkeypatch.setattr(files, "_searched", set())


@pytest.fixture
def running(tmp_path):
    """Return a process that holds a temporary folder in `tmp_path / "new"`."""
    process = subprocess.Popen([sys.executable, "-c", KEEP_A_FOLDER, tmp_path / "new"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def temporary(folder):
    return list(folder.glob(f"{PREFIX}*"))


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b" / "result.json"
    with complete_file(target) as file:
        file.write_text("1")
        assert not target.exists() and file.name == target.name
    assert target.read_text() == "1" and list(target.parent.iterdir()) == [target]


def test_an_error_leaves_nothing(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    for target in (tmp_path / "a" / "b" / "result.json", kept):
        with pytest.raises(ZeroDivisionError), complete_file(target) as file:
            file.write_text("half")
            1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == [kept] and kept.read_text() == "before"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_leaves_nothing(running, tmp_path, number):
    assert temporary(tmp_path / "new")
    running.send_signal(number)
    running.wait(timeout=60)
    assert not (tmp_path / "new").exists()


SWALLOW = """
import sys, time
from pathlib import Path
from segtransformers import command_process
from segtransformers.files import staging_folder

command_process.GRACE = 0.0
command_process.prepare_process()
with staging_folder(Path(sys.argv[1]) / "new" / "result"):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except SystemExit:
        pass
    try:
        print("swallowed", flush=True)
        time.sleep(60)
    except SystemExit:
        raise ValueError("of a library") from None
"""


def test_sigterm_that_libraries_swallow_or_replace(tmp_path):
    """torch clears or replaces exceptions that are raised inside of its own code."""
    words = [sys.executable, "-c", SWALLOW, tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for said in ("ready", "swallowed"):
            assert process.stdout.readline() == f"{said}\n"
            process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and not errors and not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_removed(running, tmp_path):
    folder = tmp_path / "new"
    with complete_file(folder / "one") as file:
        file.write_text("1")
    assert len(temporary(folder)) == 1, "the folder of a process that runs is kept"
    running.kill()
    running.wait()
    assert len(temporary(folder)) == 1
    files._searched.clear()  # as in a new process
    other = tmp_path / f"{PREFIX}file"
    other.write_text("no folder")
    with staging_folder(folder / "two"):
        assert len(temporary(folder)) == 1
    assert not temporary(folder) and other.exists()


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for path in (tmp_path / "pipe", files.Path("/dev/zero")):
        with pytest.raises(OSError, match="pipe, device or socket"):
            check_readable(path)
    assert time.monotonic() - start < 5
    check_readable(tmp_path)
    check_readable(tmp_path / "missing")
