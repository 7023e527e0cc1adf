#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Runs a command on the test bed, and takes the bed down again unless it was up before.

set -euo pipefail

testbed=$(dirname "$(realpath "$0")")/testbed.sh
state=${GCI_TESTBED_STATE:-/var/lib/libvirt-gci-testbed}

if (($# == 0)); then
  echo "Usage: with.sh COMMAND [ARG...]" >&2
  exit 2
fi
"$testbed" install
if [[ ! -d $state ]]; then
  trap '"$testbed" down' EXIT
fi
"$testbed" up
"$@"
