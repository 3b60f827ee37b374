"""EMQX 5: listeners and limits (`emqx.conf`, to be included) and the rights (`acl.conf`, Erlang terms).

As at Mosquitto there are two listeners, for devices and the coordinator, each with its own authority. The
user name is the certificate's common name; `${username}` in a topic stands for it. EMQX reads lists of
revoked certificates from web servers alone, so names of which no certificate holds are shut out by rules.

Not run here: the files are held to EMQX's documented grammar (docs.emqx.com: "Use ACL file", "SSL/TLS",
"MQTT configuration").
"""

from coordinator.access.brokers.plan import (
    COORDINATORS,
    MAX_IN_FLIGHT,
    MAX_PACKET_BYTES,
    MAX_QUEUED,
    SESSION_DAYS,
    WRITTEN,
    BrokerPlan,
    Files,
)

OWN_NAME = "${username}"


def emqx_files(plan: BrokerPlan, folder: str) -> Files:
    """Returns the files of a broker.

    Args:
        plan: Of the fleet.
        folder: Where they will lie, absolute.
    """
    return {"emqx.conf": _settings(plan, folder), "acl.conf": _rights(plan)}


def _rights(plan: BrokerPlan) -> str:
    lines = [
        f"%% {WRITTEN} emqx --fleet {plan.fleet}`.",
        "%% What is not named is forbidden. Rights go by the user name, which the certificate tells.",
    ]
    lines += [f'{{deny, {{username, "{name}"}}, all, ["#"]}}.' for name in plan.revoked]
    coordinator = f'{{username, "{plan.coordinator}"}}'
    # First the coordinator's, whose name is no device's; then everybody's own.
    for who, role, own in ((coordinator, "coordinator", "+"), ("all", "device", OWN_NAME)):
        for manner in ("publish", "subscribe"):
            topics = plan.topics(role, manner, own)  # type: ignore[arg-type]
            names = ",\n    ".join(f'"{topic}"' for topic in topics)
            lines.append(f"{{allow, {who}, {manner}, [\n    {names}\n]}}.")
    lines.append("{deny, all}.")
    return "\n".join(lines) + "\n"


def _settings(plan: BrokerPlan, folder: str) -> str:
    lines = [
        f"# {WRITTEN} emqx --fleet {plan.fleet}`.",
        f'# In EMQX\'s own etc/emqx.conf: include "{folder}/emqx.conf"',
        "authorization {",
        "  no_match = deny",
        "  deny_action = ignore",
        f'  sources = [{{ type = file, enable = true, path = "{folder}/acl.conf" }}]',
        "}",
        "mqtt {",
        f'  max_packet_size = "{MAX_PACKET_BYTES >> 10}KB"',
        f"  max_inflight = {MAX_IN_FLIGHT}",
        f"  max_mqueue_len = {MAX_QUEUED}",
        f'  session_expiry_interval = "{SESSION_DAYS}d"',
        "}",
        "listeners.tcp.default.enable = false",
        "listeners.ws.default.enable = false",
        "listeners.wss.default.enable = false",
        "listeners.ssl.default.enable = false",
    ]
    if plan.certs is None:
        lines += [
            "# Users and passwords: each device's user name is its id; the coordinator's is",
            f"# {plan.coordinator}. Add them in the dashboard, or by its API.",
            "authentication = [",
            "  { mechanism = password_based, backend = built_in_database, user_id_type = username }",
            "]",
            "listeners.ssl.tunefleet {",
            f'  bind = "0.0.0.0:{plan.port}"',
            f"  max_connections = {plan.max_devices + COORDINATORS}",
            "}",
        ]
    else:
        lines += _listener(plan, "devices", plan.port, plan.max_devices)
        lines += _listener(plan, "coordinator", plan.coordinator_port, COORDINATORS)
    return "\n".join(lines) + "\n"


def _listener(plan: BrokerPlan, authority: str, port: int, max_connections: int) -> list[str]:
    broker = f"{plan.certs}/broker"
    return [
        f"zones.tunefleet_{authority} {{",
        "  mqtt.peer_cert_as_username = cn",
        "}",
        f"listeners.ssl.tunefleet_{authority} {{",
        f"  zone = tunefleet_{authority}",
        f'  bind = "0.0.0.0:{port}"',
        f"  max_connections = {max_connections}",
        "  enable_authn = false  # the certificate says who it is",
        "  ssl_options {",
        f'    certfile = "{broker}/broker.crt"',
        f'    keyfile = "{broker}/broker.key"',
        f'    cacertfile = "{broker}/{authority}-ca.crt"',
        "    verify = verify_peer",
        "    fail_if_no_peer_cert = true",
        '    versions = ["tlsv1.3", "tlsv1.2"]',
        "  }",
        "}",
    ]
