#!/bin/bash
# LLaVA's own training script takes the subset as it is; run this in a checkout of LLaVA: bash llava.sh RUN IMAGES
# It reads one image a sample; leave sources with several out by `pick --source-ceiling NAME=0`.
set -euo pipefail
run=$(realpath "$1") images=$(realpath "$2")
deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path lmsys/vicuna-7b-v1.5 \
    --version v1 \
    --data_path "$run/subset.json" \
    --image_folder "$images" \
    --vision_tower openai/clip-vit-large-patch14-336 \
    --pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 True \
    --output_dir ./checkpoints/llava-v1.5-7b-subset
