"""AWS IoT Core: three policies for devices, one for the coordinator, and the commands that attach them.

`${iot:Certificate.Subject.CommonName}` stands for the certificate's name, in topics and in client ids alike,
so that one policy serves every device and a client id is no other device's. In a policy `*` stands for any
characters, and `+` in a topic filter for itself. A policy has at most 2,048 characters, without white space,
so the coordinator's, whom the fleet trusts with everything, names the fleet's root alone.

Not run here: the policies are held to their documented grammar (docs.aws.amazon.com/iot: "AWS IoT Core
policies", "X.509 Certificate policy variables").
"""

import json
from collections.abc import Sequence
from typing import Any

from coordinator.access.brokers.plan import WRITTEN, BrokerPlan, Files
from edge.errors import ConfigError

OWN_NAME = "${iot:Certificate.Subject.CommonName}"
ARN = "arn:aws:iot:*:*:"
MAX_CHARACTERS = 2048
Statement = dict[str, Any]


def aws_iot_files(plan: BrokerPlan) -> Files:
    """Returns policies, and a script that makes and attaches them.

    Raises:
        ConfigError: The fleet's name is too long for a policy.
    """
    connect, publish, receive, subscribe = _device(plan)
    files = {
        "device-publish-policy.json": _policy(connect, publish),
        "device-receive-policy.json": _policy(receive),
        "device-subscribe-policy.json": _policy(subscribe),
        "coordinator-policy.json": _policy(*_coordinator(plan)),
    }
    for name, policy in files.items():
        length = len("".join(json.dumps(policy).split()))
        if length > MAX_CHARACTERS:
            raise ConfigError(
                f"aws-iot: {name} has {length} characters and AWS takes {MAX_CHARACTERS}; "
                f"give the fleet a shorter name than {plan.fleet}"
            )
    written = {name: json.dumps(policy, indent=1) + "\n" for name, policy in files.items()}
    return {"aws-iot.sh": _script(plan)} | written


def _device(plan: BrokerPlan) -> list[Statement]:
    # Sixteen characters behind its name, so that `home-lamp-…` is not `home-lamp-2-…`; nine more where it
    # asks for copies of itself.
    alias = "?" * 16
    clients = [f"{plan.fleet}-{OWN_NAME}-{alias}", f"{plan.fleet}-{OWN_NAME}-{alias}-{'?' * 8}"]
    published, read = (plan.topics("device", manner, OWN_NAME, "*") for manner in ("publish", "subscribe"))
    return _statements(clients, published, read, plan.topics("device", "subscribe", OWN_NAME, "+"))


def _coordinator(plan: BrokerPlan) -> list[Statement]:
    topics = plan.topics("coordinator", "publish", "*") + plan.topics("coordinator", "subscribe", "*")
    roots = list(dict.fromkeys("/".join(topic.split("/")[:3]) + "/*" for topic in topics))
    return _statements([f"{plan.fleet}-coordinator*"], roots, roots, roots)


def _statements(
    clients: Sequence[str], published: Sequence[str], read: Sequence[str], filters: Sequence[str]
) -> list[Statement]:
    return [
        _allow(["Connect"], "client", clients),
        _allow(["Publish", "RetainPublish"], "topic", _widest(published)),
        _allow(["Receive"], "topic", _widest(read)),
        _allow(["Subscribe"], "topicfilter", filters),
    ]


def _policy(*statements: Statement) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _widest(topics: Sequence[str]) -> list[str]:
    """Leaves out what another one stands for: `up/*/header` where there is `up/*/*`."""
    return [one for one in topics if not any(one != other and _covers(other, one) for other in topics)]


def _covers(wide: str, narrow: str) -> bool:
    levels = list(zip(wide.split("/"), narrow.split("/"), strict=False))
    same_length = wide.count("/") == narrow.count("/")
    return same_length and all(one in ("*", other) for one, other in levels)


def _allow(actions: Sequence[str], kind: str, names: Sequence[str]) -> Statement:
    return {
        "Effect": "Allow",
        "Action": [f"iot:{action}" for action in actions],
        "Resource": [f"{ARN}{kind}/{name}" for name in names],
    }


def _script(plan: BrokerPlan) -> str:
    lines = [
        "#!/bin/sh",
        f"# {WRITTEN} aws-iot --fleet {plan.fleet}`.",
        "# Makes the policies; then register each certificate and attach its policy, as below for lamp.",
        "# In the place of `arn:aws:iot:*:*:` a region and an account may stand in the policies.",
        "set -e",
    ]
    for name in ("device-publish", "device-receive", "device-subscribe", "coordinator"):
        lines += [
            f"aws iot create-policy --policy-name tunefleet-{plan.fleet}-{name} \\",
            f"  --policy-document file://{name}-policy.json",
        ]
    lines += [
        "# arn=$(aws iot register-certificate-without-ca --status ACTIVE --query certificateArn \\",
        "#   --output text --certificate-pem file://certs/devices/lamp/tls.crt)",
        "# for name in device-publish device-receive device-subscribe; do",
        f'#   aws iot attach-policy --policy-name "tunefleet-{plan.fleet}-$name" --target "$arn"; done',
        "# Take one back: aws iot update-certificate --new-status REVOKED --certificate-id ID",
    ]
    return "\n".join(lines) + "\n"
