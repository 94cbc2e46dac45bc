# One KRaft node with SCRAM and ACLs. KMP_ADVERTISED is the address that clients reach ("127.0.0.1:12345"),
# KMP_ADMIN_PASSWORD the password of the principal User:admin, who alone may do everything.
set -eu
: "${KMP_ADVERTISED:?must be set}" "${KMP_ADMIN_PASSWORD:?must be set}"
mkdir -p /data/logs
cat > /data/server.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9093
controller.listener.names=CONTROLLER
listeners=CLIENTS://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=CLIENTS://${KMP_ADVERTISED}
listener.security.protocol.map=CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT
inter.broker.listener.name=CLIENTS
listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.controller.sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256
sasl.mechanism.controller.protocol=PLAIN
listener.name.clients.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="admin" password="${KMP_ADMIN_PASSWORD}";
listener.name.controller.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="${KMP_ADMIN_PASSWORD}" user_admin="${KMP_ADMIN_PASSWORD}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin
allow.everyone.if.no.acl.found=false
auto.create.topics.enable=false
log.dirs=/data/logs
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
PROPERTIES
if [ ! -e /data/logs/meta.properties ]; then
    java kafka.tools.StorageTool format --cluster-id kmp-test-cluster-00000 --config /data/server.properties \
        --add-scram "SCRAM-SHA-256=[name=admin,password=${KMP_ADMIN_PASSWORD}]"
fi
exec java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn kafka.Kafka /data/server.properties
