#!/bin/sh
# Becomes the worker: exec leaves no shell between it and SIGTERM. SETTINGS_FILE may name a file of NAME=value lines.
set -eu
if [ -n "${SETTINGS_FILE:-}" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$SETTINGS_FILE"
    set +a
fi
exec model-runner "$@"
