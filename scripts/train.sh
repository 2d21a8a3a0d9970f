#!/usr/bin/env bash
# Step 1 of 4: plan and train, in the training container.
#   scripts/train.sh ID CONFIG FOLD… [more words of `ctseg train`]
#   scripts/train.sh 101 3d_fullres -f all -tr nnUNetTrainerSwinUNETR
# From the environment: DATA (holds nnUNet_raw, nnUNet_preprocessed, nnUNet_results), PLAN (words for `ctseg plan`),
# ENGINE (docker, podman), TRAIN_IMAGE, GPU (flags that give the GPUs), SHM_SIZE, RUN_AS (owner of the files).
set -euo pipefail
: "${1:?the id of the data set}" "${2:?the configuration, such as 3d_fullres}"
data=$(realpath "${DATA:-data}")
read -ra gpu <<<"${GPU---gpus all}"
read -ra plan <<<"${PLAN:-}"

run() {
  "${ENGINE:-docker}" run --rm "${gpu[@]}" --network none --user "${RUN_AS:-$(id -u):$(id -g)}" \
    --cap-drop ALL --security-opt no-new-privileges --read-only --tmpfs /tmp --shm-size "${SHM_SIZE:-8g}" \
    -v "$data/nnUNet_raw:/data/nnUNet_raw" -v "$data/nnUNet_preprocessed:/data/nnUNet_preprocessed" \
    -v "$data/nnUNet_results:/data/nnUNet_results" "${TRAIN_IMAGE:-ctseg-train}" "$@"
}

mkdir -p "$data/nnUNet_raw" "$data/nnUNet_preprocessed" "$data/nnUNet_results"
run plan -d "$1" --verify_dataset_integrity "${plan[@]}"
run train "$@"
