"""Tune a model with TRL's SFTTrainer on a selection: python examples/trl_sft.py MODEL subset.jsonl tuned

`subset.jsonl` is what `as_messages.py` writes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from trl import SFTConfig, SFTTrainer


def parts(content: str) -> list[dict[str, str]]:
    """Cut a text at its image marks; TRL puts the images there, in their order."""
    pieces = re.split(r"(<image>)\n?", content)
    return [
        {"type": "image", "text": ""} if piece == "<image>" else {"type": "text", "text": piece}
        for piece in pieces
        if piece
    ]


def dataset(subset: Path) -> Dataset:
    """Read the samples that show something; TRL takes batches with images only."""
    records = [json.loads(line) for line in subset.read_text().splitlines()]
    rows = [
        {
            "messages": [turn | {"content": parts(turn["content"])} for turn in record["messages"]],
            "images": record["images"],
        }
        for record in records
        if record["images"]
    ]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def main(model: str, subset: Path, out: str, **options: Any) -> SFTTrainer:
    # Truncated samples would lose image tokens.
    config = SFTConfig(output_dir=out, max_length=None, per_device_train_batch_size=1, **options)
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset(subset))
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
