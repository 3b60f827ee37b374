"""The demo's folder: where things lie, the devices' sentences, and what each process is told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from coordinator.demo.household import FLEET, Household, held_out, own_examples, save_examples
from coordinator.demo.plan import MODEL, RANK, SCALE, DemoPlan, Member

HELD_OUT = "held-out"
CALIBRATION = "calibration"


def adapter_name(form: str) -> str:
    """Returns the name of the fleet's adapter in a form, within the demo's folder."""
    return "adapter.gguf" if form == "gguf" else f"adapter-{form}"


class Paths(NamedTuple):
    """Where things lie in the demo's folder."""

    folder: Path
    model: Path = MODEL

    @property
    def state(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "state"

    @property
    def logs(self) -> Path:
        """What the processes said."""
        return self.folder / "logs"

    def data(self, name: str) -> Path:
        """Returns the file of a device's sentences, of the held-out ones, or of those for watching."""
        return self.folder / "data" / f"{name}.jsonl"

    def config(self, name: str) -> Path:
        """Returns the file of what `tunefleet serve` or `tunefleet join` is told."""
        return self.folder / "configs" / f"{name}.toml"

    def base(self, quant: str | None) -> Path:
        """Returns the fleet's model, or the GGUF file of a type that is made from it."""
        return self.folder / "models" / f"{quant}.gguf" if quant else self.model

    def adapter(self, form: str) -> Path:
        """Returns the fleet's adapter in a form: a folder for `peft` and `mlx`, a file for `gguf`."""
        return self.folder / adapter_name(form)

    def alone(self, device_id: str) -> Path:
        """Returns the folder of the adapter that a device makes by itself."""
        return self.folder / "alone" / device_id


def write_data(paths: Paths, plan: DemoPlan, homes: Sequence[Household] = FLEET) -> None:
    """Writes every device's own sentences, the held-out ones, and others like those to watch versions by."""
    paths.data("").parent.mkdir(parents=True, exist_ok=True)
    for member in plan.members:
        name = member.home.device_id
        save_examples(own_examples(member.home, plan.num_own, plan.seed), paths.data(name))
    unseen = held_out(plan.num_held_out + plan.num_calibration, plan.seed, homes)
    save_examples(unseen[: plan.num_held_out], paths.data(HELD_OUT))
    save_examples(unseen[plan.num_held_out :], paths.data(CALIBRATION))


def write_configs(paths: Paths, plan: DemoPlan, broker: str) -> None:
    """Writes what the coordinator and each device are told: files to start a fleet of one's own from."""
    paths.config("").parent.mkdir()
    # The embedded broker speaks MQTT 3.1.1.
    shared = {"broker": broker, "protocol": "3.1.1", "fleet": "demo"}
    _save(paths.config("coordinator"), shared | _coordinator(paths, plan))
    for member in plan.members:
        _save(paths.config(member.home.device_id), shared | _device(paths, member))


def _coordinator(paths: Paths, plan: DemoPlan) -> dict[str, Any]:
    return {
        "state": str(paths.state),
        "base": str(paths.model),
        "ranks": [RANK],
        "scale": SCALE,
        "targets": list(plan.targets),
        "seed": plan.seed,
        "strategy": plan.strategy,
        "buffer_size": plan.buffer_size,
        "time_budget_s": 0.0,
        "space": plan.space,
        "eval_data": str(paths.data(CALIBRATION)),
        "calibration_data": str(paths.data(CALIBRATION)),
        "recipe": {
            "steps": plan.steps,
            "lr": plan.lr,
            "seq_tokens": plan.seq_tokens,
            "batch_tokens": plan.batch_tokens,
        },
    }


def _device(paths: Paths, member: Member) -> dict[str, Any]:
    name = member.home.device_id
    return {
        "device_id": name,
        "state": str(paths.folder / "devices" / name),
        "base": str(paths.base(member.quant)),
        "backend": member.backend,
        "slowdown": member.slowdown,
        "data": {"path": str(paths.data(name))},
    }


def _save(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(tomli_w.dumps(settings), "utf-8")
