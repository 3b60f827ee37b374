"""What the loops of a client wait for. Who changes something sets what may follow from it."""

import asyncio


class Wakeups:
    """The wake-ups of one client.

    Attributes:
        offers_changed: There may be another task: a manifest came, a receipt made room, or an epoch turned.
        something_to_send: An update was spooled, or the device can say more about itself.
        version_rose: A newer version was announced than any before.
        epoch_turned: The coordinator has begun another session.
    """

    def __init__(self) -> None:
        self.offers_changed = asyncio.Event()
        self.something_to_send = asyncio.Event()
        self.version_rose = asyncio.Event()
        self.epoch_turned = asyncio.Event()
