"""Families from outside: the example of the documentation, entry points, and what can be wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from family_fixtures import TOWER, save, text_config
from mllm_selector import families
from mllm_selector.config import ExportOptions
from mllm_selector.errors import UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import export
from model_fixtures import LLAVA_TEMPLATE, done, tokenizer

GUIDE = Path(__file__).parents[1] / "docs" / "writing-a-family.md"


def vipllava(folder: Path) -> Path:
    words = tokenizer(("<s>", "</s>", "<image>"), begin="<s>", end="</s>")
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=text_config(hf.LlamaConfig, words),
        image_token_index=processor.image_token_id,
        vision_feature_layers=[-2, -1],
    )
    return save(folder, hf.VipLlavaForConditionalGeneration(config), processor)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A registry that forgets what a test adds."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    families._register_others.cache_clear()
    yield monkeypatch
    families._register_others.cache_clear()


def install(site: Path, registry: pytest.MonkeyPatch, text: str, target: str) -> None:
    """Lay out a package with an entry point as pip does."""
    (site / "own_family.py").write_text(text)
    information = site / "own_family-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: own_family\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{families.ENTRY_POINTS}]\nadded = own_family:{target}\n")
    registry.syspath_prepend(str(site))
    registry.delitem(sys.modules, "own_family", raising=False)


def test_the_example_of_the_guide_scores_a_model(tmp_path: Path, registry: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    assert code.group(1).count("\n") < 100
    model = vipllava(tmp_path / "model")
    with pytest.raises(UsageError, match=r"'vipllava' cannot be scored.*docs/writing-a-family.md"):
        families.check(model)
    families._register_others.cache_clear()
    install(tmp_path, registry, code.group(1), "VipLlavaFamily")
    assert "vipllava" in families.known_model_types()
    with RunDirectory(tmp_path / "run") as run:
        run.stages["seed"] = done(counts={"model": str(model)})
        counts = export.run(run, ExportOptions(), SilentProgress())
    assert counts["family"] == "VipLlavaFamily"
    assert counts["worst_nll_difference"] < 1e-5
    assert np.isfinite(counts["worst_embedding_difference"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no luck')", r"family 'added' \(own_family:Own\) cannot be loaded: .*no luck"),
        ("class Own:\n    model_types = ('llava',)", r"serves llava, which another does"),
        ("Own = 3", r"cannot be loaded: .*model_types"),
    ],
)
def test_broken_families_of_others_are_named(
    tmp_path: Path, registry: pytest.MonkeyPatch, text: str, message: str
) -> None:
    install(tmp_path, registry, text, "Own")
    with pytest.raises(UsageError, match=message):
        families.known_model_types()
