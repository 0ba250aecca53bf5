# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Untrusted files: no code in them is run, no path in them is used, and no size in them is trusted."""

import collections
import io
import os
import pickle
import stat
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

from segtransformers.conversion import ConversionError
from segtransformers.conversion.checkpoint import read_checkpoint

WEIGHTS = {"a": torch.ones(2)}


class _Touch:
    """Object of a hostile file that writes a file if it is unpickled without protection."""

    def __init__(self, path: Path, call):
        self.path, self.call = path, call

    def __reduce__(self):
        return {
            "os.system": (os.system, (f"touch {self.path}",)),
            "eval": (eval, (f"open({str(self.path)!r}, 'w')",)),
            "exec": (exec, (f"open({str(self.path)!r}, 'w')",)),
            "open": (open, (str(self.path), "w")),
            "Path.touch": (Path.touch, (self.path,)),
        }[self.call]


PLACES = {
    "at the top": lambda bomb: bomb,
    "beside the weights": lambda bomb: {"state_dict": WEIGHTS, "extra": bomb},
    "among the weights": lambda bomb: {"state_dict": {**WEIGHTS, "b": bomb}},
    "in meta": lambda bomb: {"state_dict": WEIGHTS, "meta": {"CLASSES": ("a", "b"), "hook_msgs": {"x": [bomb]}}},
    "as a key": lambda bomb: {"state_dict": WEIGHTS, "meta": {("deep", bomb): 1}},
    "in the optimizer": lambda bomb: {"state_dict": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": (1, (2, bomb))}}}},
}


def _saved(path: Path, content, form: str) -> Path:
    if form == ".zip":
        inside = path / "inside.pth"
        torch.save(content, inside)
        with zipfile.ZipFile(path / "file.zip", "w") as archive:
            archive.write(inside, "folder/best.pth")
        return path / "file.zip"
    torch.save(content, path / "file.pth", _use_new_zipfile_serialization=form == ".pth")
    return path / "file.pth"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", [".pth", "old .pth", ".zip"])
def test_hostile_checkpoints_run_no_code(tmp_path, form, place):
    """Weights are read from any place of a file that does not need the hostile object."""
    touched = tmp_path / "was-run"
    file = _saved(tmp_path, PLACES[place](_Touch(touched, "os.system")), form)
    if place in ("at the top", "among the weights"):
        with pytest.raises(ConversionError, match=r"holds a \w+\.system"):
            read_checkpoint(file)
    else:
        assert torch.equal(read_checkpoint(file).state_dict["a"], WEIGHTS["a"])
    assert not touched.exists()
    if form == ".pth":  # without protection, the code runs
        torch.load(file, weights_only=False)
        assert touched.exists()


@pytest.mark.parametrize("call", ["eval", "exec", "open", "Path.touch"])
def test_no_function_is_called(tmp_path, call):
    touched = tmp_path / "was-run"
    torch.save({"state_dict": WEIGHTS, "extra": _Touch(touched, call)}, tmp_path / "file.pth")
    assert list(read_checkpoint(tmp_path / "file.pth").state_dict) == ["a"]
    assert not touched.exists()


def _crafted(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
    return path


def test_inert_objects_cannot_be_called_for_further_calls(tmp_path):
    """getattr is read as an inert object, so the function that it would return is never called."""
    touched = str(tmp_path / "was-run").encode()
    program = (
        b"\x80\x02c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\nX\x03\x00\x00\x00min\x86R"
        b"X" + struct.pack("<I", len(touched)) + touched + b"\x85R."
    )
    with pytest.raises(ConversionError):
        read_checkpoint(_crafted(tmp_path / "file.pth", program))
    assert not (tmp_path / "was-run").exists()


class _Tensor:
    """Object that pickles as a tensor of any shape and stride, on a storage that declares `count` numbers."""

    def __init__(self, shape, stride, count):
        self.storage, self.count = object(), count
        self.arguments = (self.storage, 0, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments

    def program(self) -> bytes:
        buffer = io.BytesIO()
        storage, count = self.storage, self.count

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                return ("storage", torch.FloatStorage, "0", "cpu", count) if thing is storage else None

        Pickler(buffer, 2).dump({"state_dict": {"a": self}})
        return buffer.getvalue()


@pytest.mark.parametrize(
    ("shape", "stride", "count", "message"),
    [
        ((10**15,), (1,), 10**15, "declares a tensor larger than its data"),
        ((10**12,), (0,), 4, r"declares a as \(1000000000000,\), but has 16 bytes for it"),
        ((2, 10**9, 3), (0, 0, 1), 4, r"declares a as \(2, 1000000000, 3\), but has 16 bytes for it"),
        ((10**6,), (1,), 4, "declares a tensor larger than its data"),
        ((4,), (-1,), 4, "a has no valid shape"),
        ((2**62, 0), (1, 1), 4, "declares a tensor larger than its data"),
        (([4],), (1,), 4, "a has no valid shape"),
        ((1,) * 10**5, (1,) * 10**5, 4, "a has no valid shape"),
    ],
)
def test_wrong_tensor_sizes_are_refused(tmp_path, shape, stride, count, message):
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(_crafted(tmp_path / "file.pth", _Tensor(shape, stride, count).program()))


def test_crafted_tensor_of_correct_size_is_read(tmp_path):
    """The tensors above are refused for their sizes, not for the way they were written."""
    file = _crafted(tmp_path / "file.pth", _Tensor((2, 2), (2, 1), 4).program())
    assert torch.equal(read_checkpoint(file).state_dict["a"], torch.zeros(2, 2))


def _archive(path: Path, *members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _weights() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": WEIGHTS}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["../best.pth", "a/../../best.pth", "/best.pth", "..\\best.pth", "C:\\best.pth", "c:best.pth"]
)
def test_members_with_a_path_outside_the_archive_are_refused(tmp_path, name):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for members in (((name, _weights()),), (("best.pth", _weights()), (name.replace(".pth", ".txt"), b"hello"))):
        with pytest.raises(ConversionError, match=r"a member with a path outside of it, .* refused"):
            read_checkpoint(_archive(folder / "file.zip", *members))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file.zip"]


def test_links_in_archives_are_refused(tmp_path):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(_weights())
    link = zipfile.ZipInfo("best.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ConversionError, match=r"a member that is a link, 'best.pth'"):
        read_checkpoint(_archive(tmp_path / "file.zip", (link, str(secret))))


@pytest.mark.parametrize("name", ["best.pth", "beside.txt"])
def test_zip_bombs_are_refused(tmp_path, name):
    members = [("weights.pth", _weights())] if name != "best.pth" else []
    file = _archive(tmp_path / "file.zip", *members, (name, bytes(50 * 2**20)))
    assert file.stat().st_size < 2**20
    with pytest.raises(ConversionError, match=rf"is a zip bomb: '{name}' unpacks from"):
        read_checkpoint(file)


def test_archives_that_understate_their_size_are_refused(tmp_path):
    """The directory declares 100 bytes for a member of a megabyte."""
    file = _archive(tmp_path / "file.zip", ("best.pth", numpy.random.default_rng(0).bytes(2**20)))
    content = bytearray(file.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 100)
    file.write_bytes(content)
    with pytest.raises(ConversionError, match=r"is damaged"):
        read_checkpoint(file)


def test_archives_that_overstate_their_size_are_refused(tmp_path):
    file = _archive(tmp_path / "file.zip", ("best.pth", _weights()))
    content = bytearray(file.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 2**17)
    file.write_bytes(content)
    with pytest.raises(ConversionError, match=r"is damaged"):
        read_checkpoint(file)


def test_checkpoints_that_are_zip_bombs_are_refused(tmp_path):
    """PyTorch's format is a zip archive whose members are never compressed."""
    torch.save({"state_dict": {"a": torch.zeros(2**18)}}, tmp_path / "honest.pth")
    with (
        zipfile.ZipFile(tmp_path / "honest.pth") as honest,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in honest.namelist():
            bomb.writestr(name, honest.read(name))
    with pytest.raises(ConversionError, match=r"has a compressed member"):
        read_checkpoint(tmp_path / "bomb.pth")

    content = bytearray((tmp_path / "honest.pth").read_bytes())
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"honest/data/0"))
    content[start + 20 : start + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "large.pth").write_bytes(content)
    with pytest.raises(ConversionError, match=r"declares \d+ bytes in a file of"):
        read_checkpoint(tmp_path / "large.pth")


def test_encrypted_archives_are_refused(tmp_path):
    file = _archive(tmp_path / "file.zip", ("best.pth", _weights()))
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + offset] |= 1
    file.write_bytes(content)
    with pytest.raises(ConversionError, match=r"is encrypted"):
        read_checkpoint(file)


def test_npz_bombs_are_refused(tmp_path):
    numpy.savez_compressed(tmp_path / "file.npz", embedding=numpy.zeros(2**24))
    with pytest.raises(ConversionError, match=r"is a zip bomb"):
        read_checkpoint(tmp_path / "file.npz")


def test_archives_larger_than_the_disk_are_refused(tmp_path, monkeypatch):
    file = _archive(tmp_path / "file.zip", ("best.pth", _weights()))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10, 0, 10))
    with pytest.raises(ConversionError, match=r"where 10 are free: set TMPDIR"):
        read_checkpoint(file)


class HistoryBuffer:
    """mmengine's class as far as its pickle is concerned: its state contains its own methods."""

    def min(self):
        raise AssertionError("a method from the file was called")

    def __getstate__(self):
        history = numpy.array([1.5, 2.0])
        return {"_log_history": history, "_count_history": history, "statistics_methods": {"min": HistoryBuffer.min}}


def test_training_state_of_mmengine_is_read(tmp_path, monkeypatch):
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    monkeypatch.setattr(HistoryBuffer.min, "__module__", "mmengine.logging.history_buffer")
    content = {
        "state_dict": WEIGHTS,
        "meta": {"cfg": "model = dict(type='EncoderDecoder')", "dataset_meta": {"classes": ("a",)}},
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}, "runtime_info": {"iter": 7}},
        "optimizer": {},
    }
    for form in (".pth", "old .pth"):
        file = _saved(tmp_path, content, form)
        read = read_checkpoint(file)
        assert read.meta == content["meta"] and read.others == ["message_hub", "optimizer"]
        assert b"getattr" in pickle.dumps(content["message_hub"], 2)
