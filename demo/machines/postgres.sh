#!/bin/sh
# A PostgreSQL cluster on the volume: made at the first start, found at every later one. Starts as root, runs as postgres.
#   postgres.sh FOLDER PORT BIN_DIR
set -eu
folder=$1 port=$2 bin=$3
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
if [ ! -s "$folder/data/PG_VERSION" ]; then
  rm -rf "$folder/data"
  mkdir -p "$folder/data"
  chown postgres:postgres "$folder/data"
  chmod 700 "$folder/data"
  $as_postgres "$bin/initdb" -D "$folder/data" --auth=trust --username=postgres --no-instructions >/dev/null
fi
exec $as_postgres "$bin/postgres" -D "$folder/data" -c port="$port" -c listen_addresses=127.0.0.1 \
  -c unix_socket_directories=/tmp -c shared_buffers=64MB
