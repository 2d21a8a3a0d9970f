#!/usr/bin/env bash
# Step 2 of 4: export the trained model to a proven bundle, and build its entry on the GPU that will serve it.
#   scripts/export_and_build.sh ID CONFIG NAME [more words of `ctseg export`]
#   scripts/export_and_build.sh 101 3d_fullres sarcoma -tr nnUNetTrainerSwinUNETR --precision fp32 fp16
# From the environment: DATA (see train.sh; the bundle becomes DATA/bundles/NAME), MODELS (Triton's model repository),
# BACKEND (tensorrt, onnxruntime, python), PRECISION, BUILD (words for `ctseg build`), ENGINE, TRAIN_IMAGE,
# SERVE_IMAGE, GPU, RUN_AS.
set -euo pipefail
: "${1:?the id of the data set}" "${2:?the configuration, such as 3d_fullres}" "${3:?the name of the model in Triton}"
data=$(realpath "${DATA:-data}")
models=$(realpath "${MODELS:-models}")
read -ra gpu <<<"${GPU---gpus all}"
read -ra build <<<"${BUILD:-}"
locked=(--network none --user "${RUN_AS:-$(id -u):$(id -g)}" --cap-drop ALL --security-opt no-new-privileges
  --read-only --tmpfs /tmp)

mkdir -p "$data/bundles" "$models"
"${ENGINE:-docker}" run --rm "${gpu[@]}" "${locked[@]}" \
  -v "$data/nnUNet_raw:/data/nnUNet_raw:ro" -v "$data/nnUNet_preprocessed:/data/nnUNet_preprocessed:ro" \
  -v "$data/nnUNet_results:/data/nnUNet_results:ro" -v "$data/bundles:/data/bundles" \
  "${TRAIN_IMAGE:-ctseg-train}" export -d "$1" -c "$2" --name "$3" -o "/data/bundles/$3" "${@:4}"
"${ENGINE:-docker}" run --rm "${gpu[@]}" "${locked[@]}" \
  -v "$data/bundles:/bundles:ro" -v "$models:/models" \
  "${SERVE_IMAGE:-ctseg-serve}" build "/bundles/$3" --repository /models --if_needed \
  --backend "${BACKEND:-tensorrt}" --precision "${PRECISION:-fp32}" "${build[@]}"
