"""What a device has spent of its privacy: a line for each update, on the disk before the update may leave.

    privacy.jsonl    in the state folder, only ever appended to

A line is written and synced before the update goes into the spool, so no kill sends what was not counted. A
kill in between counts an update that never left; when its task is brought in again its line is the last one
already, and it costs nothing more: nobody saw the first one's noise. A line that a kill or a full disk tore
is cut off: nothing was spooled on it.

The state folder is the account. Who copies it, or brings an old one back, spends what is not counted here.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edge.device.task import TaskKey
from edge.errors import StateError
from edge.privacy.accounting import compose, epsilon_of
from edge.privacy.terms import Place, Terms, Unit, Wishes
from edge.storage.disk import room_for, sync_folder

FILE = "privacy.jsonl"


class Spending(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one update cost; a line of the file."""

    at: float  # Unix time
    epoch: int  # of the coordinator's session that announced the version
    version: int
    attempt: int
    unit: Unit
    noise: float
    clip_norm: float
    place: Place
    num_steps: int

    @property
    def task(self) -> TaskKey:
        """Returns which task it was."""
        return self.epoch, self.version, self.attempt

    @property
    def mu(self) -> float:
        """Returns its cost, in Gaussian differential privacy."""
        terms = Terms(unit=self.unit, noise=self.noise, clip_norm=self.clip_norm, at=self.place)
        return terms.mu(self.num_steps)


class Budget:
    """The account of one state folder.

    Args:
        folder: The state folder.
        wishes: What may be spent.
        clock: Unix time in seconds.

    Raises:
        StateError: The file is damaged.
    """

    def __init__(self, folder: Path, wishes: Wishes, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE
        self._wishes = wishes
        self._clock = clock
        self.spendings = read_spendings(self._path)

    @property
    def mu(self) -> float:
        """Returns what all updates cost together, for the unit that the device wants hidden."""
        return total_mu(self.spendings, self._wishes.unit)

    @property
    def epsilon(self) -> float:
        """Returns the same as epsilon, at the wanted delta; infinite where something went out unprotected."""
        return epsilon_of(self.mu, self._wishes.delta)

    @property
    def told(self) -> str:
        """Tells people what is spent; empty where nothing was."""
        if not self.spendings:
            return ""
        most = "" if self._wishes.epsilon is None else f" of {self._wishes.epsilon:g}"
        return f"privacy spent: epsilon {self.epsilon:.3g}{most} at delta {self._wishes.delta:g}"

    def facts(self) -> dict[str, float]:
        """Returns the same as numbers."""
        if not self.spendings:
            return {}
        return {"epsilon": self.epsilon, "delta": self._wishes.delta}

    def refusal(self, task: TaskKey, terms: Terms, num_steps: int) -> str | None:
        """Tells why a task is not done: it asks for too little privacy, or costs more than is left.

        Args:
            task: Which one; one that is paid for already costs nothing.
            terms: That it asks for.
            num_steps: Of its recipe; 0 where time bounds it.
        """
        reason = self._wishes.refusal(terms)
        most = self._wishes.epsilon
        if reason is not None or most is None or self._is_paid(task):
            return reason
        after = epsilon_of(compose((self.mu, terms.mu(num_steps))), self._wishes.delta)
        if after <= most:
            return None
        return (
            f"its update would bring epsilon from {self.epsilon:.3g} to {after:.3g}, "
            f"and the budget is {most:g} at delta {self._wishes.delta:g} (privacy.epsilon)"
        )

    def spend(self, task: TaskKey, terms: Terms, num_steps: int) -> None:
        """Writes down what an update costs; returns when it is on the disk. A task costs once.

        What has no privacy is written down where there is an account, or a wish for one.

        Raises:
            DiskFull: Nothing was written, and the update must not leave.
        """
        if not (terms.is_on or self.spendings or self._wishes.are_any):
            return
        if self._is_paid(task):
            return
        epoch, version, attempt = task
        spending = Spending(
            at=self._clock(),
            epoch=epoch,
            version=version,
            attempt=attempt,
            unit=terms.unit,
            noise=terms.noise,
            clip_norm=terms.clip_norm,
            place=terms.at,
            num_steps=num_steps,
        )
        _append(self._path, msgspec.json.encode(spending) + b"\n")
        self.spendings.append(spending)

    def _is_paid(self, task: TaskKey) -> bool:
        return bool(self.spendings) and self.spendings[-1].task == task


def read_spendings(path: Path) -> list[Spending]:
    """Reads an account; where there is none nothing was spent.

    Raises:
        StateError: It is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]  # behind it is what a kill tore
    found = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found.append(msgspec.json.decode(line, type=Spending))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StateError(
                f"{path}, line {number}: is damaged: {error}; restore it, or give another --state, "
                "which begins with nothing spent"
            ) from error
    return found


def total_mu(spendings: list[Spending], unit: Unit) -> float:
    """Adds up what updates cost; infinite where one of them did not hide `unit`."""
    if unit == "device" and any(one.unit == "example" for one in spendings):
        return math.inf
    return compose(one.mu for one in spendings)


def sum_up(spendings: list[Spending], delta: float) -> dict[str, Any]:
    """Reports an account.

    Returns:
        Counts of updates, and epsilon for one example and for all that the device has; None where nothing
        bounds it.
    """
    epsilons: dict[Unit, float] = {
        "example": epsilon_of(total_mu(spendings, "example"), delta),
        "device": epsilon_of(total_mu(spendings, "device"), delta),
    }
    return {
        "num_updates": len(spendings),
        "num_hiding_device": sum(one.unit == "device" for one in spendings),
        "num_hiding_example": sum(one.unit == "example" for one in spendings),
        "num_plain": sum(one.unit == "none" for one in spendings),
        "num_noised_at_coordinator": sum(one.place == "coordinator" for one in spendings),
        "delta": delta,
        **{f"epsilon_{unit}": epsilon if epsilon < math.inf else None for unit, epsilon in epsilons.items()},
    }


def _append(path: Path, line: bytes) -> None:
    with room_for("what an update costs in privacy", path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            end = _end_of_lines(descriptor)
            os.ftruncate(descriptor, end)
            written = 0
            while written < len(line):
                written += os.pwrite(descriptor, line[written:], end + written)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)


def _end_of_lines(descriptor: int) -> int:
    """Finds where the last whole line ends; an account is small, a line for each update."""
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)
    return content.rfind(b"\n") + 1
