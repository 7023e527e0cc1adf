#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# keep_running.sh COMMAND [ARGUMENT...]: runs it again whenever it fails, until ten times in a row
# it did so within a second.

set -u

failures=0
while ((failures < 10)); do
  SECONDS=0
  "$@" && exit
  echo "$1 ended with $? after $SECONDS s"
  ((SECONDS < 1)) && ((++failures)) || failures=0
  sleep 0.1
done
exit 1
