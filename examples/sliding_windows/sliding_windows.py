# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segment an image of any size in overlapping windows, with numpy and onnxruntime or OpenVINO.

    segtransformers export --takes-pixels --output model.onnx
    python sliding_windows.py model.onnx image.jpg labels.png

The file takes 8-bit RGB images of one size, the window. The logits of a pixel are the mean over the windows that cover
it, as in training and evaluation of models with windows. `sliding_windows.cpp` does the same.
"""

import sys

import numpy as np
from PIL import Image


def load(path):
    """Return a function from images `(1, height, width, 3)` to logits `(1, classes, height, width)`, and its shape."""
    if path.endswith(".xml"):
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(path, "CPU", settings)
        return (lambda image: model(image)[0]), list(model.input(0).shape)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    return (lambda image: session.run(None, {entry.name: image})[0]), entry.shape


def origins(side, window, stride):
    """Return the first pixels of the windows along one side. The last window ends with the image."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, side - window), 0) for index in range(count)]


def segment(run, window, stride, image):
    """Return the label map of an image (height, width, 3)."""
    height, width = image.shape[:2]
    # an image smaller than the window gets black pixels at the right and the bottom
    padding = [(0, max(whole - side, 0)) for whole, side in zip(window, (height, width), strict=True)]
    image = np.pad(image, [*padding, (0, 0)])
    sums = counts = None
    for y in origins(image.shape[0], window[0], stride[0]):
        for x in origins(image.shape[1], window[1], stride[1]):
            logits = run(np.ascontiguousarray(image[None, y : y + window[0], x : x + window[1]]))[0]
            if sums is None:
                sums = np.zeros((len(logits), *image.shape[:2]), np.float32)
                counts = np.zeros(image.shape[:2], np.float32)
            sums[:, y : y + window[0], x : x + window[1]] += logits
            counts[y : y + window[0], x : x + window[1]] += 1
    return (sums / counts).argmax(0)[:height, :width].astype(np.uint8)


def main(model, image, labels):
    run, shape = load(model)
    if len(shape) != 4 or shape[3] != 3 or not all(isinstance(side, int) for side in shape):
        sys.exit(f"error: {model} must take images (1, height, width, 3): export it with --takes-pixels")
    window = shape[1:3]
    stride = [side * 2 // 3 for side in window]
    Image.fromarray(segment(run, window, stride, np.asarray(Image.open(image).convert("RGB")))).save(labels)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit("usage: sliding_windows.py MODEL IMAGE LABELS")
