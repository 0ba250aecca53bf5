# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The examples of sliding windows in Python and C++ give the label map that the model itself gives in windows."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import small
from PIL import Image

from segtransformers.export import export_model
from segtransformers.models.layers.sliding_windows import SlidingWindow

EXAMPLE = Path(__file__).parents[1] / "examples" / "sliding_windows"
WINDOW = (64, 96)
# ends the process with an error if the example needs this package or PyTorch
RUN = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__'); " + (
    "sys.exit(1 if {'torch', 'segtransformers'} & set(sys.modules) else 0)"
)


def python_example(model, image, labels):
    command = [sys.executable, "-c", RUN, str(EXAMPLE / "sliding_windows.py"), str(model), str(image), str(labels)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(labels))


def write_image(path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# slow: two exports and a C++ compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs cmake and c++")
def test_both_examples_give_the_labels_of_the_model(tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    model, processor = small("segmenter-linear")
    for name in ("model.onnx", "model.xml"):
        export_model(model, processor, tmp_path / name, size=WINDOW, takes_pixels=True)
    settings = f"-DOpenVINO_DIR={openvino.__path__[0]}/cmake"
    for command in (
        ["cmake", "-S", EXAMPLE, "-B", tmp_path / "build", settings],
        ["cmake", "--build", tmp_path / "build"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    program = tmp_path / "build" / "sliding_windows"
    for size in ((150, 213), WINDOW, (64, 97), (40, 200), (30, 20)):
        pixels = write_image(tmp_path / "image.ppm", size)
        compiled = []
        for name in ("model.xml", "model.onnx"):
            words = [program, tmp_path / name, tmp_path / "image.ppm", tmp_path / "labels.pgm"]
            subprocess.run(words, check=True, capture_output=True)
            compiled.append(np.asarray(Image.open(tmp_path / "labels.pgm")))
        found = python_example(tmp_path / "model.xml", tmp_path / "image.ppm", tmp_path / "labels.png")
        assert found.shape == size
        np.testing.assert_array_equal(compiled[0], found)
        assert (compiled[1] == found).mean() > 0.999

        padding = [(0, max(whole - side, 0)) for whole, side in zip(WINDOW, size, strict=True)]
        images = processor(np.pad(pixels, [*padding, (0, 0)]), do_resize=False, return_tensors="pt")["pixel_values"]
        window = SlidingWindow(size=WINDOW, stride=(WINDOW[0] * 2 // 3, WINDOW[1] * 2 // 3))
        with torch.no_grad():
            wanted = model(images, sliding_window=window).logits[0].argmax(0).numpy()[: size[0], : size[1]]
        assert (found == wanted).mean() > 0.999 and len(np.unique(wanted)) > 1
        by_onnxruntime = python_example(tmp_path / "model.onnx", tmp_path / "image.ppm", tmp_path / "labels.png")
        assert (by_onnxruntime == found).mean() > 0.999

    for bad, message in ((b"P5\n1 1\n255\n0", "is no PPM file"), (b"P6\n9 9\n255\n0", "ends early")):
        (tmp_path / "bad.ppm").write_bytes(bad)
        words = [program, tmp_path / "model.xml", tmp_path / "bad.ppm", tmp_path / "bad.pgm"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and not (tmp_path / "bad.pgm").exists()
