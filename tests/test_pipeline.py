# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The pipeline of transformers on our models, our own pipeline, and sliding windows."""

import dataclasses
import logging
import math
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from test_seg_upernet import small_head
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from segtransformers import (
    SegmentationImageProcessor,
    SegmentationPipeline,
    SegUperNetForSemanticSegmentation,
    example_image_path,
    packaged_model_path,
)
from segtransformers.datasets.reading import read_image
from segtransformers.inference import InferenceProtocol, segment_image, segment_with_confidence
from segtransformers.models.layers.sliding_windows import SlidingWindow, slide, slide_bands, window_origins

NAMES = ["sky", "wall", "floor", "tree", "car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    config = small_head(inference_mode="slide", window_size=64, window_stride=43)
    config.id2label = dict(enumerate(NAMES))
    SegUperNetForSemanticSegmentation(config).save_pretrained(path)
    SegmentationImageProcessor(size={"shortest_edge": 96, "longest_edge": 256}).save_pretrained(path)
    return str(path)


def random_image(mode="RGB", size=(150, 100)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def check(segments, size):
    total = np.zeros((size[1], size[0]), int)
    for segment in segments:
        assert segment["label"] in NAMES
        assert segment["mask"].size == size
        total += np.asarray(segment["mask"]) == 255
    assert (total == 1).all()  # every pixel has exactly one class


def test_pipeline(folder, caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.INFO):
        segmenter = pipeline("image-segmentation", model=folder)
        check(segmenter(random_image()), (150, 100))
    assert "not supported" not in caplog.text
    assert type(segmenter.model) is SegUperNetForSemanticSegmentation
    assert type(segmenter.image_processor) is SegmentationImageProcessor


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_pipeline_on_odd_modes(folder, mode):
    check(pipeline("image-segmentation", model=folder)(random_image(mode)), (150, 100))


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (33, 700)])
def test_pipeline_on_odd_sizes(folder, size):
    check(pipeline("image-segmentation", model=folder)(random_image(size=size)), size)


def test_pipeline_in_batches(folder):
    segmenter = pipeline("image-segmentation", model=folder)
    images = [random_image(), random_image().rotate(180), random_image().rotate(180), random_image(), random_image()]
    one_by_one, batched = segmenter(images), segmenter(images, batch_size=4)
    assert len(batched) == 5
    for alone, together in zip(one_by_one, batched, strict=True):
        check(together, (150, 100))
        assert [segment["label"] for segment in alone] == [segment["label"] for segment in together]
        for first, second in zip(alone, together, strict=True):
            assert (np.asarray(first["mask"]) != np.asarray(second["mask"])).mean() < 1e-3


def test_pipeline_turns_images_as_their_exif_data_say(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    random_image().save(tmp_path / "upright.jpg", exif=exif)
    check(pipeline("image-segmentation", model=folder)(str(tmp_path / "upright.jpg")), (100, 150))


def ours(folder, **options):
    return pipeline("image-segmentation", model=folder, pipeline_class=SegmentationPipeline, **options)


def label_map(segments) -> np.ndarray:
    result = np.full(np.asarray(segments[0]["mask"]).shape, 255)
    for segment in segments:
        result[np.asarray(segment["mask"]) == 255] = NAMES.index(segment["label"])
    return result


def test_our_pipeline_without_options_is_transformers_own(folder):
    plain, segmenter = pipeline("image-segmentation", model=folder), ours(folder)
    for image in (random_image(), random_image("L", size=(33, 70))):
        check(segmenter(image), image.size)
        assert (label_map(segmenter(image)) == label_map(plain(image))).all()
        assert {segment["score"] for segment in plain(image)} == {None}


@pytest.mark.parametrize("options", [{}, {"flip": True}])
def test_scores_are_mean_confidences(folder, options):
    segmenter, image = ours(folder, **options), random_image()
    labels, confidence = segment_with_confidence(
        segmenter.model, segmenter.image_processor, image, InferenceProtocol(**options)
    )
    segments = segmenter([image, image.rotate(180), image], batch_size=2)[2]
    assert len(segments) == len(labels.unique()) > 1
    for segment in segments:
        own = confidence[labels == NAMES.index(segment["label"])]
        assert segment["score"] == pytest.approx(own.mean().item(), abs=1e-6) and 1 / len(NAMES) < segment["score"] < 1


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"scales": [0.75, 1.25]},
        {"multi_scale": True},
        {"multi_scale": True, "flip": False},
        {"window": [48, 48], "stride": [32, 32]},
        {"window": [48, 64], "flip": True},
    ],
)
def test_options_of_our_pipeline(folder, options):
    """Options may be given at construction or with each call."""
    segmenter, image = ours(folder), random_image()
    changes = dict(options)
    several = changes.pop("multi_scale", False)
    protocol = InferenceProtocol.multi_scale(segmenter.image_processor) if several else InferenceProtocol()
    protocol = dataclasses.replace(protocol, **changes)
    labels = segment_image(segmenter.model, segmenter.image_processor, image, protocol).numpy()
    assert (label_map(segmenter(image, **options)) == labels).all()
    assert (label_map(ours(folder, **options)(image)) == labels).all()
    assert (label_map(segmenter(image)) != labels).any()  # options of a call do not stay


def test_our_pipeline_takes_batches_of_any_sizes(folder, capsys):
    segmenter = ours(folder, flip=True)
    images = [
        random_image(),
        random_image(size=(120, 90)),
        random_image().rotate(180),
        random_image(size=(30, 44)),
        random_image(),
    ]
    one_by_one = segmenter(images)
    shapes = []
    hook = segmenter.model.backbone.register_forward_pre_hook(lambda _, args: shapes.append(len(args[0])))
    batched = segmenter(images, batch_size=4, progress=True)
    hook.remove()
    assert max(shapes) == 2 and len(batched) == 5
    for alone, together, image in zip(one_by_one, batched, images, strict=True):
        check(together, image.size)
        assert (label_map(alone) != label_map(together)).mean() < 1e-3
    assert "5/5" in capsys.readouterr().err
    streamed = list(segmenter(one for one in images))
    assert [segment["label"] for segment in streamed[1]] == [segment["label"] for segment in one_by_one[1]]


@pytest.mark.slow  # half a minute; test_inference.py shares a model among threads
def test_many_threads_share_our_pipeline(folder):
    segmenter, images = ours(folder), [random_image(), random_image(size=(120, 90))]
    before = segmenter.model.config.to_dict()
    options = [
        {},
        {"flip": True},
        {"scales": [0.75, 1.25]},
        {"window": (48, 48)},
        {"window": (48, 64), "flip": True},
        {"multi_scale": True},
        {"batch_size": 2},
        {"scales": [0.5], "progress": True},
    ]
    expected = [segmenter(images, **one) for one in options]
    start = threading.Barrier(len(options))

    def run(one):
        start.wait()
        return segmenter(images, **one)

    with ThreadPoolExecutor(len(options)) as pool:
        found = list(pool.map(run, options))
    for alone, together in zip(expected, found, strict=True):
        for first, second in zip(alone, together, strict=True):
            assert (label_map(first) == label_map(second)).all()
    assert segmenter.model.config.to_dict() == before


@pytest.mark.parametrize("pipeline_class", [None, SegmentationPipeline])
def test_pipelines_keep_the_brightness_of_16_and_12_bits(folder, pipeline_class, tmp_path):
    """As `segment_image` and training do, which read files with `read_image`."""
    segmenter, grey = pipeline("image-segmentation", model=folder, pipeline_class=pipeline_class), random_image("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    (tmp_path / "12.tif").write_bytes(tiff_of_12_bits(np.asarray(grey)))
    expected = label_map(segmenter(grey))
    for image in (deep, str(tmp_path / "deep.png"), str(tmp_path / "12.tif"), Image.open(tmp_path / "12.tif")):
        assert (label_map(segmenter(image)) == expected).all()
    for file in ("deep.png", "12.tif"):
        assert np.array_equal(np.asarray(read_image(tmp_path / file, file)), np.dstack([np.asarray(grey)] * 3))


def test_the_pipeline_of_other_models_is_transformers_own():
    """Images reach other image processors as before."""
    config = SegformerConfig(num_labels=2, hidden_sizes=[8] * 4, decoder_hidden_size=8, depths=[1] * 4)
    model = SegformerForSemanticSegmentation(config).eval()
    processor = SegformerImageProcessor(size={"height": 32, "width": 32})
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    deep = Image.fromarray(np.full((40, 50), 40_000, np.uint16))
    expected = processor(deep.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(segmenter.preprocess(deep)["pixel_values"], expected)


def tiff_of_12_bits(grey: np.ndarray) -> bytes:
    """Return a TIFF file with the values of a grey image as 12 bits. Its width must be even."""
    values = (grey.astype(np.uint32) * 4095 + 254) // 255
    pairs = values[:, ::2] << 12 | values[:, 1::2]
    data = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], -1).astype(np.uint8).tobytes()
    height, width = grey.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_our_pipeline_reads_in_other_processes(folder):
    images = [random_image(), random_image(size=(120, 90))]
    found = ours(folder, num_workers=1)(images, batch_size=2)
    assert [segments[0]["mask"].size for segments in found] == [(150, 100), (120, 90)]


def test_our_pipeline_names_unknown_options(folder):
    with pytest.raises(TypeError, match="takes no scale: its options are multi_scale, scales, flip"):
        ours(folder)(random_image(), scale=[1.0])
    with pytest.raises(ValueError, match="stride must not exceed window"):
        ours(folder, window=(64, 64))(random_image(), stride=(65, 64))
    with pytest.raises(ValueError, match="subtask must be 'semantic'"):
        ours(folder)(random_image(), subtask="panoptic")


def test_pipeline_of_a_repository(folder, tmp_path):
    """The pipeline is declared under a task name of its own, so the plain pipeline needs no trust."""
    SegUperNetForSemanticSegmentation.from_pretrained(folder).save_pretrained(tmp_path)
    SegmentationImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert type(pipeline("image-segmentation", model=str(tmp_path))).__name__ == "ImageSegmentationPipeline"
    declared = pipeline("semantic-segmentation", model=str(tmp_path), trust_remote_code=True)
    assert isinstance(declared, SegmentationPipeline)
    assert (label_map(declared(random_image(), flip=True)) == label_map(ours(folder)(random_image(), flip=True))).all()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("semantic-segmentation", model=str(tmp_path))


@pytest.mark.parametrize(
    ("size", "window", "stride", "expected"),
    [
        (160, 64, 43, [0, 43, 86, 96]),
        (64, 64, 43, [0]),
        (65, 64, 43, [0, 1]),
        (40, 64, 43, [0]),
        (128, 64, 64, [0, 64]),
        (129, 64, 64, [0, 64, 65]),
    ],
)
def test_window_origins(size, window, stride, expected):
    assert window_origins(size, window, stride) == expected


def test_every_pixel_is_the_mean_over_its_windows():
    images = torch.randn(2, 3, 70, 50)
    seen = []

    def forward(windows):
        seen.append(tuple(windows.shape))
        return windows.mean(dim=(2, 3), keepdim=True).expand(-1, -1, *windows.shape[2:])

    expected, counts = torch.zeros(2, 3, 70, 50), torch.zeros(70, 50)
    for y in (0, 20, 38):
        for x in (0, 20, 26):
            counts[y : y + 32, x : x + 24] += 1
            expected[:, :, y : y + 32, x : x + 24] += images[:, :, y : y + 32, x : x + 24].mean((2, 3), keepdim=True)
    for batch in (1, 4, 100):
        seen.clear()
        torch.testing.assert_close(slide(forward, images, SlidingWindow((32, 24), (20, 20), batch)), expected / counts)
        assert {shape[1:] for shape in seen} == {(3, 32, 24)} and max(shape[0] for shape in seen) == 2 * min(batch, 9)


@pytest.mark.parametrize(
    ("blend", "margin"), [("cosine", 0), ("gaussian", 0), ("mean", 4), ("gaussian", 6), ("cosine", 2)]
)
@pytest.mark.parametrize("size", [(70, 50), (32, 90), (20, 24), (10, 10)])
def test_weighted_windows(blend, margin, size):
    images = torch.randn(2, 3, *size).double()

    def forward(windows):
        return windows.mean(dim=(2, 3), keepdim=True) * torch.linspace(1, 2, windows.shape[3]).double() + windows

    def weight(position, length, is_first, is_last):
        if (position < margin and not is_first) or (position >= length - margin and not is_last):
            return 0.0
        x = (position + 0.5) / length
        return {"mean": 1.0, "cosine": math.sin(math.pi * x), "gaussian": math.exp(-32 * (x - 0.5) ** 2)}[blend]

    window = SlidingWindow((32, 24), (20, 12), 3, blend=blend, margin=margin)
    total, sums = torch.zeros_like(images), torch.zeros(size).double()
    for _, rows, columns in window.indices(size):
        weights = [
            torch.tensor(
                [
                    weight(index, part.stop - part.start, part.start == 0, part.stop == side)
                    for index in range(part.stop - part.start)
                ]
            ).double()
            for part, side in ((rows, size[0]), (columns, size[1]))
        ]
        own = weights[0][:, None] * weights[1]
        total[..., rows, columns] += own * forward(images[..., rows, columns])
        sums[rows, columns] += own
    assert sums.min() > 0
    merged = slide(forward, images, window)
    torch.testing.assert_close(merged, total / sums, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.cat(list(slide_bands(forward, images, window)), dim=2), merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blend": "linear"}, "blend must be one of mean, cosine, gaussian, got 'linear'"),
        ({"margin": -1}, "margin must be a whole number"),
        ({"margin": 7}, "margin must be at most half of size minus stride"),
    ],
)
def test_wrong_blends_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow((32, 32), (20, 20), **options)
    if "margin must be at most" not in message:
        with pytest.raises(ValueError, match=message):
            InferenceProtocol(**options)


def test_windows_that_leave_gaps_are_refused():
    with pytest.raises(ValueError, match="must not exceed window_size"):
        SlidingWindow((32, 32), (33, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((32, 32), (0, 32)), r"stride of a window must be two whole numbers .* from 1 to 65536, got \(0, 32\)"),
        (((32.5, 32), (32, 32)), "size of a window must be two whole numbers"),
        ((32, 32), "size of a window must be two whole numbers .* got 32"),
        (((32, 32), (32, 32), 1.5), "window_batch_size must be a whole number from 1 to 65536, got 1.5"),
    ],
)
def test_windows_of_anything_but_whole_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow(*arguments)


@pytest.mark.parametrize("size", [(96, 160), (40, 160), (160, 40), (65, 64)])
def test_model_slides_in_evaluation_only(size):
    config = small_head(inference_mode="slide", window_size=64, window_stride=43, window_batch_size=3)
    model = SegUperNetForSemanticSegmentation(config).double().eval()
    shapes = []
    model.backbone.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    labels = torch.randint(5, (2, *size))
    with torch.no_grad():
        outputs = model(images, labels=labels, output_hidden_states=True)
        assert {shape[2:] for shape in shapes} == {(min(64, size[0]), min(64, size[1]))}
        expected = torch.nn.functional.cross_entropy(outputs.logits, labels)
        torch.testing.assert_close(outputs.loss.double(), expected.double(), rtol=1e-6, atol=1e-6)
        assert outputs.logits.shape == (2, 5, *size) and outputs.hidden_states is None
        shapes.clear()
        model.train()(images, labels=labels)
        assert [shape[2:] for shape in shapes] == [size]
        shapes.clear()
        small = images[:, :, :40, :40]
        assert model.eval()(small).logits.shape == (2, 5, *small.shape[2:]) and shapes == [(2, 3, *small.shape[2:])]


def test_a_pipeline_loads_by_its_arguments():
    """transformers drops `dtype`, and calls a processor that it got as text or not at all."""
    folder = packaged_model_path()
    assert SegmentationPipeline(folder).model.dtype == torch.float32
    for name in ("dtype", "torch_dtype"):
        loaded = SegmentationPipeline(folder, **{name: torch.bfloat16}, image_processor=str(folder))
        assert loaded.model.dtype == torch.bfloat16
        assert isinstance(loaded.image_processor, SegmentationImageProcessor)
    with pytest.raises(ValueError, match="image_processor is missing: pass the image processor of the model"):
        SegmentationPipeline(loaded.model)


def test_a_pipeline_optimizes_the_model_that_it_loads():
    folder, image = packaged_model_path(), str(example_image_path())
    loaded = SegmentationPipeline(folder)
    assert loaded.model.is_optimized
    assert not SegmentationPipeline(str(folder), optimize=False).model.is_optimized
    plain = pipeline("image-segmentation", model=str(folder), pipeline_class=SegmentationPipeline)
    assert not plain.model.is_optimized
    copied = SegmentationPipeline(plain.model, image_processor=plain.image_processor, optimize=True)
    assert copied.model.is_optimized and not plain.model.is_optimized
    expected = [(segment["label"], np.asarray(segment["mask"])) for segment in plain(image)]
    for segmenter in (loaded, copied):
        segments = segmenter(image)
        assert [segment["label"] for segment in segments] == [label for label, _ in expected]
        for segment, (_, mask) in zip(segments, expected, strict=True):
            assert (np.asarray(segment["mask"]) != mask).mean() < 1e-4
