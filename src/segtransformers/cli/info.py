# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers info`: versions, devices, operators and the cache."""

import contextlib
import importlib.metadata
import platform

from ..cache import user_cache
from .output import document, result

PACKAGES = ("segtransformers", "torch", "torchvision", "transformers", "timm", "kernels")


def info() -> None:
    """Print the versions of the packages, the devices, the implementation of each operator, and the cache's folder."""
    import torch

    from ..operators import dispatcher

    packages: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # torchvision may be missing
            packages[name] = importlib.metadata.version(name)
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    operators = dispatcher.describe()
    facts = {"python": f"{platform.python_version()}  {platform.platform()}", **packages}
    cache = str(user_cache())
    facts |= {"devices": ", ".join(devices), "operators": operators, "cache": cache}
    for name, text in facts.items():
        result(f"{name:<15} {text}")
    document(
        {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": packages,
            "devices": devices,
            "operators": operators,
            "cache": cache,
        }
    )
