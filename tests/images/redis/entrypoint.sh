# The official image's contract: "redis-server [--option value]..." or "redis-sentinel FILE", data under /data.
set -eu
cd /data
if [ "$1" = redis-server ]; then
    shift
    exec redis-server --protected-mode no --bind '*' --dir /data "$@"
fi
exec "$@"
