#!/usr/bin/env bash
# The evaluation of docs/evaluation_crops.md, from a folder of NIfTI crops with nodules.csv to the report:
#     bash scripts/evaluate_crops.sh CROPS WORK [--limit N] [settings of evaluate.json, such as --error_repeats 20]
# Run again after an interruption, it goes on where it stopped; for another model choose another WORK. --limit N takes N
# nodules, N prompts to attack, 3 seeds and 5 steps, to see in minutes whether everything runs. Sets itself up.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,5p' "${BASH_SOURCE[0]}"; exit 2; }
crops="$1" work="$2"
shift 2
few=() few_prompts=() few_seeds=() steps=15
if [ "${1:-}" = --limit ]; then
    few=(--limit "${2:?--limit needs a number}") few_prompts=("${few[@]}" --seeds 0) few_seeds=(--seeds 0,1,2) steps=5
    shift 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
bundle="$ROOT/bundle"
splits="['validation','test']"
sampling=(--steps "$steps" --batch_size 8 --images_per_call 8 --mark false) # together: the same in less time; as the model makes them

run() {
    local configs="$1"
    shift
    "$PYTHON" -m monai.bundle run --config_file "$configs" --bundle_root "$bundle" "$@"
}

[ -f "$work/datalist.json" ] || run "$bundle/configs/prepare.json" --dataset_dir "$crops" --datalist "$work/datalist.json"
run "$bundle/configs/inference.json" --datalist "$work/datalist.json" --split "$splits" \
    --guidance_scales 1,1.5,2,3,5,10,20,60 --output_dir "$work/generated" "${sampling[@]}" "${few[@]}"
run "['$bundle/configs/inference.json','$bundle/configs/dose_response.json']" --output_dir "$work/dose" "${sampling[@]}" \
    "${few_seeds[@]}"
run "['$bundle/configs/inference.json','$bundle/configs/attack.json']" --datalist "$work/datalist.json" \
    --output_dir "$work/attack" "${sampling[@]}" "${few_prompts[@]}"
run "$bundle/configs/evaluate.json" --datalist "$work/datalist.json" --split "$splits" --generated_dir "$work/generated" \
    --dose_response_dir "$work/dose" --attack_dir "$work/attack" --output_dir "$work/evaluation" "$@"
