"""Who may speak for which device: the one place that decides it.

A device is let in by the settings (listed there, or anybody with `open` enrolment, whose key is then pinned),
by its owner's hand (`tunefleet device allow`) or by a token. A listed device has the key of the list, unless
that key has signed for another since. Whoever is banned is out, under any name with that key and under that
name with any key. What the journal says is read again whenever another process has changed it.
"""

from collections.abc import Callable, Mapping

from coordinator.ledger.contract import AccessRecords
from coordinator.ledger.records import Spent
from edge.errors import Rejected
from edge.protocol.enrolment import Claim, Rotation, check_claim, check_rotations


class Register:
    """Decides who may speak.

    Args:
        records: What the journal says of devices.
        listed: Reads the settings' list: device to public key.
        is_open: Whether devices that nothing speaks for may enrol themselves.
    """

    def __init__(
        self, records: AccessRecords, listed: Callable[[], Mapping[str, str]], is_open: bool
    ) -> None:
        self._records = records
        self._read_list = listed
        self._is_open = is_open
        self.reload()

    def reload(self) -> None:
        """Reads list and journal anew."""
        self._listed = dict(self._read_list())
        self._known = {access.device: access for access in self._records.all()}
        self._banned = {one.key for one in self._known.values() if one.banned_at is not None and one.key}

    def check(self, device_id: str, key: str, pinned: str | None) -> None:
        """Lets `key` speak for a device, or not.

        Args:
            device_id: The device.
            key: Public, has signed.
            pinned: The key that spoke for it first, as far as it ever came.

        Raises:
            Rejected: `banned`, or `unknown-device`.
        """
        self._refuse_banned(device_id, key)
        expected = self.expected(device_id, pinned)
        if expected is None and not self._is_open:
            raise Rejected("unknown-device", f"{device_id} was not let in, and enrolment is closed")
        if expected not in (None, key):
            raise Rejected(
                "unknown-device", f"{device_id} has key {expected[:16]}…, this is signed by {key[:16]}…"
            )

    def names(self, device_id: str) -> bool:
        """Tells whether the owner has let in a device of that name."""
        return self.expected(device_id, None) is not None

    def admits(self, device_id: str, key: str) -> bool:
        """Tells whether a device with its pinned key may still speak."""
        try:
            self.check(device_id, key, key)
        except Rejected:
            return False
        return True

    def is_banned(self, device_id: str, key: str) -> bool:
        """Tells whether this very key was banned, whose device may be told so."""
        known = self._known.get(device_id)
        return key in self._banned or (known is not None and known.banned_at is not None and known.key == key)

    def redeem(
        self,
        claim: Claim,
        fleet: str,
        coordinator: str,
        device_id: str,
        key: str,
        pinned: str | None,
        at: float,
    ) -> bool:
        """Lets a device in by its token.

        Args:
            claim: What it sent.
            fleet: This one.
            coordinator: Its public key.
            device_id: As `check`.
            key: As `check`.
            pinned: As `check`.
            at: Unix time in seconds.

        Returns:
            Whether it was let in by this.

        Raises:
            Rejected: Its token is none, has ended or was used up, or the name is another device's.
            DiskRefused: Nobody was let in.
        """
        check_claim(claim, fleet, coordinator, device_id, key, at)
        self._refuse_banned(device_id, key)
        other = self.expected(device_id, pinned)
        if other == key:
            return False
        if other is not None:
            raise Rejected(
                "unknown-device", f"{device_id} has key {other[:16]}…, the token came with another"
            )
        nonce = claim.grant.nonce
        if not self._records.spend(Spent(nonce, device_id, key, at), claim.grant.uses):
            raise Rejected("unknown-device", f"{device_id} came with token {nonce[:16]}…, which was used up")
        self.reload()
        return True

    def rotate(
        self, rotations: tuple[Rotation, ...], fleet: str, device_id: str, pinned: str | None, at: float
    ) -> str:
        """Gives a device the key that its old one has signed for, and returns the newest.

        Raises:
            Rejected: Nothing leads from the key that it has.
            DiskRefused: It has the key that it had.
        """
        expected = self.expected(device_id, pinned)
        if expected is None:
            raise Rejected("unknown-device", f"{device_id} was never let in, and has no key to change")
        self.check(device_id, expected, pinned)
        keys = check_rotations(rotations, fleet, device_id, expected)
        if any(key in self._banned for key in keys):
            raise Rejected("banned", f"{device_id} with key {keys[-1][:16]}… is banned")
        if len(keys) > 1:
            self._records.rotate(device_id, keys, at)
            self.reload()
        return keys[-1]

    def _refuse_banned(self, device_id: str, key: str) -> None:
        known = self._known.get(device_id)
        if key in self._banned or (known and known.banned_at is not None):
            raise Rejected("banned", f"{device_id} with key {key[:16]}… is banned")

    def expected(self, device_id: str, pinned: str | None) -> str | None:
        """Returns the only key that may speak for a device; None where none is known of."""
        known, listed = self._known.get(device_id), self._listed.get(device_id)
        if listed is not None:
            return known.key if known and listed in known.earlier else listed
        if known is not None and (known.source != "settings" or self._is_open):
            return known.key
        return pinned if self._is_open else None
