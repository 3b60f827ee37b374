"""What one device, one key and all together may ask of a coordinator: the table `[limits]` of its settings.

Whoever has proved who it is is held to these; whoever has not gets nothing at all. The defaults leave an
honest fleet alone: docs/operations.md says what each is there for.
"""

from typing import Annotated

from msgspec import Meta, Struct

AtLeast1 = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
MIB = 1 << 20


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds, each for one device where it does not say otherwise.

    Attributes:
        max_devices: That are enrolled. Where the fleet is full, who never had an update accepted and was not
            heard for longest gives its place to a newcomer.
        max_ids_per_key: Device ids that one key may enrol.
        enrolments_per_minute: New devices, of all keys together; as many may come at once.
        messages_per_minute: Signed ones, of every kind; more are dropped, their signatures unseen.
            What may come in ten seconds may come at once, here and below.
        headers_per_minute: Updates that are offered, repeats counted; more are not answered.
        telemetry_per_minute: Reports of progress; more are dropped.
        max_open_per_device: Updates under way at a time.
        small_bytes: An update that is no larger is held in memory while it comes, and its payload stands in
            the journal; others are files. 0 holds none.
        max_held_bytes: Small updates under way, of all devices.
        idle_s: An update under way without a new chunk for so long makes room where there is none.
        expiry_s: And after so long it is forgotten.
        max_waiting: Updates in the buffer, of all devices; who comes then is told `busy` and asks again.
        max_waiting_bytes: Their payloads.
        max_waiting_per_device: Updates in the buffer, or as many as make a version where that is more.
        rejections_per_day: Rejected updates that the journal keeps; more are counted.
        want_mib_per_s: Of versions, that are published because a device asks.
        want_burst_mib: That a device may ask for at once, or four times the largest file where that is more.
        max_norm_ratio: An update's norm, as a multiple of the fleet's median.
        max_weight_ratio: A device's weight in one merge, as a multiple of the median device's; of two devices
            the median is the smaller one.
        max_steps_per_s: That a device can have taken where the recipe bounds seconds.
    """

    max_devices: AtLeast1 = 10_000
    max_ids_per_key: AtLeast1 = 4
    enrolments_per_minute: AtLeast1 = 600
    messages_per_minute: AtLeast1 = 1200
    headers_per_minute: AtLeast1 = 600
    telemetry_per_minute: AtLeast1 = 120
    max_open_per_device: AtLeast1 = 4
    small_bytes: Annotated[int, Meta(ge=0, le=MIB)] = 64 * 1024
    max_held_bytes: AtLeast1 = 64 * MIB
    idle_s: Positive = 60.0
    expiry_s: Positive = 3600.0
    max_waiting: AtLeast1 = 1000
    max_waiting_bytes: AtLeast1 = 1024 * MIB
    max_waiting_per_device: AtLeast1 = 8
    rejections_per_day: AtLeast1 = 200
    want_mib_per_s: Positive = 2.0
    want_burst_mib: Positive = 64.0
    max_norm_ratio: Annotated[float, Meta(gt=1)] = 10.0
    max_weight_ratio: Annotated[float, Meta(ge=1)] = 4.0
    max_steps_per_s: Positive = 1000.0
