import pytest

from coordinator.demo.result import DemoResult, DeviceResult, Sample, Score, UpdatePoint, VersionPoint

NAMES = ("flat", "farm", "workshop", "boat")


def result_of(fleet_exact: float) -> DemoResult:
    devices = [
        DeviceResult(
            device_id=name,
            kind="power",
            backend=("torch", "mlx", "llama_cpp q8_0", "llama_cpp q4_0")[number],
            slowdown=1.0 + number,
            updates=4 - number,
            mean_staleness=number / 2,
            weight_share=(4 - number) / 10,
            steps=40 - 10 * number,
            before=Score(exact=0.0, loss=5.0),
            alone=Score(exact=0.2 + number / 100, loss=2.0),
            fleet=Score(exact=fleet_exact - number / 400, loss=0.1),
        )
        for number, name in enumerate(NAMES)
    ]
    updates = [
        UpdatePoint(
            device_id=name, seconds=5.0 * step + number, staleness=number, loss=2.0 / (1 + step + number)
        )
        for number, name in enumerate(NAMES)
        for step in range(4 - number)
    ]
    versions = [VersionPoint(version=n, seconds=6.0 * n, loss=4.0 / (1 + n), exact=n / 4) for n in range(4)]
    return DemoResult(
        devices=devices,
        versions=versions,
        updates=updates,
        samples=[Sample(prompt="Is <it> & on?\n", expected="a/b/c", base="no idea", fleet="a/b/c")],
        forms=["peft", "gguf"],
        num_held_out=240,
        base=Score(exact=0.0, loss=4.9),
        fleet=Score(exact=fleet_exact, loss=0.1),
        seconds=123.4,
        notes=["MLX is not installed: its devices train with torch"],
    )


@pytest.fixture
def recorded():
    """A small result of a run in which the fleet answers 75 %."""
    return result_of(0.75)


@pytest.fixture
def recorded_with():
    """The same, for other shares of the fleet."""
    return result_of
