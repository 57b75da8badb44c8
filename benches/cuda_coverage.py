"""Which operators of the exported graphs ONNX Runtime would run on CUDA, found out without a GPU.

    python benches/cuda_coverage.py [FAMILY ...] --work DIR

Exports a tiny model of every family in each precision, as the export stage does, and opens the graphs with
the CUDA provider of the newest onnxruntime-gpu, which goes into a folder of its own. In place of the
libraries of CUDA it finds `no_gpu.c`, so it starts without a GPU, and its own tables of kernels decide
which nodes it takes. Then the graphs are run: no kernel computes anything, but ONNX Runtime chooses them as
it would, and says which attention it takes for batches whose length is a multiple of 8, of 4, and odd.

Needs a C compiler and binutils. Exits with 1 if a graph cannot be opened, an operator has no CUDA kernel,
or data are copied between CPU and CUDA within a graph.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import family_fixtures
from mllm_selector import families
from mllm_selector.engine import SCORER, VISION
from mllm_selector.families.loading import load_model
from mllm_selector.stages import export

HERE = Path(__file__).parent
PRECISIONS = ("float32", "float16", "bfloat16")
LENGTHS = {"8": 16, "4": 20, "odd": 17}
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
ATTENTION = {
    "using Flash Attention": "flash",
    "using Memory Efficient Attention": "memory-efficient",
    "using unified unfused path": "unfused",
}


@dataclass(frozen=True)
class Seen:
    """What ONNX Runtime did with a graph.

    Attributes
    ----------
    providers : Counter of str
        Number of nodes by provider.
    missing : Counter of str
        Operators without a CUDA kernel.
    copies : int
        Nodes that copy between CPU and CUDA, besides inputs and outputs of the graph.
    attention : dict of str to str
        Which kernels a batch of each length takes.
    error : str
        Why it could not be opened or run.
    """

    providers: Counter[str]
    missing: Counter[str]
    copies: int
    attention: dict[str, str]
    error: str

    @property
    def well(self) -> bool:
        """Whether all of it would run on CUDA."""
        return not (self.missing or self.copies or self.error)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="by default all")
    parser.add_argument("--package", default="onnxruntime-gpu", help="with == another version")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="gets ONNX Runtime, 340 MB")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    runtime = install(given.package, given.work)
    libraries = stand_in(runtime / PROVIDER, given.work / "no-gpu")
    # Heads of 8, since attention kernels ask for a multiple of that, which heads of real towers are.
    family_fixtures.TOWER["num_attention_heads"] = 3
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "onnxscript"))
    print(f"{next(runtime.glob('onnxruntime_gpu-*')).stem}; exported with {packages}\n")
    print("| family | graph | precision | CUDA | CPU, shapes | no CUDA kernel | copies | attention |")
    print("|---|---|---|---|---|---|---|---|")
    well = True
    for name in given.families or family_fixtures.BUILDERS:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            for precision, graphs in exported(name, Path(folder)):
                for graph in (VISION, SCORER):
                    seen = look(graphs / graph, runtime, libraries)
                    well &= seen.well
                    print(f"| {name} | {Path(graph).stem} | {precision} | {row(seen)} |", flush=True)
    return 0 if well else 1


def install(package: str, work: Path) -> Path:
    """Put onnxruntime-gpu where no environment sees it: it breaks onnxruntime, and is broken by it."""
    folder = work / package
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--no-deps", "--target", str(folder), package], check=True)
    return folder


def stand_in(provider: Path, folder: Path) -> Path:
    """Build one library that has every function of CUDA and cuDNN that the provider asks for."""
    folder.mkdir(exist_ok=True)
    symbols = output("nm", "-D", "--undefined-only", provider)
    versions: dict[str, list[str]] = {}
    for name, library in re.findall(r" (_*cu\w+)@+(\S+)$", symbols, re.MULTILINE):
        versions.setdefault(library, []).append(name)
    names = set(re.findall(r" (_*cu\w+)", symbols))
    # cuDNN's are looked up by name when it is loaded.
    names |= {found.decode() for found in re.findall(rb"\b(cudnn[A-Z]\w+)[\0(]", provider.read_bytes())}
    others = folder / "others.c"
    empty = "__attribute__((weak)) int {}(void) {{ return 0; }}\n"
    others.write_text("".join(map(empty.format, sorted(names))))
    script = folder / "versions"
    script.write_text("".join(f"{name} {{ {'; '.join(of)}; }};\n" for name, of in versions.items()))
    needed = re.findall(r"\[(libcu\w+\.so\.\d+)\]", output("readelf", "-d", provider))
    library = folder / "library"
    library.unlink(missing_ok=True)
    options = ["-O1", "-w", "-shared", "-fPIC", f"-Wl,--version-script={script}"]
    subprocess.run(["cc", *options, "-o", library, HERE / "no_gpu.c", others], check=True)
    for name in (*needed, "libcudnn.so.9"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(library)
    return folder


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported(name: str, folder: Path) -> list[tuple[str, Path]]:
    """Write the graphs of a family's tiny model; return precisions and folders."""
    saved = family_fixtures.BUILDERS[name](folder / "model")
    family = families.load(saved)
    model = load_model(saved, attention="sdpa" if family.shares_prefixes else export.WRITTEN_OUT)
    for precision in PRECISIONS:
        export._write_graphs(family, model, precision, -1, folder / precision)
    return [(precision, folder / precision) for precision in PRECISIONS]


def look(graph: Path, runtime: Path, libraries: Path) -> Seen:
    """Open and run a graph in a process that has the other ONNX Runtime."""
    paths = {"PYTHONPATH": str(runtime), "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, HERE / "cuda_session.py", graph, *map(str, LENGTHS.values())]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    nodes = json.loads(done.stdout or "[]")
    missing = re.findall(r"CUDA kernel not found in registries for Op type: (\w+)", done.stderr)
    opened, *runs = re.split(r"^LENGTH \d+$", done.stderr, flags=re.MULTILINE)
    return Seen(
        Counter(provider for provider, _, _ in nodes),
        Counter(missing),
        sum(map(int, re.findall(r"(\d+) Memcpy nodes are added", opened))),
        {name: attention(run) for name, run in zip(LENGTHS, runs, strict=False)},
        done.stderr.strip().splitlines()[-1] if done.returncode else "",
    )


def attention(said: str) -> str:
    """Return which attention kernels a run took."""
    kinds = {kind for words, kind in ATTENTION.items() if words in said}
    # The third argument of CUTLASS's kernel: whether rows begin where wide loads can.
    if re.search(r"KERNEL \S*AttentionKernel\S*Sm\d+ELb0E", said):
        kinds = {f"{kind}, unaligned" if kind == "memory-efficient" else kind for kind in kinds}
    return " and ".join(sorted(kinds)) or "written out"


def row(seen: Seen) -> str:
    if seen.error:
        return f"- | - | {seen.error} | - | -"
    on_cuda, on_cpu = (seen.providers[f"{name}ExecutionProvider"] for name in ("CUDA", "CPU"))
    lacking = ", ".join(f"{count} {name}" for name, count in seen.missing.items()) or "none"
    taken = seen.attention
    how = "; ".join(f"{name}: {kind}" for name, kind in taken.items())
    if len(set(taken.values())) == 1:
        how = next(iter(taken.values()))
    return f"{on_cuda} | {on_cpu - seen.missing.total()} | {lacking} | {seen.copies} | {how}"


if __name__ == "__main__":
    sys.exit(main())
