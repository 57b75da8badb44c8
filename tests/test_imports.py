"""The import rules of CONTRIBUTING.md, read from the sources and from a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mllm_selector

PACKAGE = Path(mllm_selector.__file__).parent
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "ray",
}

# Each part may import from those that stand below it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"arguments"},
    {"inspection", "planning"},
    {"comparison"},
    {"demo", "doctor", "pipeline"},
    {"workflow"},
    {"stages"},
    {"scoring"},
    {"training"},
    {"families", "formats", "selection", "reporting"},
    {"fetching", "outputs"},
    {"arrays", "engine", "neighbours", "pool"},
    {"methods"},
    {"sampling"},
    {"limits"},
    {"samples"},
    {"checks"},
    {"rundir", "resources", "columns", "drawn"},
    {"checksums", "interrupts", "locking", "manifest"},
    {"artifacts", "config", "progress"},
    {"options"},
    {"cluster", "inputs", "metrics", "stores", "values"},
    {"errors", "_internal"},
]

# A torch module is a class, so its file needs torch at the top; it is imported inside functions only.
TORCH_CODE = {
    PACKAGE / "families" / name
    for name in (
        "gemma_graphs.py",
        "graphs.py",
        "mistral3_graphs.py",
        "patch_graphs.py",
        "qwen_graphs.py",
        "scorer.py",
    )
}


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 15, "the scan found too few modules to mean anything"
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def own_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mllm_selector"):
            whole = node.module == "mllm_selector"
            names |= {f"mllm_selector.{alias.name}" for alias in node.names} if whole else {node.module}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("mllm_selector.")}
    return {name for name in names if name != "mllm_selector.__version__"}


def layer_of(name: str) -> int:
    for index, layer in enumerate(LAYERS):
        if name in layer:
            return index
    pytest.fail(f"{name} has no layer in tests/test_imports.py; say where it belongs")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if relative.name == "__init__.py" and len(relative.parts) == 1:
        return
    mine = relative.parts[0].removesuffix(".py")
    for name in own_imports(path):
        other = part(name)
        if other == mine:
            assert mine != "stages", f"{relative} imports another stage: {name}"
            continue
        assert layer_of(mine) < layer_of(other), f"{relative} imports {name} against the direction"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        if path in TORCH_CODE:
            names = [name for name in names if name.split(".")[0] != "torch"]
        heavy = {name.split(".")[0] for name in names} & HEAVY
        if path not in TORCH_CODE:
            heavy |= {
                name for name in names if PACKAGE.parent / (name.replace(".", "/") + ".py") in TORCH_CODE
            }
        assert not heavy, f"{path.relative_to(PACKAGE)} imports {heavy} at the top"


def test_import_loads_no_heavy_package() -> None:
    code = "import json, sys, mllm_selector, mllm_selector.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & HEAVY


def test_public_names_exist_and_are_documented() -> None:
    for name in mllm_selector.__all__:
        value = getattr(mllm_selector, name)
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"
