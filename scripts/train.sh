#!/usr/bin/env bash
# Step 1 of 4: plan and train, in the training container.
#   scripts/train.sh ID CONFIG FOLD… [more words of `ctseg train`]
#   scripts/train.sh 101 3d_fullres -f all -tr nnUNetTrainerSwinUNETR
# Plans and preprocesses only what is not there: another training may be reading it. REPLAN=1 does it again, REPLAN=0 never.
# From the environment: DATA (holds nnUNet_raw, nnUNet_preprocessed, nnUNet_results), PLAN (words for `ctseg plan`),
# REPLAN, ENGINE (docker, podman), TRAIN_IMAGE, GPU (flags that give the GPUs), SHM_SIZE, RUN_AS (owner of the files).
set -euo pipefail
: "${1:?the id of the data set}" "${2:?the configuration, such as 3d_fullres}"
data=$(realpath "${DATA:-data}")
read -ra gpu <<<"${GPU---gpus all}"
read -ra plan <<<"${PLAN:-}"

# /tmp with exec: torch.compile, on by default with CUDA, loads the kernels that it builds there
run() {
  "${ENGINE:-docker}" run --rm "${gpu[@]}" --network none --user "${RUN_AS:-$(id -u):$(id -g)}" \
    --cap-drop ALL --security-opt no-new-privileges --read-only --tmpfs /tmp:exec --shm-size "${SHM_SIZE:-8g}" \
    -v "$data/nnUNet_raw:/data/nnUNet_raw" -v "$data/nnUNet_preprocessed:/data/nnUNet_preprocessed" \
    -v "$data/nnUNet_results:/data/nnUNet_results" "${TRAIN_IMAGE:-ctseg-train}" "$@"
}

# Whether there are plans (those of -p, if given), and each case of the configuration is preprocessed.
is_planned() {
  local name=$1 data_of=${2/cascade_/} plans='*Plans*' folder cases i
  [[ $name =~ ^[0-9]+$ ]] && printf -v name 'Dataset%03d_*' "$((10#$name))"
  for ((i = 3; i < $#; i++)); do [[ ${!i} == -p ]] && local next=$((i + 1)) && plans=${!next}; done
  compgen -G "$data/nnUNet_preprocessed/$name/$plans.json" >/dev/null || return 1
  cases=$(compgen -G "$data/nnUNet_preprocessed/$name/gt_segmentations/*" | wc -l) || return 1
  compgen -G "$data/nnUNet_preprocessed/$name/*_$data_of" >/dev/null || return 1
  while read -r folder; do
    [[ $(compgen -G "$folder/*.pkl" | wc -l) == "$cases" ]] || return 1
  done < <(compgen -G "$data/nnUNet_preprocessed/$name/*_$data_of")
}

mkdir -p "$data/nnUNet_raw" "$data/nnUNet_preprocessed" "$data/nnUNet_results"
if [[ ${REPLAN:-} == 1 ]] || { [[ ${REPLAN:-} != 0 ]] && ! is_planned "$@"; }; then
  run plan -d "$1" --verify_dataset_integrity "${plan[@]}"
else
  echo "plans and preprocessed cases are there; REPLAN=1 makes them anew"
fi
run train "$@"
