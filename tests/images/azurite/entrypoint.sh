# Azure Blob Storage as its emulator has it. AZURITE_ACCOUNTS names the storage accounts and their keys.
set -eu
: "${AZURITE_ACCOUNTS:?must be set}"
exec node /opt/azurite/node_modules/azurite/dist/src/blob/main.js --blobHost 0.0.0.0 --blobPort "${PORTS:-10000}" \
    --location /data --silent --disableTelemetry --disableProductStyleUrl --blobKeepAliveTimeout 60
