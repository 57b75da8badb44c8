"""Turn the NLVR corpus into a LLaVA JSON pool of more than 20,000 samples in eight sources.

The corpus (Suhr, Lewis, Yeh and Artzi, ACL 2017; CC-BY-4.0) is the folder ``nlvr`` of the GitHub
repository lil-lab/nlvr; its splits ``dev`` and ``test`` are enough. Only the JSON file is written: the
images stay where they are, and the NLVR folder is the images folder of the pool.

    python benches/nlvr_pool.py --nlvr nlvr --out pool
    mllm-selector select pool/pool.json --images nlvr ...
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from mllm_selector.demo import nlvr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nlvr", type=Path, required=True, metavar="DIR", help="the corpus folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where pool.json is put")
    parser.add_argument("--per-image", type=int, default=2, metavar="N", help="samples of each image")
    arguments = parser.parse_args()

    statements = nlvr.read_statements(arguments.nlvr)
    records = list(nlvr.samples(statements, arguments.per_image))
    pool = arguments.out / "pool.json"
    nlvr.write_llava(pool, records)
    print(f"{pool}: {len(records):,} samples; images folder: {arguments.nlvr}")
    sources = Counter(record["source"] for record in records)
    for source, number in sources.most_common():
        print(f"  {source:<15} {number:>7,}")


if __name__ == "__main__":
    main()
