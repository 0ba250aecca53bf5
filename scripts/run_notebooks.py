# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Run notebooks and store their outputs, with images shrunk: `python scripts/run_notebooks.py notebooks/01_*.ipynb`."""

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

MAX_WIDTH = 640  # pixels of a stored image
COLOURS = 128  # of a stored image
TIMEOUT = 600  # seconds for a cell


def run(path: Path) -> None:
    """Run a notebook in a temporary folder and write it back with what it printed and drew."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [_stored(output, folder) for output in cell.outputs if output.get("name") != "stderr"]
                cell.metadata = {key: value for key, value in cell.metadata.items() if key != "execution"}
    notebook.metadata["language_info"] = {"name": "python"}  # the version is that of this machine
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def _stored(output: dict, folder: str) -> dict:
    """Shrink the images of an output, and leave the folder out of its text."""
    if "text" in output:
        output["text"] = output["text"].replace(f"{folder}/", "")
    data = output.get("data", {})
    if "image/png" in data:
        image = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        image.thumbnail((MAX_WIDTH, MAX_WIDTH))
        stream = io.BytesIO()
        image.quantize(COLOURS).save(stream, "PNG", optimize=True)
        output["data"] = {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": "an image"}
    return output


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
