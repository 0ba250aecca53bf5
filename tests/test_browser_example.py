# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The example page segments an image in headless Chromium with a file of `segtransformers export`."""

import functools
import http.server
import re
import shutil
import statistics
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from segtransformers import SegmentationImageProcessor
from segtransformers.export import export_model
from segtransformers.packaged import example_image_path, packaged_model_path

EXAMPLE = Path(__file__).parents[1] / "examples" / "browser"
SIZE = (128, 192)
ROUNDS = 11


# slow: it exports the packaged model and installs onnxruntime-web
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_page_segments_a_dropped_image(tmp_path):
    selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra `test`)")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    shutil.copytree(EXAMPLE, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--silent"], cwd=tmp_path / "page", check=True, timeout=300)
    model = AutoModelForSemanticSegmentation.from_pretrained(packaged_model_path(), dtype=torch.float32).eval()
    processor = SegmentationImageProcessor.from_pretrained(packaged_model_path())
    file = tmp_path / "model.onnx"
    export_model(model, processor, file, size=SIZE, takes_pixels=True, result="labels", check=False)

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "page")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = selenium.webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    service = selenium.webdriver.ChromeService(shutil.which("chromedriver"))
    driver = selenium.webdriver.Chrome(options=options, service=service)
    try:
        driver.get(f"http://127.0.0.1:{server.server_port}/index.html")

        def status(text):
            WebDriverWait(driver, 120).until(
                lambda page: text in page.find_element(By.ID, "status").text,
                f"the page does not say {text!r}",
            )

        def choose(element, path):
            """Choose a file. The event of a click stands for the click on the button that opens the dialog."""
            driver.execute_script(
                "document.getElementById('status').textContent = '';"
                "document.getElementById(arguments[0]).dispatchEvent(new Event('click'))",
                element,
            )
            driver.find_element(By.ID, element).send_keys(str(path))

        choose("image", example_image_path())
        status("Choose a model file first")
        (tmp_path / "other.onnx").write_bytes(b"no model")
        choose("model", tmp_path / "other.onnx")
        status("cannot be loaded: this is no file of")
        for _ in range(2):  # the second time as after another export to the same file
            choose("model", file)
            status("Drop an image")
        (tmp_path / "text.png").write_text("no image")
        choose("image", tmp_path / "text.png")
        status("is no image that this browser can read")
        times = []
        for _ in range(ROUNDS):
            choose("image", example_image_path())
            status("Segmented in")
            times.append(int(re.search(r"in (\d+) ms", driver.find_element(By.ID, "status").text)[1]))
        threads = driver.execute_script("return ort.env.wasm.numThreads")
        print(  # see the docs
            f"an image of {SIZE[0]}x{SIZE[1]} pixels in the browser, {threads} threads: the first takes {times[0]} ms, "
            f"further ones {statistics.median(times[1:])} ms (median of {ROUNDS - 1})"
        )
        legend = driver.find_element(By.ID, "legend").text
        assert any(name in legend for name in model.config.id2label.values()), legend
        driver.save_screenshot(str(tmp_path / "page.png"))
    finally:
        driver.quit()
        server.shutdown()
