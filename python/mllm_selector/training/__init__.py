"""LoRA fine-tuning of a vision-language model with transformers and peft."""

from mllm_selector.training.loop import IGNORED, Collator, TrainingLog, answer_loss, fine_tune
from mllm_selector.training.lora import attach_lora, merge, save_adapter
from mllm_selector.training.pretrained import check_model_directory, load_pretrained, need_packages, quiet

__all__ = [
    "IGNORED",
    "Collator",
    "TrainingLog",
    "answer_loss",
    "attach_lora",
    "check_model_directory",
    "fine_tune",
    "load_pretrained",
    "merge",
    "need_packages",
    "quiet",
    "save_adapter",
]
