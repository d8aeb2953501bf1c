#!/bin/sh
set -e
echo "docker-entrypoint.sh: starting $1"
exec "$@"
