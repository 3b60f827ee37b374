"""The options of `tunefleet serve`, a record for each group of its help.

All are None where they are not given: a settings file may hold them, and `coordinator.config` has the
defaults.
"""

from functools import partial
from typing import Annotated, NamedTuple

from typer import Option

from edge.choices import AskedPrecision, EncodingName, Enrolment, Space
from edge.transport import options

FLEET, ADAPTER, MERGING = "Fleet", "Adapter", "Merging"
RECIPE, SCORES, DEVICES = "Training on devices", "Scores", "Devices"
_fleet, _adapter = partial(Option, rich_help_panel=FLEET), partial(Option, rich_help_panel=ADAPTER)
_merging, _recipe = partial(Option, rich_help_panel=MERGING), partial(Option, rich_help_panel=RECIPE)
_scores, _devices = partial(Option, rich_help_panel=SCORES), partial(Option, rich_help_panel=DEVICES)


class FleetOptions(NamedTuple):
    """Which fleet is served, with which model."""

    fleet: Annotated[
        str | None, _fleet(metavar="NAME", help="The fleet's name: a-z, 0-9 and -. Required.")
    ] = None
    broker: options.Url = None
    base: Annotated[
        str | None,
        _fleet(
            "--base",
            "--model",
            metavar="MODEL",
            help="The base model: a Hugging Face or MLX folder, a .gguf file, or a name on the hub. "
            "Required.",
        ),
    ] = None
    state: Annotated[
        str | None,
        _fleet(
            metavar="FOLDER",
            help="Where this coordinator keeps its key, its journal and its versions; for it alone. "
            "Required.",
        ),
    ] = None


class AdapterOptions(NamedTuple):
    """What version 0 is, and the adapters of the fleet."""

    adapter: Annotated[
        str | None,
        _adapter(
            metavar="PATH",
            help="Begin with this adapter: a folder of PEFT or mlx-lm, a .gguf file, or tunefleet's own. "
            "Rank, scale and layers are then its.",
        ),
    ] = None
    rank: Annotated[
        str | None,
        _adapter(
            "--rank",
            "--ranks",
            metavar="N",
            help="The rank of the fleet's adapter, and of smaller tiers for small devices: 8, or 8,4.",
        ),
    ] = None
    scale: Annotated[
        float | None,
        _adapter(metavar="X", help="What the adapter's product is multiplied by: lora_alpha / rank in PEFT."),
    ] = None
    targets: Annotated[
        str | None,
        _adapter(
            metavar="NAMES",
            help="The layers that carry the adapter: endings of their names, with commas, or all-linear, "
            "which is every layer but the head.",
        ),
    ] = None
    num_layers: Annotated[
        int | None,
        _adapter(metavar="N", min=-1, help="Carry the adapter in the last N blocks only; -1 is all of them."),
    ] = None
    seed: Annotated[
        int | None, _adapter(metavar="N", min=0, help="Of version 0, the adapter that training begins with.")
    ] = None


class MergingOptions(NamedTuple):
    """How updates become a version."""

    strategy: Annotated[
        str | None,
        _merging(
            metavar="NAME",
            help="How updates become a version: fedavg, fedasync, fedbuff, alignfed, alignfed-literal, "
            "ffa-lora, fedsa-lora, flora, flexlora, hetlora, fedex-lora, lora-fair or tunefleet. Without "
            "it tunefleet with --calibration, fedbuff otherwise.",
        ),
    ] = None
    calibration: Annotated[
        str | None,
        _merging(
            metavar="FILE",
            help="Examples, a few dozen, by which steps and devices are judged; no device trains on them.",
        ),
    ] = None
    space: Annotated[
        Space | None,
        _merging(
            metavar="NAME",
            help="What is added up: product, the layers' true change, or factors. Without it the "
            "strategy's own.",
        ),
    ] = None
    buffer_size: Annotated[
        int | None,
        _merging(
            metavar="N",
            min=1,
            help="Updates that make a version; without it one of each device online, in a fleet of more "
            "than 4 fewer.",
        ),
    ] = None
    time_budget_s: Annotated[
        float | None,
        _merging(
            metavar="S",
            min=0,
            help="Merge what is there when an update has waited for S seconds; 0 waits for a full buffer. "
            "Without it 60, and up to 600 where training takes longer.",
        ),
    ] = None
    max_staleness: Annotated[
        int | None, _merging(metavar="N", min=0, help="Reject updates that are more than N versions old.")
    ] = None
    server_lr: Annotated[float | None, _merging(metavar="X", help="What a merged step is multiplied by.")] = (
        None
    )
    max_versions: Annotated[
        int | None, _merging(metavar="N", min=0, help="End when version N is made; 0 never ends.")
    ] = None


class TaskOptions(NamedTuple):
    """How devices train, and send what they learnt."""

    steps: Annotated[
        int | None, _recipe(metavar="N", min=0, help="Optimizer steps of one task; 0 leaves it to --seconds.")
    ] = None
    seconds: Annotated[
        float | None, _recipe(metavar="S", min=0, help="Seconds of one task, with --steps 0.")
    ] = None
    lr: Annotated[
        float | None,
        _recipe("--lr", "--learning-rate", metavar="X", min=0, help="AdamW's learning rate on devices."),
    ] = None
    seq_tokens: Annotated[
        int | None,
        _recipe(
            "--seq-tokens",
            "--max-seq-length",
            metavar="N",
            min=2,
            help="The longest sequence, in tokens; longer examples are cut.",
        ),
    ] = None
    batch_tokens: Annotated[
        int | None, _recipe(metavar="N", min=2, help="Tokens of one step, over all of its sequences.")
    ] = None
    attempts: Annotated[
        int | None,
        _recipe(metavar="N", min=0, help="Tasks that a device may do on one version; 0 sets no bound."),
    ] = None
    encoding: Annotated[
        EncodingName | None,
        _recipe(
            metavar="NAME",
            help="How updates are sent: f32, f16, int8 or int4; smaller ones lose a little, which the next "
            "update makes up for.",
        ),
    ] = None


class ScoreOptions(NamedTuple):
    """What versions are scored on."""

    eval_data: Annotated[
        str | None,
        _scores(metavar="FILE", help="Examples that every version is scored on; no device trains on them."),
    ] = None
    eval_every: Annotated[int | None, _scores(metavar="N", min=1, help="Score every N-th version.")] = None
    precision: Annotated[
        AskedPrecision | None,
        _scores(
            metavar="NAME",
            help="What versions are scored and steps are judged in: float32, bfloat16, or auto, the faster.",
        ),
    ] = None


class DeviceOptions(NamedTuple):
    """Which devices may take part."""

    enrolment: Annotated[
        Enrolment | None,
        _devices(
            metavar="NAME",
            help="open takes any device; closed only those in --config or --devices-file, those let in by "
            "`tunefleet device allow`, and those that come with a token.",
        ),
    ] = None
    devices_file: Annotated[
        str | None,
        _devices(
            metavar="FILE",
            help="Devices that may take part: a line each, id and public key; read again when it changes.",
        ),
    ] = None
