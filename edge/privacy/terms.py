"""What a fleet asks of its devices for privacy's sake, and what a device wants at the least.

`Terms` stand in the signed manifest, `Wishes` in the device's own settings; the wishes have the last word.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edge.privacy.accounting import mu_of

Unit = Literal["none", "device", "example"]
Place = Literal["device", "coordinator"]
Noise = Annotated[float, Meta(ge=0, le=1e6)]
ClipNorm = Annotated[float, Meta(ge=1e-9, le=1e6)]
Delta = Annotated[float, Meta(gt=0, lt=1)]

_STRENGTH: dict[Unit, int] = {"none": 0, "example": 1, "device": 2}


class Terms(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How an update is made private.

    Attributes:
        unit: Whose part in an update is hidden. `device`: all that a device has; its delta is clipped, and
            noise is added once an update. `example`: each of its examples; every example's gradient is
            clipped, and noise is added in every step (DP-SGD). `none`: nobody's.
        clip_norm: Largest norm that a unit's delta or gradient keeps.
        noise: Standard deviation of the noise, over `clip_norm`.
        at: Who adds the noise. Where it is the coordinator (unit `device` only) devices clip, and it sees
            their clipped deltas; noise that is added once a version hides as much in a small fleet as
            noise in every update would, and costs far less.
    """

    unit: Unit = "none"
    clip_norm: ClipNorm = 1.0
    noise: Noise = 1.0
    at: Place = "device"

    @property
    def is_on(self) -> bool:
        """Tells whether anything is asked at all."""
        return self.unit != "none"

    @property
    def noised_here(self) -> bool:
        """Tells whether what leaves the device is noised already."""
        return self.is_on and self.at == "device"

    @property
    def deviation(self) -> float:
        """Returns the standard deviation of a device's noise on its delta; 0 where it adds none."""
        return self.noise * self.clip_norm if self.noised_here and self.unit == "device" else 0.0

    def mu(self, num_steps: int) -> float:
        """Returns what one update costs, in Gaussian differential privacy.

        Args:
            num_steps: Of its training; 0 where that is not known beforehand. For `example` every step
                counts: an example is in some of them only, but the order of the data decides in which.
        """
        if not self.is_on:
            return math.inf
        if self.unit == "device":
            return mu_of(self.noise)
        return mu_of(self.noise, num_steps) if num_steps else math.inf


NO_TERMS = Terms()


class Wishes(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The least privacy that a device trains for.

    Attributes:
        unit: A task must hide as much: `device` hides more than `example`.
        noise: A task must ask for as much noise.
        at: Where the noise must be added: `coordinator` takes a fleet's word that it adds it.
        epsilon: What all updates together may cost at `delta`; None is no bound. Above 0, and no task
            without privacy is done.
        delta: Should be far below one over the number of units.
    """

    unit: Unit = "none"
    noise: Noise = 0.0
    at: Place = "device"
    epsilon: Annotated[float, Meta(gt=0)] | None = None
    delta: Delta = 1e-5

    @property
    def are_any(self) -> bool:
        """Tells whether the device wants anything."""
        return self.unit != "none" or self.epsilon is not None

    def refusal(self, terms: Terms) -> str | None:
        """Tells why a task with these terms is not done, whatever was spent before; None where it is."""
        if not self.are_any:
            return None
        least: Unit = self.unit if self.unit != "none" else "example"
        if _STRENGTH[terms.unit] < _STRENGTH[least]:
            return (
                f"the fleet asks for privacy of unit {terms.unit}, this device wants {least} (privacy.unit)"
            )
        if terms.at == "coordinator" and self.at == "device":
            return (
                "the fleet adds noise at the coordinator, this device wants it added here "
                '(privacy.at = "coordinator" trusts the coordinator with clipped updates)'
            )
        if terms.noise < self.noise:
            return (
                f"the fleet asks for noise {terms.noise:g}, this device wants {self.noise:g} (privacy.noise)"
            )
        return None


def terms_faults(terms: Terms, *, steps: int) -> Iterator[str]:
    """Finds what keeps terms from being followed.

    Args:
        terms: Of the coordinator's settings.
        steps: Of the recipe; 0 where time bounds it.
    """
    if terms.unit == "example" and terms.at == "coordinator":
        yield 'privacy.unit example needs noise in every step, on the device: set privacy.at = "device"'
    if terms.unit == "example" and steps == 0:
        yield "privacy.unit example counts steps, and recipe.steps is 0: set it instead of recipe.seconds"
