# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read many damaged checkpoints. Run in a process of its own, where a crash is seen:

    python tests/fuzz_checkpoints.py 2000 0    # number of files, seed

It prints counts as JSON, and ends with an error if a file costs too much time or memory, or raises an unexpected error.
"""

import argparse
import collections
import datetime
import io
import json
import random
import resource
import signal
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import numpy
import torch

from segtransformers.conversion import ConversionError
from segtransformers.conversion.checkpoint import read_checkpoint
from segtransformers.conversion.labels import numbers_of

MOST_SECONDS, MOST_MEGABYTES = 10, 128  # for one file, and for all of them together (they are small)


def contents() -> list:
    """Return contents of checkpoints as several trainers write them."""
    weights = collections.OrderedDict((f"backbone.{index}.weight", torch.rand(3, index + 1)) for index in range(6))
    weights["half"], weights["counter"] = torch.rand(4).half(), torch.tensor(3)
    weights["view"], weights["brain"] = torch.rand(4, 4).t()[1:], torch.rand(2).bfloat16()
    meta = {
        "CLASSES": ("a", "b"),
        "PALETTE": numpy.arange(6, dtype=numpy.uint8).reshape(2, 3),
        "config": "model = dict(type='EncoderDecoder')",
        "hook_msgs": {"best_score": numpy.float64(0.5), "last": [1, -5, 2**40, 1.5, None, True, b"bytes", "é道"]},
        "args": argparse.Namespace(a=1, when=datetime.datetime(2022, 1, 1), objects=numpy.array([None, {}])),
        "nested": [[[(), ((1,), {2: {3, 4}})]]],
    }
    optimizer = {"state": {0: {"exp_avg": torch.rand(2)}}, "param_groups": [{"lr": 1e-4, "params": list(range(300))}]}
    parameters = {"p": torch.nn.Parameter(torch.rand(2)), "sparse": torch.eye(2).to_sparse()}
    return [{"state_dict": weights, "meta": meta, "optimizer": optimizer}, weights, {"model": parameters, "meta": meta}]


def saved(content, is_old: bool, protocol: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not is_old, pickle_protocol=protocol)
    return buffer.getvalue()


SNIPPETS = [
    b"cbuiltins\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x7f\x85R",
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
    b"cnumpy\ndtype\nU\x01O\x89\x88\x87R",
    b"c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xa9X\x08\x00\x00\x00punycode\x86R",
    b"cos\nsystem\nU\x05false\x85R",
    b"r\xff\xff\xff\x7fj\xff\xff\xff\x7f",
    b"(" * 50 + b"t" * 50,
    b")" + b"q\x01h\x01h\x01\x86" * 40 + b"}h\x01K\x01s",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 8,
    b"X\xff\xff\xff\xff",
    b"]q\x09h\x09a",
    b"}q\x09h\x09h\x09s",
    b"\x85" * 1000,
    b"]" * 1000,
    b"2" * 500,
    b"(lp0\n",
    b"I99999999999999999999\nL" + b"9" * 99 + b"L\n",
    b"\x8f(K\x01\x90",
    b"\x95" + b"\xff" * 8,
]


def mutated(program: bytes, random: random.Random) -> bytes:
    changed = bytearray(program)
    for _ in range(random.choice((1, 1, 2, 3, 8, 30))):
        at = random.randrange(len(changed) + 1)
        match random.randrange(8):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                changed[at : at + 4] = random.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"))
            case 2:
                del changed[at : at + random.randrange(1, 40)]
            case 3:
                changed[at:at] = random.choice(SNIPPETS)
            case 4:
                begin = random.randrange(len(changed) + 1)
                changed[at:at] = changed[begin : begin + random.randrange(1, 200)] * random.choice((1, 2, 20))
            case 5:
                changed[at:at] = bytes(
                    random.choice(b"(.0125NKM]}ae)tuslqhRbQc\x85\x86\x87\x93\x94") for _ in range(20)
                )
            case 6:
                begin = random.randrange(len(changed) + 1)
                changed[at : at + 30] = changed[begin : begin + 30]
            case 7:
                changed = changed[:at] if random.random() < 0.3 else changed + random.choice(SNIPPETS) + b"."
        changed = changed or bytearray(b".")
    return bytes(changed)


def rebuilt(archive: bytes, random: random.Random) -> bytes:
    """Return an archive whose pickle is mutated, so that its directory is still right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, mutated(content, random) if name.endswith("/data.pkl") else content)
    return buffer.getvalue()


def walked(value, left: int = 2000) -> None:
    """Look at a result as the converter does."""
    stack = [value]
    while stack and left:
        item, left = stack.pop(), left - 1
        numbers_of(item)
        repr(type(item))
        stack += list(item.values()) if isinstance(item, dict) else list(item) if isinstance(item, list | tuple) else []


def main(count: int, seed: int) -> None:
    files = [
        (saved(content, is_old, protocol), is_old)
        for content in contents()
        for is_old in (False, True)
        for protocol in (2, 4)
    ]
    generator = random.Random(seed)
    counts: collections.Counter = collections.Counter()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("a file took too long"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.pth"
        for content, _ in files:
            path.write_bytes(content)
            try:
                read_checkpoint(path)
            except ConversionError as error:
                assert "sparse" in str(error), error
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for index in range(count):
            content, is_old = generator.choice(files)
            form = "old" if is_old else generator.choice(("archive", "pickle in an archive", "pickle in an archive"))
            content = rebuilt(content, generator) if form.startswith("pickle") else mutated(content, generator)
            path.write_bytes(content)
            signal.alarm(MOST_SECONDS)
            try:
                checkpoint = read_checkpoint(path)
                walked(checkpoint.meta)
                for tensor in checkpoint.state_dict.values():
                    tensor.sum()
                counts[f"{form}: read"] += 1
            except ConversionError as error:
                counts[f"{form}: refused"] += 1
                if len(str(error)) > 1000 or not str(error).isprintable():
                    sys.exit(f"file {index} has a bad message: {str(error)!r}")
            except BaseException:
                traceback.print_exc()
                sys.exit(f"file {index} of seed {seed} raised an unexpected error")
            signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    if grown > MOST_MEGABYTES:
        sys.exit(f"the files took {grown:.0f} MiB")
    print(json.dumps({**counts, "megabytes": round(grown)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
