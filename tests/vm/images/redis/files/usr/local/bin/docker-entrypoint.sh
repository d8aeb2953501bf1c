#!/bin/sh
# A relative name that is looked up in PATH, and an option that stands for the server's: as in the image that everybody knows.
set -e
if [ "${1#-}" != "$1" ]; then
	set -- redis-server "$@"
fi
if [ "$1" = redis-server ]; then
	set -- "$@" --protected-mode no --dir /data
fi
exec "$@"
