"""The parts of the fine-tuning: the loss, where LoRA goes, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mllm_selector.errors import ModelError
from mllm_selector.training import Collator, answer_loss, attach_lora

if TYPE_CHECKING:
    import torch


def test_labels_outside_the_answer_have_no_part_in_the_loss() -> None:
    import torch

    class Output:
        logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))

    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 7, -100, -100, -100]])
    log_p = torch.log_softmax(Output.logits, -1)
    expected = -(log_p[0, 1, 3] + log_p[0, 2, 4] + log_p[1, 0, 7]) / 3
    torch.testing.assert_close(answer_loss(Output, labels), expected)
    torch.testing.assert_close(answer_loss(Output, labels, 6), expected / 2)
    Output.logits[0, 0] += torch.arange(11)  # predicts position 1 of the first sample, which is no answer
    torch.testing.assert_close(answer_loss(Output, labels), expected)


@pytest.mark.parametrize(
    ("kind", "language", "projector"),
    [
        ("qwen2_5_vl", "model.language_model.", "model.visual.merger."),
        ("smolvlm", "model.text_model.", "model.connector."),
        ("paligemma", "model.language_model.", "model.multi_modal_projector."),
    ],
)
def test_other_architectures_get_lora_in_the_same_places(kind: str, language: str, projector: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    layers = {"num_hidden_layers": 1, "depth": 1}
    config = CONFIG_MAPPING[kind](text_config={"num_hidden_layers": 2}, vision_config=layers)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        adapted = attach_lora(model, 2, 4, seed=0)
    trained = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): parameter
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    lora = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert lora == {name for name in linear if name.startswith(language)}
    rest = [name for name in trained if ".lora_" not in name]
    assert rest
    assert all(name.startswith(projector) for name in rest)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


def test_a_model_without_a_language_model_of_its_own_is_refused() -> None:
    import torch
    from transformers import AutoModelForImageTextToText, GitConfig

    config = GitConfig(num_hidden_layers=1, vision_config={"num_hidden_layers": 1})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ModelError, match="no language model apart from its vision tower"):
        attach_lora(model, 2, 4, seed=0)


def test_batches_are_padded_on_the_right_and_images_lie_in_sample_order() -> None:
    import torch

    def sample(length: int, images: int, side: int) -> dict[str, torch.Tensor]:
        encoded = {name: torch.arange(1, length + 1) for name in ("input_ids", "labels", "attention_mask")}
        return encoded | ({"pixel_values": torch.full((images, 3, side, side), length)} if images else {})

    batch = Collator(pad_token_id=9)([sample(2, 0, 0), sample(4, 2, 5), sample(3, 1, 6)])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4], [1, 2, 3, 9]]
    assert batch["labels"].tolist() == [[1, 2, -100, -100], [1, 2, 3, 4], [1, 2, 3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 0]]
    pixels = batch["pixel_values"]
    assert pixels.shape == (3, 3, 6, 6)
    assert [image[:, :5, :5].unique().tolist() for image in pixels] == [[4], [4], [3]]
    assert pixels[:2, :, 5:].abs().sum() == pixels[:2, :, :, 5:].abs().sum() == 0
