# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The demo page: in a browser, as a visitor uses it, and its parts without a browser."""

import contextlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image
from typer.testing import CliRunner

from segtransformers import __version__, example_image_path, packaged_model_path
from segtransformers.cli import app
from segtransformers.cli.common import load_model

pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")

import gradio

from segtransformers.cli import demo_page as demo_module
from segtransformers.cli.demo_page import Demo, legend, named_models
from segtransformers.datasets.scenes import SCENE_CLASSES, draw_scene
from segtransformers.inference import InferenceProtocol, segment_image
from segtransformers.visualization import distinct_colours, label_image, palette_image

SPACE = Path(__file__).parents[1] / "space"
SPACE_KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
    *("short_description", "tags", "models", "datasets", "pinned", "suggested_hardware", "preload_from_hub"),
}
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
PATIENCE = 120  # seconds; the machine may be busy
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
]


def find(*names: str) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


CHROMIUM, DRIVER = find("chromium", "chromium-browser", "google-chrome"), find("chromedriver")


@contextlib.contextmanager
def serving(words, log, **environment):
    """Serve the page with a Python command and yield its address. The server must not print a traceback."""
    temporary = log.parent / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "SEGTRANSFORMERS_KERNELS": "off", "TMPDIR": str(temporary), **environment}
    with open(log, "w") as output:
        server = subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"The page is at (\S+)", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[1]
        assert "Traceback" not in log.read_text()
    finally:
        server.terminate()
        server.wait()
    left = {path.name for path in temporary.iterdir()}
    assert not {name for name in left if name.startswith(("gradio", "segtransformers", "aotinductor"))}, left


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of the page of the command, which has a second model that cannot be loaded."""
    models = ["--model", str(packaged_model_path()), "--model", "missing-model"]
    words = ["-m", "segtransformers", "demo", *models, "--no-browser"]
    with serving(words, tmp_path_factory.mktemp("server") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no chromium with its chromedriver (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra `test`)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = Path(options.experimental_options["prefs"]["download.default_directory"])
    yield driver
    driver.quit()


def wait_for(driver, condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, driver.find_element("tag name", "body").text
        time.sleep(0.1)
    return found


def one(driver, selector):
    """Wait for an element and return it."""
    return wait_for(driver, lambda: driver.find_elements("css selector", selector))[0]


@pytest.fixture
def page(browser, address):
    """Return the page, loaded anew."""
    browser.get(address)
    one(browser, "#segment")
    return browser


def upload(page, file):
    one(page, "#image input[type=file]").send_keys(str(file))
    one(page, "#image img")


def shown_error(page):
    return wait_for(page, lambda: "".join(one.text for one in page.find_elements("css selector", ".toast-body")))


def downloaded(page, button):
    """Click a button of the page and return the file that is downloaded."""
    before = set(page.downloads.iterdir())
    one(page, f"#{button}:not([disabled])").click()
    return wait_for(
        page, lambda: [path for path in set(page.downloads.iterdir()) - before if path.suffix == ".png"]
    ).pop()


def test_upload_segment_download(page, tmp_path):
    image = tmp_path / "photo.png"
    shutil.copy(example_image_path(), image)
    upload(page, image)
    one(page, "#segment").click()
    one(page, "#overlay img")
    said = one(page, "#legend .legend").text.split("\n")
    names, shares = said[::2], [float(share.removesuffix(" %")) for share in said[1::2]]
    assert set(names) <= set(SCENE_CLASSES) and shares == sorted(shares, reverse=True) and 99 < sum(shares) < 101

    _, wanted = draw_scene(141, (256, 384))  # the labels of the example
    file = downloaded(page, "labels")
    labels = np.asarray(Image.open(file))
    assert file.name == "photo-labels.png" and (labels == wanted).mean() > 0.95
    assert f"{100 * (labels == SCENE_CLASSES.index(names[0])).mean():.1f}" == str(shares[0])
    colours = Image.open(downloaded(page, "colours"))
    assert colours.mode == "P" and np.array_equal(np.asarray(colours), labels)
    assert not hosts(page) - {re.search("//([^/]+)", page.current_url)[1]}


def hosts(page):
    """Return the hosts that the browser sent requests to."""
    asked = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked |= set(re.findall("^(?:https?|wss?)://([^/]+)", message["params"]["request"]["url"]))
    return asked


def test_inference_options(page):
    """Windows, scales and flip are fields of the page."""
    upload(page, example_image_path())
    one(page, "#options button").click()
    one(page, "#window input, #window textarea").send_keys("96x128")
    one(page, "#scales input, #scales textarea").send_keys("0.5, 1")
    one(page, "#flip input").click()
    one(page, "#segment").click()
    one(page, "#overlay img")
    network, processor = load_model(str(packaged_model_path()), "cpu")
    with torch.inference_mode():
        wanted = segment_image(
            network,
            processor,
            example_image_path(),
            InferenceProtocol(scales=(0.5, 1.0), flip=True, window=(96, 128)),
        )
    labels = np.asarray(Image.open(downloaded(page, "labels")))
    assert (labels == wanted.numpy()).mean() > 0.999


def test_errors_are_messages(page, tmp_path):
    one(page, "#segment").click()
    assert "Choose an image first" in shown_error(page)

    page.refresh()
    upload(page, example_image_path())
    one(page, "#segment").click()
    one(page, "#labels:not([disabled])")
    one(page, "#options button").click()
    one(page, "#window input, #window textarea").send_keys("wide")
    one(page, "#segment").click()
    assert "Window size must be positive numbers" in shown_error(page)
    one(page, "#labels[disabled]")
    assert not page.find_elements("css selector", "#legend .legend")  # the results of the last image are gone

    page.refresh()
    upload(page, example_image_path())
    one(page, "#model input").click()
    wait_for(page, lambda: [item for item in page.find_elements("css selector", "[role=option]") if item.text])[
        -1
    ].click()
    one(page, "#segment").click()
    assert "Cannot load the model missing-model" in shown_error(page)

    page.refresh()
    broken = tmp_path / "broken.png"
    broken.write_bytes(example_image_path().read_bytes()[:200])
    upload(page, broken)
    one(page, "#segment").click()
    assert "Cannot read broken.png as an image" in shown_error(page)
    assert "Traceback" not in page.find_element("tag name", "body").text


@pytest.fixture(scope="module")
def demo():
    return Demo(named_models([]), device="cpu")


def test_files_of_labels_and_colours():
    labels = np.array([[0, 2], [1, 1]])
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert label_image(labels, 3).mode == "L" and np.array_equal(label_image(labels, 3), labels)
    assert np.array_equal(palette_image(labels, palette).convert("RGB"), np.asarray(palette, np.uint8)[labels])
    many = np.array([[0, 299]])
    assert label_image(many, 300).mode == "I;16" and np.array_equal(label_image(many, 300), many)
    assert palette_image(many, distinct_colours(300)).mode == "RGB"


def test_names_are_escaped():
    table = legend({0: "<b>sky</b>"}, {0: 0.75, 1: 0.25}, [[1, 2, 3], [4, 5, 6]])
    assert "&lt;b&gt;sky" in table and "rgb(1, 2, 3)" in table and "75.0 %" in table and ">1<" in table


def test_models_have_names(tmp_path):
    folders = [tmp_path / "one" / "model", tmp_path / "two" / "model"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert list(named_models([]).values()) == ["packaged"]
    named = named_models([*map(str, folders), "some/repository", "packaged"])
    assert named.pop("drawn scenes (packaged)") == "packaged"
    assert list(named) == ["model", str(folders[1]), "some/repository"] and named["model"] == str(folders[0])


def test_every_error_gets_a_message(demo, monkeypatch):
    """This includes unexpected errors."""
    image = str(example_image_path())
    (name,) = demo.models
    for error, message in [
        (RuntimeError("out of memory\nat 0x1"), "^Cannot segment this image: out of memory at 0x1$"),
        (KeyError("surprise"), "^Cannot segment this image: KeyError$"),
    ]:

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(demo_module, "segment_image", fail)
        with pytest.raises(gradio.Error) as raised:
            demo.segment(image, name, False, None, False, None)
        assert re.search(message, raised.value.message) and not raised.value.print_exception
    with pytest.raises(gradio.Error, match="There is no model"):
        demo.segment(image, "/etc", False, "", False, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((False, "100000", False, ""), "Scales: scales must be positive numbers, up to 16"),
        ((False, "4.5", False, ""), "at most 12 scales, up to 4"),
        ((False, ",".join(["1"] * 13), False, ""), "at most 12 scales"),
        ((False, "4", False, "5000"), "4096 x 2752 pixels at once are too many"),
        ((False, "4", False, "1"), "windows are too many for this page, which takes 5000: use larger ones"),
        ((True, "1", False, ""), "All tested scales and Scales exclude each other"),
    ],
)
def test_a_visitor_cannot_fill_the_memory(demo, options, message, tmp_path):
    """The options are refused before the image is scaled."""
    image = tmp_path / "large.png"
    Image.new("RGB", (1024, 688)).save(image)
    (name,) = demo.models
    _, processor = demo.load(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "do_resize", False)
        patch.setattr(demo_module, "segment_image", lambda *_: pytest.fail("it was segmented"))
        with pytest.raises(gradio.Error) as raised:
            demo.segment(str(image), name, *options)
    assert message in raised.value.message, raised.value.message


def test_scaled_images_are_limited(demo, tmp_path):
    image = tmp_path / "large.png"
    Image.new("RGB", (3000, 2000)).save(image)
    (name,) = demo.models
    _, processor = demo.load(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "do_resize", False)
        with pytest.raises(gradio.Error, match="at 6000 x 4000 pixels, and this page takes at most 16 million"):
            demo.segment(str(image), name, False, "2", False, "")


def test_many_threads_share_a_demo(demo, tmp_path):
    """Every thread gets the files of its own image and options."""
    (name,) = demo.models
    network, _ = demo.load(name)
    before = network.config.to_dict()
    fields = [
        (False, None, False, None),
        (False, "0.5", True, None),
        (False, None, False, "64"),
        (True, "", True, "96"),
    ]
    files = [tmp_path / f"{index}.png" for index in range(2 * len(fields))]
    for index, file in enumerate(files):
        Image.fromarray(draw_scene(index, (64, 96))[0]).save(file)

    def labels(index, options):
        return np.asarray(Image.open(demo.segment(str(files[index]), name, *options)[2]))

    jobs = list(enumerate(fields * 2))
    expected = [labels(*job) for job in jobs]
    start = threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        return labels(*job)

    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(run, jobs))
    for alone, together in zip(expected, found, strict=True):
        np.testing.assert_array_equal(alone, together)
    assert network.config.to_dict() == before


def test_old_files_are_deleted(demo):
    (name,) = demo.models
    options = (False, None, False, None)
    old, new = (Path(demo.segment(str(example_image_path()), name, *options)[2]) for _ in range(2))
    os.utime(old.parent, (0, 0))
    demo.segment(str(example_image_path()), name, *options)
    assert new.exists() and not old.parent.exists()


def test_space(tmp_path):
    """The folder of the Space serves the models of its variable."""
    shutil.copy(SPACE / "app.py", tmp_path / "app.py")
    shutil.copytree(packaged_model_path(), tmp_path / "my-model")
    settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "SEGTRANSFORMERS_MODELS": f"packaged {tmp_path / 'my-model'}"}
    with serving([tmp_path / "app.py"], tmp_path / "log", **settings) as address:
        page = urllib.request.urlopen(address, timeout=PATIENCE).read().decode()
    assert "packaged" in page and "my-model" in page


def test_metadata_and_requirements_of_the_space():
    """Keys and values are those of the Hub's reference for the configuration of Spaces."""
    about = SpaceCard.load(SPACE / "README.md").data.to_dict()
    assert about.keys() <= SPACE_KEYS and about["sdk"] == "gradio"
    assert (SPACE / about["app_file"]).is_file() and about["license"] == "apache-2.0"
    assert {about["colorFrom"], about["colorTo"]} <= SPACE_COLOURS and len(about["short_description"]) <= 60
    tomllib = pytest.importorskip("tomllib", reason="tomllib is part of Python from 3.11 on")
    project = tomllib.loads((SPACE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (gradio_needed,) = map(Requirement, project["optional-dependencies"]["demo"])
    assert gradio_needed.specifier.contains(about["sdk_version"])
    assert SpecifierSet(project["requires-python"]).contains(about["python_version"])
    index, needed = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert index.startswith("--extra-index-url https://download.pytorch.org/") and "[demo]" in needed
    assert Requirement(needed).specifier.contains(__version__)


def test_page_of_the_space_is_that_of_the_command(monkeypatch):
    launched = []
    monkeypatch.setattr(demo_module, "launch", launched.append)
    monkeypatch.delenv("SEGTRANSFORMERS_MODELS", raising=False)
    runpy.run_path(str(SPACE / "app.py"))
    assert launched == [[]]  # the packaged model
    assert isinstance(demo_module.build_page(Demo(named_models([]))), gradio.Blocks)


def test_command_says_what_is_missing(monkeypatch):
    done = CliRunner().invoke(app, ["demo", "--model", "nothing-here", "--no-browser"])
    assert done.exit_code == 1 and done.stderr.startswith("error: cannot load the model nothing-here")
    done = CliRunner().invoke(app, ["demo", "--device", "rocket", "--no-browser"])
    assert done.exit_code == 1 and done.stderr.startswith("error: --device rocket: torch has no such device")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["demo", "--port", port, "--no-browser"])
    assert done.exit_code == 1 and f"port {port} is taken" in done.stderr
    monkeypatch.delitem(sys.modules, "segtransformers.cli.demo_page")
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(app, ["demo", "--no-browser"])
    assert done.exit_code == 1 and "pip install 'segtransformers[demo]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--port", "99999"], 2, "65535"),
        (["--host", "no such host"], 1, "error: --host no such host is no address of this machine"),
        (["--host", "a" * 70], 1, "is no address of this machine"),
    ],
)
def test_wrong_addresses(words, status, message):
    result = CliRunner().invoke(app, ["demo", "--no-browser", *words])
    assert result.exit_code == status and message in result.stderr and "Traceback" not in result.stderr
