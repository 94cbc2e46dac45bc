# The official image's contract: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB; the cluster is made at the first start.
# A certificate for "localhost" is made with it, so that TLS can be tested; its authority is $PGDATA/server.crt.
set -eu
: "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}" "${POSTGRES_PASSWORD:?must be set}"
export HOME=/var/lib/postgresql
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -d -m 0700 -o postgres -g postgres "$PGDATA"
    (umask 077; printf '%s' "$POSTGRES_PASSWORD" > /tmp/password); chown postgres /tmp/password
    as_postgres initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 \
        --locale=C.UTF-8 > /dev/null
    rm /tmp/password
    as_postgres openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
        -keyout "$PGDATA/server.key" -out "$PGDATA/server.crt" 2> /dev/null
    {
        echo "listen_addresses = '*'"
        echo "shared_preload_libraries = 'timescaledb'"
        echo "timescaledb.telemetry_level = off"
        echo "ssl = on"
        echo "max_connections = 200"
    } >> "$PGDATA/postgresql.conf"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    if [ "$POSTGRES_DB" != postgres ]; then
        # Only a local socket listens until the database is there, so that nobody meets a half-made server.
        as_postgres pg_ctl -w start -o "-c listen_addresses=''" > /dev/null
        PGPASSWORD=$POSTGRES_PASSWORD as_postgres createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
        as_postgres pg_ctl -w stop > /dev/null
    fi
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups "$@"
