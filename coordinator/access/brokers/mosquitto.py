"""Mosquitto: `mosquitto.conf` and its list of rights.

Two listeners, each with its own authority: so no device can use up the coordinator's connections. The client
id is left to the client, and bears what only the holder of its key can tell (`Signer.alias`). Tried and
dropped: `use_username_as_clientid` binds it to the certificate, and has a device that asks for copies of
itself over a second connection throw itself out.

Options as in mosquitto.conf(5) of 2.0.11; 2.1 takes the same, with the rights read by a plugin and no
`per_listener_settings`, which it deprecates.
"""

from typing import Literal

from coordinator.access.brokers.plan import (
    COORDINATORS,
    MAX_IN_FLIGHT,
    MAX_PACKET_BYTES,
    MAX_QUEUED,
    MAX_QUEUED_BYTES,
    SESSION_DAYS,
    WRITTEN,
    BrokerPlan,
    Files,
)

Release = Literal["2.0", "2.1"]
RIGHTS_FILE = "tunefleet.acl"
_PLUGIN = "/usr/lib/mosquitto_acl_file.so"


def mosquitto_files(plan: BrokerPlan, folder: str, release: Release = "2.0") -> Files:
    """Returns the files of a broker.

    Args:
        plan: Of the fleet.
        folder: Where they will lie, absolute.
        release: Of Mosquitto.
    """
    name = "mosquitto" if release == "2.0" else "mosquitto-2.1"
    return {"mosquitto.conf": _settings(plan, folder, release, name), RIGHTS_FILE: _rights(plan, name)}


def _rights(plan: BrokerPlan, name: str) -> str:
    lines = [
        f"# {WRITTEN} {name} --fleet {plan.fleet}`.",
        "# What is not named is forbidden, $SYS too. %u is the user name, which the certificate tells;",
        "# rights by client id (%c) could be taken by saying another one.",
    ]
    lines += [f"pattern {access} {topic}" for topic, access in plan.rules("device", "%u")]
    lines += ["", f"user {plan.coordinator}"]
    lines += [f"topic {access} {topic}" for topic, access in plan.rules("coordinator", "+")]
    return "\n".join(lines) + "\n"


def _settings(plan: BrokerPlan, folder: str, release: Release, name: str) -> str:
    if release == "2.0":
        rights = ["per_listener_settings false", f"acl_file {folder}/{RIGHTS_FILE}"]
    else:
        rights = [
            "# The plugin lies where your system has it.",
            f"global_plugin {_PLUGIN}",
            f"plugin_opt_acl_file {folder}/{RIGHTS_FILE}",
        ]
    lines = [
        f"# {WRITTEN} {name} --fleet {plan.fleet}`.",
        "allow_anonymous false",
        *rights,
        "",
        "# What is kept over a restart, and for clients that are away.",
        "persistence true",
        "persistence_location /var/lib/mosquitto/",
        f"persistent_client_expiration {SESSION_DAYS}d",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_inflight_messages {MAX_IN_FLIGHT}",
        f"max_queued_messages {MAX_QUEUED}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "queue_qos0_messages false",
        "",
    ]
    if plan.certs is None:
        lines += _with_passwords(plan, folder)
    else:
        lines += ["# Devices.", *_listener(plan, plan.port, "devices", plan.max_devices)]
        lines += [""]
        lines += ["# The coordinator, and who watches with its certificate."]
        lines += _listener(plan, plan.coordinator_port, "coordinator", COORDINATORS)
    return "\n".join(lines) + "\n"


def _listener(plan: BrokerPlan, port: int, authority: str, max_connections: int) -> list[str]:
    broker = f"{plan.certs}/broker"
    return [
        f"listener {port}",
        f"max_connections {max_connections}",
        f"certfile {broker}/broker.crt",
        f"keyfile {broker}/broker.key",
        f"cafile {broker}/{authority}-ca.crt",
        f"crlfile {broker}/{authority}-ca.crl",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
    ]


def _with_passwords(plan: BrokerPlan, folder: str) -> list[str]:
    return [
        "# Users and passwords: each device's user name is its id. Make the file, and add devices to it, by",
        f"#   mosquitto_passwd -c {folder}/passwords {plan.coordinator}",
        f"#   mosquitto_passwd {folder}/passwords lamp",
        "# A password that goes over this listener can be read on the way: put TLS in front of it",
        "# (certfile, keyfile), or keep it to one machine. With passwords a device can throw another one out",
        "# by its client id; certificates (`tunefleet certs`) rule that out.",
        f"password_file {folder}/passwords",
        f"listener {plan.port}",
        f"max_connections {plan.max_devices + COORDINATORS}",
    ]
