# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A page to try models on images: `segtransformers demo`, and the Space in `space/` of the repository.

The page loads no fonts and no scripts from other hosts, and sends no telemetry.
"""

import contextlib
import dataclasses
import functools
import html
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# both before gradio is imported, which reads them in several places
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "GRADIO_TEMP_DIR" not in os.environ:  # gradio would leave the visitors' images in a folder of its own
    _folder = tempfile.TemporaryDirectory(prefix="segtransformers-demo-")  # removed when the process ends
    os.environ["GRADIO_TEMP_DIR"] = _folder.name

import gradio
import torch
from PIL import Image

from ..command_process import prepare_process
from ..escaping import html_text, one_line
from ..freed_memory import keep_freed_memory
from ..image_processing import label_map_classes
from ..inference import InferenceProtocol, segment_image, view_sizes
from ..models.layers.sliding_windows import window_origins
from ..packaged import example_image_path
from ..visualization import (
    Palette,
    class_areas,
    distinct_colours,
    draw_overlay,
    label_image,
    palette_image,
)
from .common import inference_protocol, load_model, read_image_file
from .errors import UserError

logger = logging.getLogger(__name__)

PACKAGED = "drawn scenes (packaged)"
MODELS_IN_MEMORY = 2
LARGEST_FILE = "100mb"
CLEANING_INTERVAL, FILE_LIFETIME = 600, 3600  # of the visitors' files that gradio keeps, in seconds
# a visitor must neither fill the memory of the machine nor occupy it for hours
LARGEST_SCALE, MOST_SCALES = 4, 12
MOST_PIXELS = 16_000_000  # of a scaled image
MOST_PIXELS_AT_ONCE = 4_000_000  # of a window, or of a whole image without windows
MOST_WINDOWS = 5000
LIMITS = (
    f"Limits of this page: {MOST_SCALES} scales up to {LARGEST_SCALE}, scaled images of {MOST_PIXELS // 10**6} million "
    f"pixels, {MOST_WINDOWS} windows of up to {MOST_PIXELS_AT_ONCE // 10**6} million pixels (as many for an image that "
    "is segmented whole)."
)
# on a phone the result is below the page's end
SHOW_RESULT = "() => { if (innerWidth < 768) document.querySelector('#overlay').scrollIntoView({behavior: 'smooth'}) }"
STYLE = """
.legend { display: grid; grid-template-columns: auto 1fr auto; gap: 4px 10px; align-items: center; }
.legend .swatch { width: 1em; height: 1em; border: 1px solid #808080; }
.legend .share { text-align: right; font-variant-numeric: tabular-nums; }
"""


def legend(names: Mapping[int, str], areas: Mapping[int, float], palette: Palette) -> str:
    """Return the classes of an image as HTML: colour, name and share, in the order of `areas`."""
    rows = [
        f'<span class="swatch" style="background: rgb{tuple(palette[index])}"></span>'
        f'<span class="name">{html_text(names.get(index, index))}</span>'
        f'<span class="share">{100 * share:.1f} %</span>'
        for index, share in areas.items()
    ]
    return f'<div class="legend">{"".join(rows)}</div>'


class Demo:
    """The work behind the page. Threads may share it.

    Args:
        models: folders or Hub ids by the name that the page shows.
        device: such as cpu or cuda; None takes a GPU if there is one.
    """

    def __init__(self, models: Mapping[str, str], device: str | None = None):
        self.models, self.device = dict(models), device
        self.load: Callable[[str], tuple[Any, Any]] = functools.lru_cache(MODELS_IN_MEMORY)(self._load)
        self.folder = tempfile.TemporaryDirectory(prefix="segtransformers-demo-")

    def _load(self, name: str) -> tuple[Any, Any]:
        return load_model(self.models[name], self.device, optimize=True)

    def segment(
        self, file: str | None, model: str, multi_scale: bool, scales: str | None, flip: bool, window: str | None
    ) -> tuple[Image.Image, str, str, str]:
        """Segment an image file with the options of the page's fields.

        Returns:
            the image with its classes drawn over it, the legend as HTML, and the paths of two PNG files: the label map,
            and the label map in colours.

        Raises:
            gradio.Error: for every error, with a message for the visitor.
        """
        try:
            return self._segment(file, model, multi_scale, (scales or "").strip(), flip, (window or "").strip())
        except UserError as error:
            message = _named_as_on_the_page(str(error))
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            message = f"cannot segment this image: {one_line(error) or type(error).__name__}"
        except Exception as error:
            logger.exception("an image could not be segmented")  # the traceback is for whoever runs the page
            message = f"cannot segment this image: {type(error).__name__}"
        message = one_line(message)
        raise gradio.Error(html.escape(message[:1].upper() + message[1:]), duration=None, print_exception=False)

    def _segment(
        self, file: str | None, model: str, multi_scale: bool, scales: str, flip: bool, window: str
    ) -> tuple[Image.Image, str, str, str]:
        if file is None:
            raise UserError("choose an image first, or the example")
        if model not in self.models:
            raise UserError(f"there is no model {model!r} here")
        try:
            image = read_image_file(Path(file))
        except UserError as error:  # the folder of an upload is of no interest
            raise UserError(str(error).replace(str(Path(file).parent) + os.sep, "")) from None
        network, processor = self.load(model)
        protocol = inference_protocol(processor, multi_scale, scales or None, flip, window or None, None)
        _check_limits(network, processor, image, protocol)
        with torch.inference_mode():
            labels = segment_image(network, processor, image, protocol).cpu().numpy()
        names = label_map_classes(network.config)
        palette = getattr(network.config, "palette", None) or distinct_colours(len(names))
        folder = self._folder_for_files()
        files = [folder / f"{Path(file).stem}-{kind}.png" for kind in ("labels", "colours")]
        for result, path in zip((label_image(labels, len(names)), palette_image(labels, palette)), files, strict=True):
            result.save(path)
        return (
            draw_overlay(image, labels, palette),
            legend(names, class_areas(labels), palette),
            str(files[0]),
            str(files[1]),
        )

    def _folder_for_files(self) -> Path:
        """Create a folder for the files of one image, and delete the older ones, which gradio has copied."""
        for folder in Path(self.folder.name).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another thread may delete it, too
                if time.time() - folder.stat().st_mtime > CLEANING_INTERVAL:
                    shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder.name))


def _named_as_on_the_page(message: str) -> str:
    """Replace the options of a command in an error message by the fields of the page."""
    fields = {"--multi-scale": "All tested scales", "--scales": "Scales", "--window": "Window size"}
    for option, field in fields.items():
        message = message.replace(option, field)
    return message


def _check_limits(network: Any, processor: Any, image: Image.Image, protocol: InferenceProtocol) -> None:
    """Refuse options that take more memory or time than a visitor may use.

    Raises:
        UserError: naming the limit.
    """
    scales = protocol.scales or (1.0,)
    if len(scales) > MOST_SCALES or max(scales) > LARGEST_SCALE:
        raise UserError(f"this page takes at most {MOST_SCALES} scales, up to {LARGEST_SCALE}")
    largest = dataclasses.replace(protocol, scales=None if protocol.scales is None else (max(scales),), flip=False)
    height, width = view_sizes(processor, (image.height, image.width), largest)[0]
    if height * width > MOST_PIXELS:
        raise UserError(
            f"the image would be segmented at {width} x {height} pixels, and this page takes at most "
            f"{MOST_PIXELS // 10**6} million: use smaller scales or a smaller image"
        )
    window = protocol.sliding_window(network)
    at_once = (height, width) if window is None else (min(window.size[0], height), min(window.size[1], width))
    if at_once[0] * at_once[1] > MOST_PIXELS_AT_ONCE:
        raise UserError(
            f"{at_once[1]} x {at_once[0]} pixels at once are too many for this page: use a window of at most "
            f"{MOST_PIXELS_AT_ONCE // 10**6} million pixels, such as 512"
        )
    if window is not None:
        sides = zip((height, width), window.size, window.stride, strict=True)
        count = math.prod(len(window_origins(*side)) for side in sides)
        if count > MOST_WINDOWS:
            raise UserError(f"{count} windows are too many for this page, which takes {MOST_WINDOWS}: use larger ones")


def build_page(demo: Demo) -> gradio.Blocks:
    """Build the page for a demo."""
    with gradio.Blocks(
        title="segtransformers",
        analytics_enabled=False,
        delete_cache=(CLEANING_INTERVAL, FILE_LIFETIME),
        fill_width=True,
    ) as page:
        gradio.Markdown(
            "# Semantic segmentation\nChoose an image and a model, and press *Segment*. Each pixel gets the colour of "
            "its class."
        )
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    label="Image",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=360,
                    elem_id="image",
                )
                # gradio would decode the upload, but `read_image_file` reads more kinds and names what is wrong
                image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
                model = gradio.Dropdown(list(demo.models), label="Model", elem_id="model")
                with gradio.Accordion("Inference options", open=False, elem_id="options"):
                    gradio.Markdown(
                        "Leave these as they are for the result that the model was tested with. Each of them takes "
                        f"more time. {LIMITS}",
                        elem_id="limits",
                    )
                    flip = gradio.Checkbox(
                        label="Mirrored image, too",
                        info="Segment the mirrored image as well and average both results.",
                        elem_id="flip",
                    )
                    multi_scale = gradio.Checkbox(
                        label="All tested scales",
                        info="Segment the image in every size that the model was tested in and average the results.",
                        elem_id="multi-scale",
                    )
                    scales = gradio.Textbox(
                        label="Scales",
                        info="Sizes of your own instead, as factors on the usual size of the image.",
                        placeholder="0.75, 1, 1.5",
                        elem_id="scales",
                    )
                    window = gradio.Textbox(
                        label="Window size",
                        info="The image is segmented in overlapping pieces of this size in pixels. Empty: the size "
                        "that the model was tested with.",
                        placeholder="512 or 512x1024",
                        elem_id="window",
                    )
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
                gradio.Examples([str(example_image_path())], image, label="Example: a drawn scene")
            with gradio.Column():
                overlay = gradio.Image(
                    label="Classes",
                    format="jpeg",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                )
                table = gradio.HTML(elem_id="legend")
                with gradio.Row():
                    labels = gradio.DownloadButton("Label map (PNG)", elem_id="labels", interactive=False)
                    colours = gradio.DownloadButton("Colours (PNG)", elem_id="colours", interactive=False)

        def run(*arguments: Any) -> tuple[Any, ...]:
            drawn, text, *files = demo.segment(*arguments)
            return drawn, text, *(gradio.DownloadButton(value=file, interactive=True) for file in files)

        def clear() -> tuple[Any, ...]:
            """Remove the results of the last image, which would else remain after an error."""
            return None, "", gradio.DownloadButton(interactive=False), gradio.DownloadButton(interactive=False)

        results = [overlay, table, labels, colours]
        button.click(clear, None, results, queue=False, show_progress="hidden", api_visibility="private").then(
            run,
            [image, model, multi_scale, scales, flip, window],
            results,
            show_progress_on=overlay,
            concurrency_limit=1,  # a model uses all cores and much memory
            api_name="segment",
        ).then(None, js=SHOW_RESULT, api_visibility="private")
    return page


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Return folders or Hub ids by the name that the page shows: of a folder its last part, if that is unique.

    "packaged" is the model that comes with the package, and the only one if `models` is empty.
    """
    named: dict[str, str] = {}
    for model in models or ["packaged"]:
        if model == "packaged" and not Path(model).exists():
            named[PACKAGED] = model
            continue
        short = Path(model).name if Path(model).is_dir() else model
        named[model if short in named else short] = model
    return named


def launch(
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    host: str | None = None,
    port: int | None = None,
    browser: bool = False,
    wait: bool = True,
) -> gradio.Blocks:
    """Serve the page.

    Args:
        models: folders or Hub ids; if empty, the packaged model. The first is loaded at once.
        device: such as cpu or cuda; None takes a GPU if there is one.
        host, port: address to listen at; None takes the settings of a Space, or 127.0.0.1 and a free port from 7860 on.
        browser: whether to open the page in a browser.
        wait: whether to return only after an interruption. Otherwise the server ends with the process, or with
            `close()`.

    Raises:
        UserError: if the first model cannot be loaded.
        OSError: if the port is taken.
    """
    if wait:
        prepare_process()  # also in a Space, whose files must go with its process
        keep_freed_memory()
    demo = Demo(named_models(models), device)
    demo.load(next(iter(demo.models)))
    page = build_page(demo)
    font = ["system-ui", "sans-serif"]
    page.queue(max_size=32)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        ssr_mode=False,
        theme=gradio.themes.Default(font=font, font_mono=["monospace"]).set(block_info_text_color="*neutral_600"),
        css=STYLE,
    )
    print(f"The page is at {page.local_url} (Ctrl+C ends it).", flush=True)
    if wait:
        page.block_thread()
    return page
