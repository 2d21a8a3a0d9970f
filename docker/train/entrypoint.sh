#!/usr/bin/env bash
# Entry point of the training image. A first word that is a program is run (torchrun, nnUNetv2_train, bash);
# anything else is a command of ctseg (plan, train, export).
set -euo pipefail

# nnU-Net's workers hand batches over in /dev/shm, of which Docker gives 64 MB: too little ends a training
# hours later with "Bus error" and no other word.
check_shared_memory() {
  local least_mb=${CTSEG_MIN_SHM_MB:-1024} has_mb
  has_mb=$(df --output=size --block-size=1M /dev/shm | tail -n 1)
  if ((has_mb < least_mb)); then
    printf 'ctseg: /dev/shm has %d MB, training needs at least %d MB of shared memory for the workers of nnU-Net:\n' \
      "$has_mb" "$least_mb" >&2
    printf 'ctseg: run the container with --shm-size 8g or --ipc host (CTSEG_MIN_SHM_MB changes the limit)\n' >&2
    exit 2
  fi
}

case " $* " in
  *" train "* | *"nnUNetv2_train"* | *" torchrun "*) check_shared_memory ;;
esac

if [[ $# -gt 0 ]] && program=$(type -P -- "$1"); then
  shift
  exec "$program" "$@"
fi
exec ctseg "$@"
