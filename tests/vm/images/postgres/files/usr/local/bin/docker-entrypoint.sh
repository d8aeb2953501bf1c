#!/bin/sh
# As the image that everybody knows: started as root it gives the volume to the server's own user and starts again as that one; an empty volume gets a
# new cluster first.
set -e
: "${PGDATA:=/var/lib/postgresql/data}"
export PGDATA
if [ "$1" = postgres ]; then
	if [ "$(id -u)" = 0 ]; then
		mkdir -p "$PGDATA"
		chown -R postgres:postgres "$PGDATA"
		chmod 700 "$PGDATA"
		exec gosu postgres "$0" "$@"
	fi
	if [ ! -s "$PGDATA/PG_VERSION" ]; then
		initdb --auth=trust --username=postgres --no-sync > /dev/null
		echo "docker-entrypoint.sh: new cluster in $PGDATA"
	fi
fi
exec "$@"
