"""NATS with JetStream, whose server speaks MQTT 3.1.1.

Levels of a topic are tokens of a subject: `/` is `.`, `+` is `*`. It has no pattern for a user's own name
and no lists of revoked certificates. So every certificate stands here by itself, under the URI that it bears
with its serial number: what was taken back is left out, and a new one of the same name is another user. Write
the file anew and reload the server (`nats-server --signal reload`) when devices come or go. A client id is
bound to no user; whoever could tell another's would throw it out, and get nothing by that.

The port of NATS' own protocol, which it cannot do without, asks for the same certificates and listens on this
machine only.
"""

import json
from collections.abc import Sequence

from coordinator.access.brokers.plan import COORDINATORS, MAX_PACKET_BYTES, WRITTEN, BrokerPlan, Files
from edge.errors import ConfigError
from edge.protocol.rights import Role

DELIVERY = "$MQTT.sub.>"  # where the server hands over what was published at QoS 1


def nats_files(plan: BrokerPlan, folder: str) -> Files:
    """Returns the files of a server.

    Args:
        plan: Of the fleet.
        folder: Where they will lie, absolute.

    Raises:
        ConfigError: There are no certificates, by which it knows its users.
    """
    if plan.certs is None:
        raise ConfigError(
            "nats: knows its users by their certificates; make some (`tunefleet certs`) and give --certs"
        )
    return {
        "nats.conf": _settings(plan, folder),
        "clients-ca.crt": f"# {WRITTEN} nats --fleet {plan.fleet}`.\n{plan.authorities}",
    }


def _settings(plan: BrokerPlan, folder: str) -> str:
    tls = (
        f'tls {{ cert_file: "{plan.certs}/broker/broker.crt", key_file: "{plan.certs}/broker/broker.key", '
        f'ca_file: "{folder}/clients-ca.crt", verify_and_map: true }}'
    )
    users = [_user(plan, "coordinator", uri, plan.coordinator) for uri in plan.coordinators]
    users += [_user(plan, "device", uri, name) for uri, name in plan.devices.items()]
    return f"""# {WRITTEN} nats --fleet {plan.fleet} --certs …`.
# Start: nats-server -c {folder}/nats.conf     Again after changes: nats-server --signal reload
server_name: "tunefleet-{plan.fleet}"
listen: "127.0.0.1:{plan.coordinator_port}"
{tls}
max_payload: {MAX_PACKET_BYTES}
max_connections: {plan.max_devices + COORDINATORS}
jetstream {{ store_dir: "{folder}/jetstream" }}
mqtt {{
  listen: "0.0.0.0:{plan.port}"
  {tls}
}}
# What is not named is forbidden.
authorization {{
  users: [
{"".join(users)}  ]
}}
"""


def _user(plan: BrokerPlan, role: Role, uri: str, name: str) -> str:
    publish = plan.topics(role, "publish", name, "*", ".")
    subscribe = [*plan.topics(role, "subscribe", name, "*", ".", ">"), DELIVERY]
    return (
        f"    {{ user: {json.dumps(uri)}, permissions: {{\n"
        f"      publish: {{ allow: {_list(publish)} }}\n"
        f"      subscribe: {{ allow: {_list(subscribe)} }}\n"
        "    } }\n"
    )


def _list(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(json.dumps(subject) for subject in subjects) + "]"
