# An S3 server with users: ROOT_ACCESS_KEY and ROOT_SECRET_KEY name the administrator, who makes the others.
set -eu
: "${ROOT_ACCESS_KEY:?must be set}" "${ROOT_SECRET_KEY:?must be set}"
mkdir -p /data/iam /data/buckets
exec versitygw --iam-dir /data/iam posix /data/buckets
