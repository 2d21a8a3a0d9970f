#!/usr/bin/env bash
# Print an image with the digest that its tag has now, for `--build-arg BASE_IMAGE=…`. Needs a registry.
#   scripts/resolve_digest.sh nvcr.io/nvidia/tritonserver:26.08-py3
set -euo pipefail
image=${1:?an image with its tag}
if command -v skopeo >/dev/null; then
  digest=$(skopeo inspect --format '{{.Digest}}' "docker://$image")
else
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
fi
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$image: no digest in the answer: $digest" >&2; exit 1; }
echo "$image@$digest"
