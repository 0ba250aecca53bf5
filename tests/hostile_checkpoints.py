# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Read hostile checkpoints. Run in a process of its own, where a crash is seen: `python tests/hostile_checkpoints.py`.

It prints, as JSON, what became of each file, and ends with an error if a file costs too much time or memory.
"""

import json
import pickle
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from segtransformers.conversion import ConversionError
from segtransformers.conversion.checkpoint import read_checkpoint

MOST_SECONDS = 60  # for one file, on a busy machine
MOST_MEGABYTES = 200  # beyond four times the size of the file
HUGE = b"\x8a\x06\xff\xff\xff\xff\xff\x7f"
STATE = b"}X\x05\x00\x00\x00stateK\x01s"
FILES: dict[str, Callable[[Path], object]] = {}


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def crafted(path: Path, program: bytes, storages: dict[str, bytes] | None = None, method=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"a/data/{key}", content)


def storage(kind="FloatStorage", key="0", count=b"K\x04") -> bytes:
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + count + b"tQ"


def tensor(identity: bytes, offset=b"K\x00", shape=b"K\x04\x85", stride=b"K\x01\x85") -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return call + identity + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)RtR"


def weights(*tensors: bytes) -> bytes:
    items = b"".join(text(f"w{index}") + one for index, one in enumerate(tensors))
    return b"\x80\x02}" + text("state_dict") + b"}(" + items + b"us."


# pickles that would import, call, allocate, recurse or repeat
PROGRAMS = {
    "bytearray of terabytes": b"cbuiltins\nbytearray\n" + HUGE + b"\x85R.",
    "bytearray of terabytes, as a new object": b"cbuiltins\nbytearray\n" + HUGE + b"\x85\x81.",
    "bytes of terabytes": b"cbuiltins\nbytes\n" + HUGE + b"\x85R.",
    "list of a range": b"cbuiltins\nlist\ncbuiltins\nrange\n" + HUGE + b"\x85R\x85R.",
    "numpy zeros": b"cnumpy\nzeros\n" + HUGE + b"\x85R.",
    "numpy object array": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x7f\x85"
    b"cnumpy\ndtype\nU\x01O\x89\x88\x87R\x89]K\x01atb.",
    "numpy record dtype": b"cnumpy\ndtype\nU\x01V\x89\x88\x87R(K\x03U\x01|NNNJ\xff\xff\xff\x7fK\x01K\x00tb.",
    "numpy memmap": b"cnumpy\nmemmap\n" + text("/etc/passwd") + b"\x85R.",
    "torch empty": b"ctorch\nempty\n" + HUGE + b"\x85R.",
    "torch load": b"ctorch\nload\n" + text("/etc/passwd") + b"\x85R.",
    "torch compile": b"ctorch._dynamo\noptimize\n)R.",
    "os.system": b"cos\nsystem\n" + text("exit 3") + b"\x85R.",
    "exit": b"cos\n_exit\nK\x03\x85R.",
    "exec": b"cbuiltins\nexec\n" + text("raise SystemExit(3)") + b"\x85R.",
    "import": b"cbuiltins\n__import__\n" + text("antigravity") + b"\x85R.",
    "getattr chain": b"cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + text("exit 3") + b"\x85R.",
    "instance of protocol 0": b"(S'exit 3'\nios\nsystem\n.",
    "object of protocol 1": b"(cos\nsystem\n" + text("exit 3") + b"o.",
    "extension registry": b"\x82\x01.",
    "persistent text": b"Pos.system\n.",
    "persistent code": text("print(1)") + b"Q.",
    "punycode": b"c_codecs\nencode\n" + text("ab" * 90_000) + text("punycode") + b"\x86R.",
    "zlib codec": b"c_codecs\ndecode\n" + text("x" * 1000) + text("zlib") + b"\x86R.",
    "latin1 text encoded again and again": text("x" * 10**6)
    + b"q\x00c_codecs\nencode\nq\x01"
    + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 50_000
    + b".",
    "pairs copied again and again": b"("
    + b"K\x01K\x02\x86" * 20_000
    + b"lq\x00ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x00\x85R" * 100_000
    + b".",
    "shared tuples as a key": b")" + b"q\x01h\x01h\x01\x86" * 200 + b"q\x02}h\x02K\x01s.",
    "shared tuples in a set": b"\x8f(" + b")" + b"q\x01h\x01h\x01\x86" * 200 + b"\x90.",
    "shared lists": b"]" + b"q\x01](h\x01h\x01e" * 300 + b".",
    "tuples nested by the million": b")" + b"\x85" * 10**6 + b".",
    "a key nested by the million": b"})" + b"\x85" * 10**6 + b"K\x01s.",
    "lists nested by the million": b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "dicts nested": b"}" + b"K\x01}" * 300_000 + b"s" * 300_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00" + text("state_dict") + b"h\x00s.",
    "marks by the million": b"(" * 3_000_000,
    "copies of the top": b"N" + b"2" * 5_000_000,
    "memo by the million": b"N" + b"\x94" * 3_000_000 + b".",
    "memo at four billion": b"Nr\xff\xff\xff\xff.",
    "nothing, forever": b"N0" * 5_000_000,
    "a long integer as a key": b"\x8b"
    + struct.pack("<i", 10**6)
    + b"\x7f" * 10**6
    + b"q\x00}"
    + b"h\x00Ns" * 10**5
    + b".",
    "a long integer as text": b"L" + b"9" * 10**6 + b"L\n.",
    "integers of one hash": b"}("
    + b"".join(b"\x8a\x10" + ((2**61 - 1) * index).to_bytes(16, "little") + b"N" for index in range(1, 30_000))
    + b"u.",
    "lengths beyond the file": b"X\xff\xff\xff\xff",
    "lengths of 64 bits": b"\x8d" + b"\xff" * 8,
    "a negative length": b"\x8b\xff\xff\xff\xff",
    "a frame of exabytes": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a name without an end": b"c" + b"x" * 10**6,
    "control characters in a name": b"c\x1b[2J\x1b]0;x\x07\nevil\n)R.",
    "control characters in keys": b"}" + text("\x1b[31m\u202e\r\n" * 50) + b"K\x01s.",
    "an empty pickle": b"",
    "only the end": b".",
    "unknown operations": b"\xff" * 100,
}
for name, program in PROGRAMS.items():
    FILES[f"pickle: {name}"] = lambda path, program=program: crafted(path, b"\x80\x02" + program)
    FILES[f"old pickle: {name}"] = lambda path, program=program: path.write_bytes(old_start() + b"\x80\x02" + program)


def old_start() -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


# tensors that are larger than their data, of odd kinds, or many views of the same data
many = [tensor(storage(count=b"M\x00\x10"), shape=b"M\x00\x10\x85") for _ in range(3000)]
huge_count = storage(count=HUGE)
slices = [  # one unaligned storage, declared with many sizes
    tensor(storage(count=struct.pack("<cH", b"M", 60_000 - index)), shape=b"K\x01\x85") for index in range(4000)
]
TENSORS = {
    "storages of many sizes": weights(*slices),
    "a storage of terabytes": weights(tensor(huge_count, shape=HUGE + b"\x85")),
    "a shape of terabytes": weights(tensor(storage(), shape=HUGE + b"\x85")),
    "a stride of zero": weights(tensor(storage(), shape=HUGE + b"\x85", stride=b"K\x00\x85")),
    "a negative stride": weights(tensor(storage(), stride=b"J\xff\xff\xff\xff\x85")),
    "a negative offset": weights(tensor(storage(), offset=b"J\xff\xff\xff\xff")),
    "an offset beyond the storage": weights(tensor(storage(), offset=b"K\x01")),
    "a negative size": weights(tensor(storage(), shape=b"J\xff\xff\xff\xff\x85")),
    "sizes that overflow": weights(tensor(storage(), shape=HUGE * 3 + b"\x87", stride=b"K\x00K\x00K\x00\x87")),
    "no numbers, but huge sides": weights(tensor(storage(), shape=HUGE + b"K\x00\x86", stride=b"K\x01K\x01\x86")),
    "more strides than sides": weights(tensor(storage(), stride=b"K\x01K\x01\x86")),
    "a hundred thousand sides": weights(
        tensor(storage(), b"K\x00", b"(" + b"K\x01" * 10**5 + b"t", b"(" + b"K\x01" * 10**5 + b"t")
    ),
    "text as a shape": weights(tensor(storage(), shape=text("4"))),
    "fractions as a shape": weights(tensor(storage(), shape=b"G@\x10\x00\x00\x00\x00\x00\x00\x85")),
    "a missing storage": weights(tensor(storage(key="9"))),
    "a storage outside of the archive": weights(tensor(storage(key="../../../etc/passwd"))),
    "a storage of an unknown kind": weights(tensor(storage(kind="EvilStorage"))),
    "a quantised storage": weights(tensor(storage(kind="QInt8Storage"))),
    "a negative count": weights(tensor(storage(count=b"J\xff\xff\xff\xff"))),
    "one storage as many tensors": weights(*many),
    "tensors under control characters": b"\x80\x02}" + text("\x1b[31m\n") + tensor(storage(), offset=b"K\x09") + b"s.",
    "a tensor of a tensor": weights(tensor(tensor(storage()))),
    "a sparse tensor": weights(b"ctorch._utils\n_rebuild_sparse_tensor\n(" + HUGE + b"tR"),
    "a meta tensor": weights(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(" + HUGE + b"tR"),
    "rebuilding inside of rebuilding": weights(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)}tR"
    ),
    "a tensor as weights": b"\x80\x02}" + text("state_dict") + tensor(storage()) + b"s.",
    "weights that are a class": b"\x80\x02}" + text("state_dict") + b"cos\nsystem\ns.",
    "a class as a dict": b"\x80\x02cos\nenviron\n}(" + text("a") + text("b") + b"ud.",
}
for name, program in TENSORS.items():
    FILES[f"tensor: {name}"] = lambda path, program=program: crafted(path, program, {"0": bytes(240_000)})


def archive_of(path: Path) -> bytearray:
    torch.save({"state_dict": {"a": torch.zeros(2**16)}}, path)
    return bytearray(path.read_bytes())


def register(name: str):
    def decorate(write):
        FILES[f"file: {name}"] = write
        return write

    return decorate


@register("compressed members")
def compressed(path: Path) -> None:
    crafted(path, weights(tensor(storage())), {"0": bytes(10**8)}, zipfile.ZIP_DEFLATED)


@register("members of a newer version")
def newer(path: Path) -> None:
    compressed(path)
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x63"))


@register("a directory of two million entries")
def crowded(path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    count = 2_000_000
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, entry.__len__() * 65_535, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)


@register("a directory that counts exabytes")
def exabytes(path: Path) -> None:
    content = archive_of(path)
    end = content.rindex(b"PK\x06\x06")
    content[end + 24 : end + 40] = b"\xff" * 16
    path.write_bytes(content)


@register("members that overlap")
def overlapping(path: Path) -> None:
    content = archive_of(path)
    first = content.index(b"PK\x01\x02")
    offset = content[first + 42 : first + 46]
    at = first
    while at >= 0:
        content[at + 42 : at + 46] = offset
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)


@register("two members of one name")
def duplicate(path: Path) -> None:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a/data.pkl", weights(tensor(storage())))


@register("members with control characters")
def coloured(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/\x1b[31m" + "x" * 60_000, b"0" * 1000)


@register("an encrypted member")
def encrypted(path: Path) -> None:
    content = archive_of(path)
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@register("a truncated archive")
def truncated(path: Path) -> None:
    path.write_bytes(archive_of(path)[:-30])


@register("an archive of nothing")
def nothing(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


@register("an old file without its storages")
def old_truncated(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2**16)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


@register("an old file that counts exabytes")
def old_exabytes(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(16)}}, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    content[-72:-64] = b"\xff" * 7 + b"\x7f"
    path.write_bytes(content)


@register("an old file with unknown storages")
def old_unknown(path: Path) -> None:
    path.write_bytes(old_start() + pickle.dumps({"a": 1}, 2) + pickle.dumps(["0"] * 10**5, 2))


@register("a tar archive with a long name of terabytes")
def tar_bomb(path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@register("a compressed tar archive")
def tar_compressed(path: Path) -> None:
    import gzip

    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    with gzip.open(path, "wb", 1) as target:
        target.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            target.write(bytes(2**20))


@register("a web page")
def page(path: Path) -> None:
    path.write_bytes(b"<!doctype html>" * 10**5)


@register("zeros")
def zeros(path: Path) -> None:
    path.write_bytes(bytes(10**6))


def archive_with(name: str, write: Callable[[zipfile.ZipFile], object], suffix: str = ".zip") -> None:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            write(opened)

    FILES[f"{suffix}: {name}"] = make


def header(description: str) -> bytes:
    content = description.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(content)) + content


archive_with("one file of gigabytes", lambda opened: opened.writestr("a.pth", bytes(2 * 10**8)))
archive_with("a name with control characters", lambda opened: opened.writestr("\x1b[2J.pth", b"x"))
archive_with("a thousand checkpoints", lambda opened: [opened.writestr(f"{i}.pth", b"x") for i in range(1000)])
archive_with("many small bombs", lambda opened: [opened.writestr(f"{i}.npy", bytes(2**20)) for i in range(200)], ".npz")
for name, description in {
    "terabytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}",
    "an overflow": "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4)}",
    "negative sides": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
    "records": "{'descr': [('a', '<f4', (100000, 100000))], 'fortran_order': False, 'shape': (1,)}",
    "text of gigabytes": "{'descr': '<U2000000000', 'fortran_order': False, 'shape': (1,)}",
    "a deep header": "{'descr': " + "(" * 3000 + ")" * 3000 + ", 'fortran_order': False, 'shape': (1,)}",
    "a long header": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 10**5 + ")}",
}.items():
    archive_with(name, lambda opened, text=description: opened.writestr("w.npy", header(text) + bytes(16)), ".npz")


def safe(name: str, change: Callable[[bytearray], bytes]) -> None:
    def make(path: Path) -> None:
        save_file({"a": torch.zeros(4)}, path)
        path.write_bytes(change(bytearray(path.read_bytes())))

    FILES[f".safetensors: {name}"] = make


safe("a header of exabytes", lambda content: b"\xff" * 7 + b"\x7f" + content[8:])
safe("a header that is deep", lambda content: struct.pack("<Q", 2 * 10**5) + b"[" * 10**5 + b"]" * 10**5)
safe("a shape of terabytes", lambda content: content.replace(b'"shape":[4]', b'"shape":[9]'))
safe("truncated", lambda content: content[:-4])
safe("empty", lambda content: b"")


def main() -> None:
    results, slowest, largest = {}, 0.0, 0.0
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("a file took too long"))
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": {"a": torch.ones(2)}}, Path(folder) / "honest.pth")
        read_checkpoint(Path(folder) / "honest.pth")
        for name, write in FILES.items():
            suffix = name.partition(":")[0]
            path = Path(folder) / f"file{suffix if suffix.startswith('.') else '.pth'}"
            write(path)
            size = path.stat().st_size / 2**20
            # a process cannot lower its own maximum, so the memory of the writers is part of it
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.monotonic()
            signal.alarm(MOST_SECONDS)
            try:
                results[name] = f"read {len(read_checkpoint(path).state_dict)}"
            except ConversionError as error:
                results[name] = str(error)
                if len(str(error)) > 1000 or not str(error).isprintable():
                    sys.exit(f"{name} has a bad message: {str(error)!r}")
            signal.alarm(0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
            slowest, largest = max(slowest, time.monotonic() - start), max(largest, grown)
            if grown > 4 * size + MOST_MEGABYTES:
                sys.exit(f"{name} took {grown:.0f} MiB")
            path.unlink()
    print(json.dumps({"files": results, "seconds": round(slowest, 2), "megabytes": round(largest)}))


if __name__ == "__main__":
    main()
