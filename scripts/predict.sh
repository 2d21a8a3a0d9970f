#!/usr/bin/env bash
# Step 4 of 4: segment a scan, or a folder of scans, through the server. Needs the client only (docs/install.md).
#   scripts/predict.sh MODEL INPUT OUTPUT [more words of `ctseg predict`]
# From the environment: URL (gRPC address of the server), CTSEG (the program).
set -euo pipefail
: "${1:?the name of the model}" "${2:?a scan or a folder of scans}" "${3:?the folder for the label maps}"
exec "${CTSEG:-ctseg}" predict -m "$1" -i "$2" -o "$3" --url "${URL:-127.0.0.1:8001}" "${@:4}"
