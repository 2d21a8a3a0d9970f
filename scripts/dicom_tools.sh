#!/usr/bin/env bash
# Install from Debian's packages what checks DICOM objects (dciodvfy, plastimatch, dcmtk) and a PACS (Orthanc).
# The PACS is not started: tests start their own.
set -euo pipefail

packages=(dcmtk dicom3tools orthanc orthanc-dicomweb plastimatch)
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep --quiet '^installed$' ||
    missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

policy=/usr/sbin/policy-rc.d  # asked whether a daemon may start
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
