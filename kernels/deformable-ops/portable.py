# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Sources that build.py adds to a portable build: functions of torch and CUDA are found when the library is loaded.

A library that names torch's or CUDA's libraries as dependencies fits to no manylinux tag, and needs them under these
names. This one takes the functions from the libraries that torch has loaded.
"""

import struct
from pathlib import Path

# Portable builds only. The check makes a missing function an ImportError; the library itself could only abort.
OPS = """\
# Written by build.py.
import ctypes
import os
from pathlib import Path

import torch

LIBRARIES = {libraries}
FUNCTIONS = {functions}


def check_functions():
    loaded = []
    for name in LIBRARIES:
        try:
            loaded.append(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
        except OSError:
            pass
    missing = [name for name in FUNCTIONS if not any(hasattr(library, name) for library in loaded)]
    if missing:
        raise ImportError(
            f"torch {{torch.__version__}} has no {{missing[0]}} in {{' and '.join(LIBRARIES)}}, which this build needs"
        )


check_functions()
torch.ops.load_library(Path(__file__).with_name("{identifier}.so"))
ops = torch.ops.{identifier}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{identifier}::{{op_name}}"
"""

# Definitions of the functions of torch and CUDA: each jumps to the address that is found when the library is loaded.
LATE_BINDING = """\
// Written by build.py.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

extern "C" __attribute__((visibility("hidden"))) void* deformable_ops_functions[{count}];
void* deformable_ops_functions[{count}];

// Before all other constructors, which register operators and CUDA code.
__attribute__((constructor(101))) static void bind_functions() {{
  static const char* const libraries[] = {{{libraries}}};
  static const char* const names[] = {{{names}}};
  for (int i = 0; i < {count}; ++i) {{
    for (const char* library : libraries) {{
      void* const handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
      if (handle != nullptr) deformable_ops_functions[i] = dlsym(handle, names[i]);
      if (deformable_ops_functions[i] != nullptr) break;
    }}
    if (deformable_ops_functions[i] == nullptr) {{
      std::fprintf(stderr, "deformable_ops: torch has no function %s\\n", names[i]);
      std::abort();
    }}
  }}
}}

__asm__(".text\\n"
{jumps});
"""
JUMPS = {
    "x86_64": "endbr64; jmp *deformable_ops_functions+{offset}(%rip)",
    "aarch64": "adrp x16, deformable_ops_functions+{offset}; "
    "ldr x16, [x16, #:lo12:deformable_ops_functions+{offset}]; br x16",
}
PREFIXES = ("aoti_torch_", "torch_", "cuda", "__cuda")


def undefined_functions(library: Path) -> list[str]:
    """Return the functions of torch and CUDA that a library (ELF, 64 bits, little endian) uses but does not define."""
    data = library.read_bytes()
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + i * size) for i in range(count)]
    found = set()
    for header in headers:
        if header[1] != 11:  # SHT_DYNSYM
            continue
        names = headers[header[6]][4]
        for start in range(header[4], header[4] + header[5], 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, start)
            if section == 0:  # undefined
                found.add(data[names + name : data.index(b"\0", names + name)].decode())
    return sorted(name for name in found if name.startswith(PREFIXES))


def late_binding(functions: list[str], libraries: list[str], machine: str) -> str:
    """Return the source that defines functions by finding them in loaded libraries."""
    jump = JUMPS[machine]
    jumps = [
        f'".globl {name}; .hidden {name}; .type {name}, %function; {name}: {jump.format(offset=8 * i)}\\n"'
        for i, name in enumerate(functions)
    ]
    return LATE_BINDING.format(
        count=len(functions),
        libraries=", ".join(f'"{library}"' for library in libraries),
        names=", ".join(f'"{name}"' for name in functions),
        jumps="\n".join(jumps),
    )
