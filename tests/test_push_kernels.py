# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Push the compiled operators to a Hub, and load them with the real `kernels` package from exactly this publisher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKENS, client_environment, running_hub
from test_vit_adapter import small_config
from typer.testing import CliRunner

from segtransformers import ViTAdapterBackbone
from segtransformers.cli import app
from segtransformers.hub import kernel_publishing
from segtransformers.hub.publishing import PublishingError, can_push_kernels
from segtransformers.operators import dispatcher

WRITER = next(token for token, name in TOKENS.items() if name == "writer")
PROJECT = Path(__file__).parents[1] / "kernels" / "deformable-ops"
NAME = "writer/deformable-ops"

LOAD = """
import json, sys
import kernels, torch
from kernels._rust import Digest, Metadata
from pathlib import Path

name, commit, folder = sys.argv[1:]

def refused(**options):
    try:
        kernels.get_kernel(name, **options)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    raise AssertionError(f"{options} should be refused")

# only exactly the named publisher, and only a version that exists
assert "trust_remote_code" in refused(version=1)
assert "trust_remote_code" in refused(version=1, trust_remote_code=["writer/other", "writer"])
assert "Version 2 not found" in refused(version=2, trust_remote_code=[name])

ops = kernels.get_kernel(name, version=1, trust_remote_code=[name])
variant = Path(ops.__file__).parent
metadata = Metadata.read_from_file(variant / "metadata.json")
metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, variant))
assert commit in str(variant) and metadata.version == 1
assert kernels.get_kernel(name, revision=commit, trust_remote_code=[name]) is ops
assert {"layers", "ms_deform_attn", "dcnv3", "dcnv4"} <= set(ops.__all__)

from torch.profiler import profile
from segtransformers import ViTAdapterBackbone
from segtransformers.operators import compiled_operators

model, images = ViTAdapterBackbone.from_pretrained(folder).eval(), torch.randn(1, 3, 64, 96)
with torch.no_grad(), compiled_operators("off"):
    expected = model(images).feature_maps
layer = "MultiScaleDeformableAttention"
repository = kernels.LayerRepository(name, layer_name=layer, version=1, trust_remote_code=[name])
with kernels.use_kernel_mapping({layer: {"cpu": repository}}, inherit_mapping=False):
    kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
with torch.no_grad(), compiled_operators("off"), profile() as calls:
    result = model(images).feature_maps
assert any(f"{metadata.id}::ms_deform_attn" == event.key for event in calls.key_averages())
assert all(torch.allclose(*pair, atol=1e-4, rtol=1e-4) for pair in zip(result, expected))
print("kernelized")
"""
DISPATCH = """
import json, os, sys, urllib.error, urllib.request
from segtransformers.operators import compiled_operators, dispatcher

for pinned in json.loads(sys.argv[1]):
    os.environ["SEGTRANSFORMERS_KERNELS_REPO"] = pinned
    dispatcher.reset()
    with compiled_operators("auto"):
        kernel = dispatcher.find_kernel()
        print(json.dumps([kernel.origin if kernel else None, dispatcher._state.problems]))
    try:  # a request that separates those of the steps
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/api/whoami-v2")
    except urllib.error.HTTPError:
        pass
"""


@pytest.fixture(scope="module")
def publishable(kernel_build, tmp_path_factory):
    """A build that passes for a portable one. A portable build takes longer, and another package to compile."""
    folder = tmp_path_factory.mktemp("publishable")
    shutil.copytree(kernel_build / "build", folder / "build", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def local_symbols(monkeypatch):
    symbols = dict.fromkeys(kernel_publishing.NEWEST_SYMBOLS, (9,))
    monkeypatch.setattr(kernel_publishing, "NEWEST_SYMBOLS", symbols)


@pytest.fixture
def hub(monkeypatch):
    """A Hub with nothing, and huggingface_hub in this process as a client of it that may write."""
    if not can_push_kernels():
        pytest.skip(f"huggingface_hub {huggingface_hub.__version__} makes no commits in repositories of kernels")
    original = huggingface_hub.HfApi.__init__

    def init(self, **options):
        original(self, **{"endpoint": hub.url, **options})

    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(huggingface_hub.HfApi, "__init__", init)
        yield hub


def in_a_process(code: str, hub, folder: Path, *arguments: str, **variables: str) -> str:
    environment = client_environment(hub, folder, None) | {"HF_HUB_OFFLINE": "0", **variables}
    environment.pop("SEGTRANSFORMERS_KERNELS", None)
    environment.pop("LOCAL_KERNELS", None)
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_pushed_kernel_is_loaded_by_the_kernels_package(hub, publishable, local_symbols, tmp_path):
    result = CliRunner().invoke(app, ["push-kernels", NAME, "--build", str(publishable)])
    assert result.exit_code == 0, result.output
    repository = hub.repositories[f"kernels:{NAME}"]
    commit = repository.heads["v1"]
    assert f"pushed {NAME}@{commit}" in result.stdout
    files = repository.trees[commit]
    variants = {path.name for path in (publishable / "build").iterdir()}
    assert {name.split("/")[1] for name in files if name.startswith("build/")} == variants
    assert not any("__pycache__" in name for name in files)
    assert repository.files["README.md"] == files["README.md"] and "build" not in "".join(repository.files)
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card and f'get_kernel("{NAME}", version=1' in card and "{{" not in card
    assert "Functions: `dcnv3`, `dcnv4`, `ms_deform_attn`, `ms_deform_attn_fused`." in card
    assert "Layers: `MultiScaleDeformableAttention`, `DeformableConvolutionV3`, `DeformableConvolutionV4`." in card

    ViTAdapterBackbone(small_config()).save_pretrained(tmp_path / "model")
    assert "kernelized" in in_a_process(LOAD, hub, tmp_path, NAME, commit, str(tmp_path / "model"))

    # the dispatcher, in one process: by version and by commit, and a file that was changed after the build
    changed = dict(files)
    name = next(name for name in files if name.endswith("functions.py"))
    for variant in variants:
        changed[f"build/{variant}/functions.py"] = files[name] + b"\n# changed\n"
    hub.create("kernels:writer/changed", "writer").commit("v1", changed, "changed")
    names = ["", f"{NAME}@1", f"{NAME}@{commit}", "writer/changed@1", "writer/changed@main"]
    hub.requests.clear()
    output = in_a_process(DISPATCH, hub, tmp_path, json.dumps(names))
    assert hub.requests[0] == "GET /api/whoami-v2" and len(hub.requests) > 5  # nothing is asked without the variable
    plain, version, pinned, tampered, branch = map(json.loads, output.splitlines())
    assert [version, pinned] == [[f"the repository {name}", []] for name in names[1:3]]
    assert "repository" not in str(plain)
    assert "functions.py of" in tampered[1][0] and "another hash" in tampered[1][0] and tampered[0] == plain[0]
    assert "must be org/name@version" in branch[1][0] and branch[0] == plain[0]


def test_second_push(hub, publishable, local_symbols, tmp_path, caplog):
    """An unchanged build makes no commit. A changed one replaces the variants, and the old commit stays."""
    first = kernel_publishing.push_kernels(publishable, PROJECT, NAME)
    repository = hub.repositories[f"kernels:{NAME}"]
    before = dict(repository.heads)
    assert kernel_publishing.push_kernels(publishable, PROJECT, NAME) == first
    assert repository.heads == before and "No files have been modified since last commit" in caplog.text

    variants = sorted(path.name for path in (publishable / "build").iterdir())
    shutil.copytree(publishable / "build" / variants[0], tmp_path / "build" / variants[0])
    layers = tmp_path / "build" / variants[0] / "layers.py"
    layers.write_text(layers.read_text() + "\n# a new build\n")
    digest = dispatcher.build_script().digest(layers.parent)
    _metadata(layers.parent, digest=digest)
    second = kernel_publishing.push_kernels(tmp_path, PROJECT, NAME)
    tree, old = repository.trees[second.partition("@")[2]], repository.trees[first.partition("@")[2]]
    assert repository.heads["v1"] == second.partition("@")[2] and second != first
    assert {name.split("/")[1] for name in tree if name.startswith("build/")} == {variants[0]}
    assert {name.split("/")[1] for name in old if name.startswith("build/")} == set(variants)
    assert tree[f"build/{variants[0]}/layers.py"].endswith(b"# a new build\n")
    assert repository.heads["main"] == before["main"]  # the card is the same


@pytest.mark.slow
def test_portable_build_is_pushed_and_loaded(hub, tmp_path):
    """The command's own build, with the real limits of symbols. It takes minutes to compile."""
    pytest.importorskip("ziglang")
    result = CliRunner().invoke(app, ["push-kernels", NAME])
    assert result.exit_code == 0, result.output
    commit = hub.repositories[f"kernels:{NAME}"].heads["v1"]
    names = {path.split("/")[1] for path in hub.repositories[f"kernels:{NAME}"].trees[commit] if "metadata" in path}
    assert {name.split("-")[3] for name in names} == {"cpu", "cu120", "cu130"}
    ViTAdapterBackbone(small_config()).save_pretrained(tmp_path / "model")
    assert "kernelized" in in_a_process(LOAD, hub, tmp_path, NAME, commit, str(tmp_path / "model"))


def test_build_for_this_machine_is_refused(hub, publishable, tmp_path):
    library = next((publishable / "build").glob("*/*.so"))
    if kernel_publishing.newest_symbol(library) is None:
        pytest.skip("the C library of this machine is old enough for any")
    result = CliRunner().invoke(app, ["push-kernels", NAME, "--build", str(publishable)])
    assert result.exit_code == 1 and not hub.repositories
    assert result.stderr.startswith("error: _deformable_ops") and "--portable" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda variant: (variant / "layers.py").unlink(), "layers.py of .* is missing: build it again"),
        (lambda variant: (variant / "more.py").write_text(""), "more.py of .* has another hash"),
        (lambda variant: shutil.rmtree(variant.parent), "has no build/<variant>/metadata.json"),
        (lambda variant: _metadata(variant, version=2), "have different versions: \\[1, 2\\]"),
        (lambda variant: _metadata(variant, digest=None), "has no sha256 hashes"),
        (lambda variant: _metadata(variant, id="not a name"), "the namespace not a name is invalid"),
        (lambda variant: _changed(variant, "layers.py", b"import numpy"), "layers.py of .* imports numpy"),
        (lambda variant: _changed(variant, "layers.py", b"from kernels import x"), "layers.py of .* imports kernels"),
        (lambda variant: _changed(variant, "deformable_ops/__init__.py", None), "has no deformable_ops/__init__.py"),
        (lambda variant: _changed(variant, "__init__.py", b"__all__ = []"), "__all__ of __init__.py must name"),
        (lambda variant: _changed(variant, "*.so", b"\0libmkl_rt.so.2\0"), "needs libmkl_rt.so.2"),
        (lambda variant: _changed(variant, "*.so", b"GCC_10.0.0\0"), "needs GCC_10.0.0, which manylinux_2_28 lacks"),
    ],
    ids=[
        *("missing", "unlisted", "empty", "versions", "no hashes", "namespace"),
        *("numpy", "absolute", "old layout", "layers", "library", "symbols"),
    ],
)
def test_incomplete_builds_are_refused(publishable, local_symbols, tmp_path, change, message):
    shutil.copytree(publishable / "build", tmp_path / "build")
    variants = sorted((tmp_path / "build").iterdir())
    if "versions" in message and len(variants) == 1:
        pytest.skip("this torch has one variant")
    change(variants[0])
    with pytest.raises(PublishingError, match=message):
        kernel_publishing.check_build(tmp_path)


def _changed(variant: Path, pattern: str, more: bytes | None) -> None:
    """Add a line to a file, or remove it, and correct the hashes."""
    (path,) = variant.glob(pattern)
    path.unlink() if more is None else path.write_bytes(path.read_bytes() + b"\n" + more)
    _metadata(variant, digest=dispatcher.build_script().digest(variant))


def _metadata(variant: Path, **changes) -> None:
    path = variant / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_failed_push_says_what_the_repository_holds(hub, publishable, local_symbols):
    hub.failing["POST /api/kernels/writer/deformable-ops/commit/v1"] = 500
    with pytest.raises(PublishingError, match="was created and is empty: 500"):
        kernel_publishing.push_kernels(publishable, PROJECT, NAME)


def test_too_old_client_is_refused_before_the_repository_is_made(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "__version__", "2.2.0")
    result = CliRunner().invoke(app, ["push-kernels", NAME])
    assert result.exit_code == 1
    assert result.stderr == (
        "error: pushing a kernel needs huggingface_hub 2.3 or newer, not 2.2.0: pip install -U huggingface_hub\n"
    )


def test_project_has_what_the_hub_asks_for():
    config = dispatcher.build_script().read_config(PROJECT)
    assert config["general"]["hub"]["repo-id"] == dispatcher.KERNEL_ID
    assert "genKernelFlakeOutputs" in (PROJECT / "flake.nix").read_text()
    try:
        from kernels._rust import Build  # the reader of kernel-builder
    except ImportError:
        pytest.skip("this version of kernels does not read build.toml")
    assert len(Build.open(PROJECT).general.backends) == 2
    assert os.path.commonpath([PROJECT, dispatcher.sources()]) == str(PROJECT)
