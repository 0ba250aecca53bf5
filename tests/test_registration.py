# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`import segtransformers` is cheap, and transformers knows our classes afterwards, in every order of imports."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline

import segtransformers
from segtransformers import SegmentationImageProcessor
from segtransformers.hub.registration import BACKBONES, MODELS

# what a user may do once our classes are registered
CHECK = """
import segtransformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

stages = [f"stage{index}" for index in range(1, 5)]
tiny = dict(embed_dim=16, depths=[1] * 4, num_groups=[1, 2, 4, 8], out_features=stages)
backbone = AutoConfig.for_model("seg_internimage", **tiny)
assert type(AutoModel.from_config(backbone)) is segtransformers.InternImageBackbone
assert type(AutoBackbone.from_config(backbone)) is segtransformers.InternImageBackbone
model = AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model("seg_segformer", backbone_config=backbone))
assert type(model) is segtransformers.SegSegformerForSemanticSegmentation
assert type(AutoImageProcessor.from_pretrained(segtransformers.packaged_model_path())).__module__.startswith("segtr")
assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["seg_upernet"] == "SegUperNetForSemanticSegmentation"
"""


def run_python(code: str) -> str:
    """Run code in a process of its own and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Runs each code in a fork, so that the libraries below transformers are imported once for all. The result of a fork
# goes to the last line of its file.
FORKS = """
import os, sys, traceback
import scipy.special, timm, torch, torchvision
assert not any(name.partition(".")[0] in ("transformers", "segtransformers") for name in sys.modules)
for line in sys.stdin:
    path, code = eval(line)
    process = os.fork()
    if process == 0:
        output = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        try:
            exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
            print("done", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(process, 0)
    print(flush=True)
"""


@pytest.fixture(scope="module")
def run_fork(tmp_path_factory):
    """Return a function as [`run_python`] whose processes have torch and timm, but nothing of transformers."""
    if not hasattr(os, "fork"):
        yield run_python
        return
    folder = tmp_path_factory.mktemp("forks")
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(code: str) -> str:
            path = folder / f"{len(list(folder.iterdir()))}.txt"
            process.stdin.write(f"{(str(path), code)!r}\n")
            process.stdin.flush()
            process.stdout.readline()
            text = path.read_text()
            assert text.endswith("done\n"), text
            return text

        yield run
        process.stdin.close()


def test_a_failed_fork_fails_its_test(run_fork):
    with pytest.raises(AssertionError, match=r"1 / 0|ZeroDivisionError"):
        run_fork("1 / 0")


def test_the_import_takes_neither_torch_nor_transformers():
    code = "import json, sys; before = set(sys.modules); import segtransformers as s; dir(s); "
    code += "s.packaged_model_path(); print(json.dumps(sorted(set(sys.modules) - before)))"
    imported = {name.partition(".")[0] for name in json.loads(run_python(code))}
    assert not imported - {"segtransformers"} - sys.stdlib_module_names


@pytest.mark.parametrize(
    "first",
    [
        "import segtransformers",
        "from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoImageProcessor",
        "from transformers import AutoConfig",
        "import segtransformers.models.upernet.modeling_seg_upernet",
        # transformers imports its auto modules in the middle of these
        "import segtransformers; from transformers import PreTrainedModel",
        "import segtransformers; import transformers.models.upernet.modeling_upernet",
        "import segtransformers; import transformers.image_processing_backends",
    ],
)
def test_classes_are_registered_in_every_order(run_fork, first):
    run_fork(first + "\n" + CHECK)


def test_registration_follows_a_reload_of_transformers(run_fork):
    reload = """
import importlib.machinery
import segtransformers
from transformers.models.auto import configuration_auto
importlib.reload(configuration_auto)
assert configuration_auto.CONFIG_MAPPING["seg_upernet"] is segtransformers.SegUperNetConfig
importlib.reload(segtransformers)
assert configuration_auto.__spec__.loader is configuration_auto.__loader__
assert isinstance(configuration_auto.__loader__, importlib.machinery.SourceFileLoader)
"""
    run_fork(reload)


def test_registration_from_several_threads(run_fork):
    threads = """
import importlib, threading
import segtransformers
import transformers  # two threads that do this at once fail, with or without segtransformers
start = threading.Barrier(5)
errors = []

def load(name, attribute):
    start.wait()
    try:
        getattr(importlib.import_module(name), attribute)
    except BaseException as error:
        errors.append(error)

names = [("segtransformers", "SegUperNetConfig"), ("segtransformers.inference", "SegmentationPipeline"),
         ("transformers", "AutoConfig"), ("transformers", "AutoModel"), ("transformers", "PreTrainedModel")]
threads = [threading.Thread(target=load, args=name) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
"""
    run_python(threads + CHECK)


def test_registration_waits_for_an_auto_module_that_another_thread_imports(run_fork):
    slow_import = """
import importlib.machinery, sys, threading, time
import transformers

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "transformers.models.auto.modeling_auto":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (begun.set(), time.sleep(0.5), execute(module))
            return spec

begun = threading.Event()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=lambda: transformers.AutoModel)
thread.start()
begun.wait()
import segtransformers
thread.join()
"""
    run_fork(slow_import + CHECK)


def test_names_that_somebody_else_has_registered_do_not_break_the_import(run_fork):
    taken = """
from transformers import AutoConfig, PreTrainedConfig

class Theirs(PreTrainedConfig):
    model_type = "seg_upernet"

AutoConfig.register("seg_upernet", Theirs)
"""
    run_fork(taken + CHECK)


def test_the_auto_classes_import_no_model_before_one_is_used():
    code = """
import sys
import segtransformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert "seg_upernet" in CONFIG_MAPPING
assert not any(name.startswith(("segtransformers.models", "transformers.models.seg_")) for name in sys.modules)
sys.modules["timm"] = None  # as if it were not installed
try:
    CONFIG_MAPPING["seg_vit_adapter"]
except ImportError as error:
    print(error)
"""
    assert "timm" in run_python(code)


@pytest.mark.parametrize("names", MODELS, ids=lambda names: names.config)
def test_the_table_names_public_classes_of_one_model(names):
    config_class, model_class = getattr(segtransformers, names.config), getattr(segtransformers, names.model)
    assert config_class.model_type == names.model_type and model_class.config_class is config_class
    assert type(AutoConfig.for_model(names.model_type)) is config_class


@pytest.mark.parametrize("names", BACKBONES, ids=lambda names: names.config)
def test_auto_model_knows_the_backbones(names):
    tiny = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2}
    if names.model_type == "seg_internimage":
        tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}
    if names.model_type == "seg_swin":
        tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    config = getattr(segtransformers, names.config)(**tiny)
    for auto_class in (AutoModel, AutoBackbone):
        assert type(auto_class.from_config(config)) is getattr(segtransformers, names.model)


def test_image_feature_extraction_takes_a_saved_backbone(tmp_path):
    config = segtransformers.InternImageConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8], out_features=["stage1", "stage4"]
    )
    backbone = segtransformers.InternImageBackbone(config).eval()
    backbone.save_pretrained(tmp_path)
    SegmentationImageProcessor(do_resize=False).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    extractor = pipeline("image-feature-extraction", model=str(tmp_path))
    feature_maps = extractor(image, return_tensors=True)
    assert [tuple(feature_map.shape) for feature_map in feature_maps] == [(1, 16, 16, 24), (1, 128, 2, 3)]
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    with torch.no_grad():
        expected = backbone(**inputs).feature_maps
    assert all(torch.equal(*pair) for pair in zip(feature_maps, expected, strict=True))
