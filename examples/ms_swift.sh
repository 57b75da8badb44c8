#!/bin/bash
# ms-swift trains on the file that as_messages.py writes: bash examples/ms_swift.sh RUN
set -euo pipefail
here=$(dirname "$0")
python "$here/as_messages.py" "$1" subset.jsonl
swift sft --model "${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}" --dataset subset.jsonl --train_type lora --output_dir tuned
