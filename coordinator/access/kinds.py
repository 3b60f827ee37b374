"""The brokers that a configuration is written for."""

from typing import Literal

BrokerKind = Literal["mosquitto", "mosquitto-2.1", "nats", "emqx", "aws-iot"]
