# A pooler in transaction mode on 127.0.0.1:$PORT before the server on 127.0.0.1:$SERVER_PORT. Who logs in is looked up
# there by the administrator, whose password is $POSTGRES_PASSWORD; at most $SIZE of the server's connections a database.
set -eu
umask 077
cat > /tmp/pgbouncer.ini <<END
[databases]
* = host=127.0.0.1 port=$SERVER_PORT
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $PORT
unix_socket_dir =
auth_type = scram-sha-256
auth_file = /tmp/users
auth_user = postgres
auth_dbname = postgres
auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = \$1
pool_mode = transaction
default_pool_size = $SIZE
max_client_conn = 500
max_prepared_statements = 0
END
printf '"postgres" "%s"\n' "$POSTGRES_PASSWORD" > /tmp/users
chown postgres /tmp/pgbouncer.ini /tmp/users
exec setpriv --reuid=postgres --regid=postgres --init-groups pgbouncer /tmp/pgbouncer.ini
