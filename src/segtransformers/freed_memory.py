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
USER_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next layer and the next image. This concerns CPUs only.

    A network allocates and frees many large tensors. By default, Linux's C library returns the larger ones to the
    system, which has to clear every page when it is used again. That takes a tenth to a fourth of the time of a forward
    pass, and more in batches. The process then stays as large as its largest image made it, and a little larger than
    without. The commands that segment or evaluate do this; in a program of your own, call it once at the start.

    Settings that the user made in the environment, by `MALLOC_...` or `GLIBC_TUNABLES`, are left as they are.

    Returns:
        whether the settings were made. Only glibc has them, so this is False on other systems than Linux.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name in os.environ for name in USER_SETTINGS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) == 1 for name, value in SETTINGS.items())


__all__ = ["keep_freed_memory"]
