#!/usr/bin/env bash
# Install Chromium from Debian's packages: tests open pages in it, by playwright's driver, without a window.
set -euo pipefail
command -v chromium >/dev/null && exit 0
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends chromium fonts-dejavu-core
