# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers demo`: a page to try models in a browser.

Heavy modules are imported inside functions, so that the help and mistyped options cost no time.
"""

import socket
from typing import Annotated

import typer

from .common import DeviceOption
from .errors import UserError, one_line_errors


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A folder, a Hub id, the name of a published model, or packaged; may be given several times.",
        ),
    ] = None,
    device: DeviceOption = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free port from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Open a page in the browser: drop an image, see its classes, download them.

    Without --model, the page has the packaged model, which knows drawn scenes only. It needs the extra `demo` and no
    network.
    """
    with one_line_errors():
        try:
            from .demo_page import launch
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise UserError("this needs gradio, which is not installed: pip install 'segtransformers[demo]'") from None
        try:
            socket.getaddrinfo(host, port)  # gradio would look it up for each of a hundred ports
        except (OSError, UnicodeError):
            raise UserError(f"--host {host} is no address of this machine: use 127.0.0.1 or 0.0.0.0") from None
        try:
            launch(model or [], device=device, host=host, port=port, browser=browser)
        except OSError:
            taken = "the ports from 7860 to 7959 are" if port is None else f"port {port} is"
            raise UserError(f"cannot serve at {host}: {taken} taken or forbidden; choose another --port") from None
