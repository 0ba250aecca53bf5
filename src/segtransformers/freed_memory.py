# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Reuse of the memory that a process frees, instead of its return to the system."""

import ctypes
import os
import platform

# names of `mallopt` (glibc, malloc.h) -> values
SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no allocation gets pages of its own, which are returned when it is freed
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is never returned
    -8: 1,  # M_ARENA_MAX: threads share one heap, so each can use what another one has freed
}
# variables that set the same
USER_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next layer and the next image. This concerns CPUs only.

    A network allocates and frees many large tensors. By default, Linux's C library returns the larger ones to the
    system, which has to clear every page when it is used again. docs/operators.md says what that costs. The process
    then stays as large as its largest image made it, and larger than without the call.

    Call it once at the start of a program, before other threads allocate memory: heaps that they own already stay
    theirs, and large tensors in them are still returned. The commands `segment`, `evaluate`, `demo` and `autolabel` do.

    Returns:
        whether the settings were made. They are not if the environment has one of [`USER_SETTINGS`] or tunables of
        `glibc.malloc`, and on other systems than Linux with glibc.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name in os.environ for name in USER_SETTINGS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) == 1 for name, value in SETTINGS.items())


__all__ = ["keep_freed_memory"]
