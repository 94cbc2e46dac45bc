# The official image's contract: NEO4J_AUTH=neo4j/<password> is set before the first start; data under /data; a setting
# such as server.bolt.advertised_address is NEO4J_server_bolt_advertised__address.
set -eu
: "${NEO4J_AUTH:?must be set}"
export NEO4J_HOME=/data NEO4J_CONF=/data/conf
mkdir -p "$NEO4J_CONF"
env | awk -F= '/^NEO4J_[a-z]/ {
    name = substr($1, 7); gsub("__", "\001", name); gsub("_", ".", name); gsub("\001", "_", name)
    sub(/^[^=]*=/, ""); print name "=" $0
}' > "$NEO4J_CONF/neo4j.conf"
if [ ! -e /data/initialised ]; then
    java org.neo4j.cli.AdminTool dbms set-initial-password "${NEO4J_AUTH#neo4j/}" > /dev/null
    touch /data/initialised
fi
exec java -Xmx768m --add-opens java.base/java.nio=ALL-UNNAMED --add-opens java.base/java.io=ALL-UNNAMED \
    --add-opens java.base/sun.nio.ch=ALL-UNNAMED --add-opens java.base/java.lang=ALL-UNNAMED Neo4jServer
