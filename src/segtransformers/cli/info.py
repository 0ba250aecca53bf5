# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers info`: versions, devices and operators."""

import contextlib
import importlib.metadata
import platform

import typer

PACKAGES = ("segtransformers", "torch", "torchvision", "transformers", "timm", "kernels")


def info() -> None:
    """Print the versions of the packages, the devices, and the implementation of each operator."""
    import torch

    from ..operators import dispatcher

    typer.echo(f"python          {platform.python_version()}  {platform.platform()}")
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # torchvision may be missing
            typer.echo(f"{name:<15} {importlib.metadata.version(name)}")
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    typer.echo(f"devices         {', '.join(devices)}")
    typer.echo(f"operators       {dispatcher.describe()}")
