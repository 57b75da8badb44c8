"""Train on a selection of any PyTorch data set that has the pool's samples in the pool's order.

python examples/torch_subset.py RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch.utils.data import DataLoader, Dataset, Subset

from mllm_selector import Pool, Selection
from mllm_selector.pool import Sample


class PoolDataset(Dataset[Sample]):
    """A pool; put your own in its place."""

    def __init__(self, run: Path) -> None:
        self.pool = Pool.of(run)

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, row: int) -> Sample:
        return self.pool[row]


def loader(run: Path, batch_size: int = 8) -> DataLoader[Sample]:
    chosen = Subset(PoolDataset(run), Selection.load(run).rows.tolist())
    return DataLoader(chosen, batch_size=batch_size, shuffle=True, collate_fn=list)


if __name__ == "__main__":
    print(sum(len(batch) for batch in loader(Path(sys.argv[1]))), "samples")
