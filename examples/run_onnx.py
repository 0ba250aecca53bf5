# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Segment an image with an exported file, with numpy, pillow and onnxruntime only.

    segtransformers export --model MODEL --output model.onnx
    python run_onnx.py model.onnx photo.jpg classes.png

The image is resized to the size of the file, and the label map back to the size of the image. `sliding_windows` is for
images that are much larger than the file's.
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an .onnx file of `segtransformers export`, of one size")
    parser.add_argument("image")
    parser.add_argument("output", help="PNG file for the classes in their colours")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    # everything that a user of the file needs: size, normalisation, class names and colours
    about = json.loads(session.get_modelmeta().custom_metadata_map["segmentation.json"])
    if about["height"] is None or about["takes_pixels"] or about["output"] != "logits":
        parser.error("this example takes files without --dynamic-size, --takes-pixels and --result labels")

    image = Image.open(options.image).convert("RGB")
    pixels = np.asarray(image.resize((about["width"], about["height"]), Image.Resampling.BILINEAR))
    normalised = (pixels * about["rescale_factor"] - about["mean"]) / about["std"]
    batch = normalised.transpose(2, 0, 1)[None].astype(np.float32)
    (logits,) = session.run(None, {about["input"]: batch})  # (1, classes, height, width)
    labels = Image.fromarray(logits[0].argmax(0).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)

    for index, count in sorted(enumerate(labels.histogram()), key=lambda pair: -pair[1]):
        if count:
            print(f"{100 * count / (image.width * image.height):5.1f} %  {about['classes'][index]}")
    if about["palette"] is not None:
        labels.putpalette([value for colour in about["palette"] for value in colour])
    labels.save(options.output)


if __name__ == "__main__":
    main()
