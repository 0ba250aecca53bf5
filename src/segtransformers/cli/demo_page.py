# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""A page to try models on pictures: `segtransformers demo`, or a Space.

For a Space of the Hub (SDK gradio), copy this file as `app.py`, put the line `segtransformers[demo]` into
`requirements.txt`, and name the models in the Space's variable `SEGTRANSFORMERS_MODELS`, with spaces between them; the
packaged model is there without it. This is why the file imports the package by its full name.

The page needs nothing from elsewhere: no fonts, no scripts, no telemetry.
"""

import functools
import html
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it at more than one place

import gradio
import numpy as np
import torch
from PIL import Image

from segtransformers.cli.common import UserError, load_model, read_picture, view_options
from segtransformers.inference import segment_image
from segtransformers.packaged import example_image_path, known_model
from segtransformers.visualization import Palette, class_areas, distinct_colours, draw_overlay

logger = logging.getLogger(__name__)

PACKAGED = "drawn scenes (packaged)"
MODELS_IN_MEMORY = 2
LARGEST_FILE = "100mb"
CLEANING, LIFE = 600, 3600  # seconds between cleanings, and that a visitor's files are kept
STYLE = """
.legend { display: grid; grid-template-columns: auto 1fr auto; gap: 4px 10px; align-items: center; }
.legend .swatch { width: 1em; height: 1em; border: 1px solid #808080; }
.legend .share { text-align: right; font-variant-numeric: tabular-nums; }
"""


def label_image(labels: np.ndarray) -> Image.Image:
    """A label map as a grey PNG whose values are the class indices: of 8 bits, or 16 where they need it."""
    return Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))


def palette_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """A label map in its colours: an indexed PNG, or RGB where there are more than 256 classes."""
    colours = np.asarray(palette, dtype=np.uint8)
    if labels.max(initial=0) >= 256 or len(colours) > 256:
        return Image.fromarray(colours[labels])
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette(colours.flatten().tolist())
    return image


def legend(names: Mapping[int, str], areas: Mapping[int, float], palette: Palette) -> str:
    """The classes in a picture as HTML: colour, name and share, largest first."""
    rows = [
        f'<span class="swatch" style="background: rgb{tuple(palette[index])}"></span>'
        f'<span class="name">{html.escape(str(names.get(index, index)))}</span>'
        f'<span class="share">{100 * share:.1f} %</span>'
        for index, share in areas.items()
    ]
    return f'<div class="legend">{"".join(rows)}</div>'


class Demo:
    """What the page does.

    Args:
        models: folders or Hub ids by the name that the page shows.
        device: such as cpu or cuda; None takes a GPU if there is one.
    """

    def __init__(self, models: Mapping[str, str], device: str | None = None):
        self.models, self.device = dict(models), device
        self.load: Callable[[str], tuple[Any, Any]] = functools.lru_cache(MODELS_IN_MEMORY)(self._load)
        self.folder = tempfile.TemporaryDirectory(prefix="segtransformers-demo-")

    def _load(self, name: str) -> tuple[Any, Any]:
        return load_model(self.models[name], self.device)

    def segment(
        self, file: str | None, model: str, multi_scale: bool, scales: str | None, flip: bool, window: str | None
    ) -> tuple[Image.Image, str, str, str]:
        """The picture under its classes, the legend, and the files of labels and colours.

        Raises:
            gradio.Error: for everything that goes wrong, with a message for the visitor.
        """
        try:
            return self._segment(file, model, multi_scale, (scales or "").strip(), flip, (window or "").strip())
        except UserError as error:
            message = str(error).replace("--", "")  # options of a command are fields here
        except (ValueError, RuntimeError, OSError, MemoryError) as error:  # too small a picture, too little memory
            message = f"cannot segment this picture: {' '.join(str(error).split())[:300] or type(error).__name__}"
        except Exception as error:
            logger.exception("a picture could not be segmented")  # this is for whoever runs the page
            message = f"cannot segment this picture: {type(error).__name__}"
        raise gradio.Error(html.escape(message[:1].upper() + message[1:]), duration=None, print_exception=False)

    def _segment(
        self, file: str | None, model: str, multi_scale: bool, scales: str, flip: bool, window: str
    ) -> tuple[Image.Image, str, str, str]:
        if file is None:
            raise UserError("drop a picture first, or click the example")
        if model not in self.models:
            raise UserError(f"there is no model {model!r} here")
        try:
            picture = read_picture(Path(file))
        except UserError as error:
            raise UserError(str(error).replace(str(Path(file).parent) + os.sep, "")) from None
        network, processor = self.load(model)
        options = view_options(processor, multi_scale, scales or None, flip, window or None, None)
        with torch.inference_mode():
            labels = segment_image(network, processor, picture, **options).cpu().numpy()
        names = network.config.id2label
        palette = getattr(network.config, "palette", None) or distinct_colours(network.config.num_labels)
        folder = Path(self.folder.name)
        for old in folder.iterdir():
            old.unlink()  # gradio has its own copies
        files = [folder / f"{Path(file).stem}-{kind}.png" for kind in ("labels", "colours")]
        for image, path in zip((label_image(labels), palette_image(labels, palette)), files, strict=True):
            image.save(path)
        return (
            draw_overlay(picture, labels, palette),
            legend(names, class_areas(labels), palette),
            str(files[0]),
            str(files[1]),
        )


def build_page(demo: Demo) -> gradio.Blocks:
    """The page around it."""
    with gradio.Blocks(
        title="segtransformers", analytics_enabled=False, delete_cache=(CLEANING, LIFE), fill_width=True
    ) as page:
        gradio.Markdown("# Semantic segmentation\nDrop a picture, choose a model, and see what is where.")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=360,
                    elem_id="picture",
                )
                # the file as it came: `read_picture` takes more kinds, and says what is wrong with one
                picture.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
                model = gradio.Dropdown(list(demo.models), label="Model", elem_id="model")
                with gradio.Accordion("How the picture is looked at", open=False, elem_id="how"):
                    window = gradio.Textbox(
                        label="Window",
                        info="Side or HEIGHTxWIDTH in pixels; empty: the model's own.",
                        elem_id="window",
                    )
                    scales = gradio.Textbox(
                        label="Scales",
                        info="Factors on the usual size that are averaged, such as 0.75, 1, 1.5; empty: 1.",
                        elem_id="scales",
                    )
                    multi_scale = gradio.Checkbox(
                        label="The scales that the model was tested at", elem_id="multi-scale"
                    )
                    flip = gradio.Checkbox(label="Average with the mirror image", elem_id="flip")
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
                gradio.Examples([str(example_image_path())], picture, label="Example: a drawn scene")
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
                    labels = gradio.DownloadButton("Label mask (PNG)", elem_id="labels", interactive=False)
                    colours = gradio.DownloadButton("Colours (PNG)", elem_id="colours", interactive=False)

        def run(*arguments: Any) -> tuple[Any, ...]:
            image, text, *files = demo.segment(*arguments)
            return image, text, *(gradio.DownloadButton(value=file, interactive=True) for file in files)

        def clear() -> tuple[Any, ...]:
            """So that what stands there after an error is not of another picture."""
            return None, "", gradio.DownloadButton(interactive=False), gradio.DownloadButton(interactive=False)

        results = [overlay, table, labels, colours]
        button.click(clear, None, results, queue=False, show_progress="hidden", api_visibility="private").then(
            run,
            [picture, model, multi_scale, scales, flip, window],
            results,
            show_progress_on=overlay,
            concurrency_limit=1,  # models take all cores, and much memory
            api_name="segment",
        )
    return page


def named_models(models: Sequence[str]) -> dict[str, str]:
    """The page's names of folders or Hub ids: the folder's own name where that is enough to tell them apart.

    "packaged" is the model that comes with the package; without any, it is the only one.
    """
    named: dict[str, str] = {}
    for model in models or ["packaged"]:
        if known_model(model) != model:
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
        models: folders or Hub ids; none takes the packaged model. The first is loaded at once.
        device: such as cpu or cuda; None takes a GPU if there is one.
        host, port: to listen at; None is 127.0.0.1 and a free port from 7860 on, or what a Space says.
        browser: open the page in a browser.
        wait: until it is interrupted. Otherwise the server ends with the process, or with `close()`.

    Raises:
        UserError: if the first model cannot be loaded.
        OSError: if the port is taken.
    """
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
        theme=gradio.themes.Default(font=font, font_mono=["monospace"]),
        css=STYLE,
    )
    print(f"The page is at {page.local_url} (Ctrl+C ends it).", flush=True)
    if wait:
        page.block_thread()
    return page


if __name__ == "__main__":
    launch(os.environ.get("SEGTRANSFORMERS_MODELS", "").split())
