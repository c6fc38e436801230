#!/usr/bin/env bash
# The whole way from radiologists' findings to judged nodule images, on a CPU:
#     bash scripts/demo.sh [--dataset-dir DIR] [--output DIR] [--epochs N] [--images N]
# Without --dataset-dir it runs on phantoms (synthetic CT around real annotations), which it makes itself; DIR may be a
# LIDC-IDRI tree of DICOM series or a folder of NIfTI crops with nodules.csv. Sets itself up.
set -euo pipefail

dataset_dir=phantom
output=""
epochs=8
images=32
while [ $# -gt 0 ]; do
    case "$1" in
        --dataset-dir) dataset_dir="${2:?--dataset-dir needs a folder}"; shift 2 ;;
        --output) output="${2:?--output needs a folder}"; shift 2 ;;
        --epochs) epochs="${2:?--epochs needs a number}"; shift 2 ;;
        --images) images="${2:?--images needs a number}"; shift 2 ;;
        -h|--help) sed -n '2,6p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: $1: not an option; there are --dataset-dir, --output, --epochs, --images" >&2; exit 2 ;;
    esac
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
output="${output:-$ROOT/output/demo}"
bundle="$ROOT/bundle"
scales="1.5,3,5,10,20,40,60"

step() {
    local name="$1" config="$2"
    shift 2
    echo
    echo "== $name"
    "$PYTHON" -m monai.bundle run --config_file "$bundle/configs/$config" --bundle_root "$bundle" "$@"
}

step "1/4 prepare: findings to prompts, nodules to a data list" prepare.json --num_workers -1 \
    --dataset_dir "$dataset_dir" --datalist "$output/datalist.json" --phantom_dir "$output/phantom"
echo "What there is to learn from: $output/datalist.html"

step "2/4 train: fine-tune the small base model for $epochs epochs, choose weights and guidance on validation" train.json \
    --datalist "$output/datalist.json" --output_dir "$output/training" --epochs "$epochs" --resume false \
    --val_interval 4 --val_images 32 --val_guidance_scales 1,2,4
echo "Loss and distance over the epochs: $output/training/curves.png"
echo "Samples of the last validation:    $(ls "$output"/training/samples/*.png 2>/dev/null | tail -1)"

split=test
if [ "$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["numTest"])' "$output/datalist.json")" = 0 ]; then
    split=training
    echo "NOTE: the test split is empty (too few patients). Prompts and real images are taken from the training split instead;"
    echo "      what follows shows that the steps run and judges nothing."
fi
step "3/4 inference: the $split split's prompts at guidance scales $scales, 16 images a call" inference.json \
    --datalist "$output/datalist.json" --split "$split" --weights "$output/training/models/model.pt" --limit "$images" \
    --guidance_scales "$scales" --steps 15 --batch_size 16 --images_per_call 16 --formats png \
    --output_dir "$output/generated" --overwrite true
"$PYTHON" -m nodule_plugin.cli contact-sheet --generated "$output/generated" --datalist "$output/datalist.json" \
    --split "$split" --limit 12 --output "$output/pictures" > /dev/null
echo "One nodule at every guidance scale: $output/pictures/guidance.png"
echo "Generated beside the originals:     $output/pictures/beside_real.png"

step "4/4 evaluate: against the real images of the $split split" evaluate.json \
    --datalist "$output/datalist.json" --split "$split" --generated_dir "$output/generated" --output_dir "$output/evaluation" \
    --noise_images 16 --error_repeats 20

echo "Pictures: $output/pictures"
echo "Data:     $output/datalist.html"
