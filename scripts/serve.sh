#!/usr/bin/env bash
# Step 3 of 4: serve every bundle of a folder, locked down; returns when each model has answered a real inference.
#   scripts/serve.sh [flags of tritonserver]
# From the environment: BUNDLES (empty where the image carries them), MODELS (Triton's model repository; what is not
# fresh is built into it), NAME (of the container), BIND (address to listen on), GRPC_PORT, METRICS_PORT, READY_PORT
# (each on BIND), BACKEND, PRECISION, BUILD, ADMIN_KEY (file), TLS (off, server, mutual) and TLS_FOLDER, CONTROL (none,
# explicit), START_TIMEOUT_S, SHM_SIZE, ENGINE, SERVE_IMAGE, GPU, RUN_AS.
set -euo pipefail
engine=${ENGINE:-docker}
name=${NAME:-ctseg-serve}
bind=${BIND:-127.0.0.1}
read -ra gpu <<<"${GPU---gpus all}"
mounts=(-v "$(realpath "${MODELS:-models}"):/models")
bundles=${BUNDLES-data/bundles} # empty: the image carries its own
[[ -z $bundles ]] || mounts+=(-v "$(realpath "$bundles"):/bundles:ro")
settings=(-e "CTSEG_BACKEND=${BACKEND:-tensorrt}" -e "CTSEG_PRECISION=${PRECISION:-fp32}"
  -e "CTSEG_BUILD_OPTIONS=${BUILD:-}" -e "CTSEG_MODEL_CONTROL=${CONTROL:-none}" -e "CTSEG_TLS=${TLS:-off}")
if [[ -n ${ADMIN_KEY:-} ]]; then
  mounts+=(-v "$(realpath "$ADMIN_KEY"):/run/ctseg/admin_key:ro")
  settings+=(-e CTSEG_ADMIN_KEY_FILE=/run/ctseg/admin_key)
fi
if [[ ${TLS:-off} != off ]]; then
  mounts+=(-v "$(realpath "${TLS_FOLDER:?folder with tls.crt and tls.key}"):/run/ctseg/tls:ro")
fi

"$engine" run -d --name "$name" "${gpu[@]}" --user "${RUN_AS:-$(id -u):$(id -g)}" \
  --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --shm-size "${SHM_SIZE:-4g}" \
  -p "$bind:${GRPC_PORT:-8001}:8001" -p "$bind:${METRICS_PORT:-8002}:8002" -p "$bind:${READY_PORT:-8003}:8003" \
  "${mounts[@]}" "${settings[@]}" "${SERVE_IMAGE:-ctseg-serve}" "$@" >/dev/null

ready() { "$engine" exec "$name" /opt/ctseg/venv/bin/python -I -S /opt/ctseg/serve/probe.py >/dev/null 2>&1; }
limit=${START_TIMEOUT_S:-3600} # as long as the image's health check and the example for Kubernetes allow
for ((SECONDS = 0; SECONDS < limit; )); do
  if [[ $("$engine" inspect -f '{{.State.Running}}' "$name") != true ]]; then
    "$engine" logs --tail 20 "$name" >&2
    echo "$name ended before it was ready; its log stands above, and whole in: $engine logs $name" >&2
    exit 1
  fi
  if ready; then
    echo "$name is ready on $bind:${GRPC_PORT:-8001}; stop it by: $engine stop -t 40 $name"
    exit 0
  fi
  sleep 1
done
"$engine" logs --tail 20 "$name" >&2
echo "$name was not ready after $limit s" >&2
exit 1
