#!/bin/sh
# NVIDIA's own entry point first, where the base has one: on drivers older than the base's CUDA it switches on CUDA's
# forward compatibility (LD_LIBRARY_PATH). What it prints goes to standard error: standard output belongs to the command.
set -- /opt/ctseg/venv/bin/python -I -m ctseg.container.entrypoint "$@"
nvidia=/opt/nvidia/nvidia_entrypoint.sh
[ -x "$nvidia" ] || exec "$@"
exec 3>&1 >&2
# shellcheck disable=SC2016  # the inner shell's arguments
exec "$nvidia" sh -c 'exec "$@" >&3 3>&-' sh "$@"
