import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from converters.adapter import Factors, LoraAdapter
from converters.bases.read import read_base
from converters.errors import AdapterError, UnsupportedAdapter
from converters.formats.canonical import load_adapter, save_adapter
from converters.formats.load import load_any
from converters.formats.save import save_as
from converters.lowrank import change, norm
from coordinator.commands.cli import app
from coordinator.config import config_text, read_config
from coordinator.initial_adapter import settle, settle_folder
from coordinator.ledger.sqlite import FILE
from coordinator.strategies.choice import METHODS
from edge.errors import ConfigError, StateError
from edge.transport.memory import MemoryBroker

Q0, Q1, V0 = (f"model.layers.{n}" for n in ("0.self_attn.q_proj", "1.self_attn.q_proj", "0.self_attn.v_proj"))
OPEN = {"ranks": (), "scale": None, "targets": ()}


def random_adapter(ranks, scales=None, seed=0):
    """Factors in which no direction is like another, and b is not zero."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return LoraAdapter(
        {
            name: Factors(draw(rank, 16), draw(12, rank), (scales or {}).get(name, 2.0))
            for name, rank in ranks.items()
        }
    )


PLAIN = random_adapter({Q0: 4, Q1: 4})
MIXED = random_adapter({Q0: 4, Q1: 2, V0: 3}, {Q1: 4.0, V0: 1.0})


@pytest.fixture
def written(fleet, tmp_path):
    """Writes an adapter in a format and gives its path."""

    def write(adapter=PLAIN, form="peft", name="given"):
        path = tmp_path / (f"{name}.gguf" if form == "gguf" else name)
        if form == "canonical":
            save_adapter(adapter, path)
        else:
            save_as(form, adapter, path, read_base(fleet.base))
        return str(path)

    return write


def begin(fleet, adapter=None, **changes):
    """Starts a coordinator, and gives the fleet's versions with what it said."""

    async def scenario():
        async with fleet.serving(**OPEN | {"adapter": adapter} | changes):
            pass

    fleet.said.clear()
    fleet.broker = MemoryBroker()  # one an event loop
    asyncio.run(scenario())
    with fleet.opened() as (_, versions):
        return versions.history()


def whole(fleet, number=None):
    with fleet.opened() as (_, versions):
        chosen = versions.version(number) if number is not None else versions.current()
        return versions.whole(chosen)


@pytest.mark.parametrize("form", ["canonical", "peft", "mlx", "gguf"])
def test_version_0_is_the_adapter_to_the_last_bit_and_history_says_where_it_is_from(fleet, written, form):
    if form == "gguf":
        pytest.importorskip("gguf", reason="needs the llama extra")
        config = json.loads((fleet.base / "config.json").read_text())
        (fleet.base / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    path = written(MIXED, form) if form in ("peft", "gguf", "canonical") else written(PLAIN, form)
    (version,) = begin(fleet, path)
    assert whole(fleet) == (PLAIN if form == "mlx" else MIXED)
    assert version.origin.format == form
    assert path.rpartition("/")[2] in version.origin.name
    assert "version 0 is the adapter" in fleet.said[0]
    told = CliRunner().invoke(app, ["history", "--state", str(fleet.folder), "--json"]).output
    (first,) = json.loads(told)["versions"]
    assert (first["kind"], first["origin"]["format"]) == ("first", form)
    assert len(first["origin"]["sha256"]) == 64
    shown = CliRunner().invoke(app, ["history", "--state", str(fleet.folder)]).output
    assert version.origin.sha256[:16] in shown.replace("\n", "")


def test_rank_scale_and_targets_are_the_adapters_and_the_configuration_shows_them(fleet, written, tmp_path):
    path = written()
    config = settle_folder(fleet.config(**OPEN, adapter=path))
    assert (config.ranks, config.scale, config.targets) == ((4,), 2.0, ("q_proj",))
    (tmp_path / "c.toml").write_text(config_text(config))
    again, given = settle(read_config(tmp_path / "c.toml", {}))
    assert again == config
    assert given.adapter == PLAIN
    partial = random_adapter({Q1: 2})
    config = settle_folder(fleet.config(**OPEN, adapter=written(partial, name="partial")))
    assert (config.ranks, config.targets) == ((2,), (Q1,))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"ranks": (8,)}, ["the adapter has rank 4", "--rank is 8"]),
        ({"ranks": (8, 4)}, ["the adapter has rank 4", "--rank is 8, 4"]),
        ({"scale": 1.0}, ["the adapter has scale 2", "--scale is 1"]),
        ({"targets": ("v_proj",)}, ["covers 2 layers (q_proj)", "--targets names 2 (v_proj)"]),
        ({"ranks": (8,), "scale": 1.0}, ["has rank 4", "has scale 2"]),
        ({"ranks": (4, 2), "space": "factors"}, ["give one rank, or --space product"]),
    ],
)
def test_what_contradicts_the_adapter_is_refused_with_both_named(fleet, written, changes, parts):
    with pytest.raises(ConfigError) as caught:
        begin(fleet, written(), **changes)
    for part in parts:
        assert part in str(caught.value)


def test_what_agrees_with_the_adapter_may_be_said(fleet, written):
    begin(fleet, written(), ranks=(4,), scale=2.0, targets=("q_proj",))
    assert whole(fleet) == PLAIN


def test_smaller_tiers_hold_the_leading_directions(fleet, written):
    (version,) = begin(fleet, written(), ranks=(4, 2), space="product")
    assert whole(fleet) == PLAIN
    tier = load_adapter(fleet.folder / "objects" / version.tiers["r2"])
    for name, f in PLAIN:
        wanted = f.scale * f.b.astype(np.float64) @ f.a
        sigma = np.linalg.svd(wanted, compute_uv=False)
        lost = np.linalg.norm(wanted - tier.modules[name].scale * tier.modules[name].b @ tier.modules[name].a)
        assert lost == pytest.approx(np.linalg.norm(sigma[2:]), rel=1e-4)


def test_a_folder_goes_on_with_its_adapter_and_with_no_other(fleet, written):
    begin(fleet, written(MIXED))
    begin(fleet)  # without the adapter, which may be gone by now
    begin(fleet, written(MIXED))
    begin(fleet, written(MIXED, "canonical", "copy"))  # the same to the last bit, in another format
    other = written(random_adapter({Q0: 4, Q1: 2, V0: 3}, {Q1: 4.0, V0: 1.0}, seed=1), name="other")
    with pytest.raises(StateError, match=r"began with the adapter given/.*--adapter is another, other/"):
        begin(fleet, other)
    assert whole(fleet) == MIXED


def test_a_folder_without_an_adapter_does_not_take_one_later(fleet, written):
    begin(fleet, ranks=(4,), targets=("q_proj",))
    begin(fleet)  # open settings are as the folder was founded
    with pytest.raises(
        StateError, match="began with an adapter that changes nothing, and --adapter is another"
    ):
        begin(fleet, written())


def test_a_coordinator_killed_before_version_0_does_not_begin_with_nothing(fleet, written):
    begin(fleet, written())
    with closing(sqlite3.connect(fleet.folder / FILE)) as db:
        db.execute("DELETE FROM versions")
        db.commit()
    with pytest.raises(StateError, match="give the same --adapter again"):
        begin(fleet)
    begin(fleet, written())
    assert whole(fleet) == PLAIN


def test_what_the_base_cannot_carry_is_named(fleet, tmp_path, written):
    stranger = random_adapter({"model.layers.7.self_attn.q_proj": 2})
    save_as("peft", stranger, tmp_path / "stranger")
    with pytest.raises(UnsupportedAdapter, match=r"no linear layer model\.layers\.7"):
        begin(fleet, str(tmp_path / "stranger"))
    dora = written()
    weights = load_file(f"{dora}/adapter_model.safetensors")
    weights[f"base_model.model.{Q0}.lora_magnitude_vector"] = np.ones(12, np.float32)
    save_file(weights, f"{dora}/adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapter, match=r"DoRA"):
        begin(fleet, dora)
    with pytest.raises(AdapterError, match="no adapter_config"):
        begin(fleet, str(fleet.base))
    with pytest.raises(ConfigError, match="has scale -1, expected more than 0"):
        begin(fleet, written(random_adapter({Q0: 2}, {Q0: -1.0}), name="negative"))
    with fleet.opened() as (_, versions):
        assert versions.history() == []


@asynccontextmanager
async def joined(fleet):
    async with fleet.device("x").joined() as x, fleet.device("y").joined() as y:
        yield x, y


def nothing(given):
    """A delta that changes nothing, of the rows that are trained."""
    return LoraAdapter({name: Factors(0 * f.a[:4], 0 * f.b[:, :4], f.scale) for name, f in given})


UNCALIBRATED = sorted(name for name, stages in METHODS.items() if not stages.needs_calibration)


@pytest.mark.parametrize("strategy", UNCALIBRATED)
def test_updates_that_change_nothing_leave_the_adapter_as_it_is(fleet, written, strategy):
    """No strategy takes the b of version 0 for zero, or an a for its own scale."""
    adapter = PLAIN if strategy == "fedex-lora" else MIXED

    async def scenario():
        settings = OPEN | {"adapter": written(adapter), "strategy": strategy, "recipe": {"steps": 1}}
        async with fleet.serving(**settings), joined(fleet) as (x, y):
            for device in (x, y):
                receipt, _ = await device.learn(nothing)
                assert receipt.status == "accepted", receipt
            await x.manifest(1)

    asyncio.run(scenario())
    before, after = whole(fleet, 0), whole(fleet, 1)
    assert before == adapter
    for name, f in before:
        moved = (
            f.scale * f.b @ f.a - after.modules[name].scale * after.modules[name].b @ after.modules[name].a
        )
        assert np.abs(moved).max() < 1e-4, name


def test_what_devices_teach_is_added_to_the_adapter(fleet, written):
    taught = []

    async def scenario():
        settings = OPEN | {"adapter": written(MIXED), "strategy": "fedbuff", "space": "product"}
        async with fleet.serving(**settings), joined(fleet) as (x, y):
            for device, seed in ((x, 1), (y, 2)):
                taught.append((await device.teach(seed))[1])
            await x.manifest(1)

    asyncio.run(scenario())
    merged = whole(fleet, 1)
    for name, f in MIXED:
        wanted = f.scale * f.b @ f.a
        for delta in taught:
            step = change(f, delta.modules[name])
            wanted = wanted + 0.5 * step.scale * step.b @ step.a
        found = merged.modules[name]
        sigma = np.linalg.svd(wanted, compute_uv=False)
        lost = np.linalg.norm(found.scale * found.b @ found.a - wanted)
        assert lost == pytest.approx(np.linalg.norm(sigma[f.rank :]), rel=1e-3, abs=1e-4)
        assert norm(found) > 0


def test_an_export_keeps_what_the_adapter_said_of_itself_and_names_the_base(fleet, written, tmp_path):
    path = written()
    config = json.loads((tmp_path / "given/adapter_config.json").read_text())
    kept = {"task_type": "SEQ_CLS", "target_modules": r".*\.q_proj", "base_model_name_or_path": "x/other"}
    (tmp_path / "given/adapter_config.json").write_text(json.dumps(config | kept))
    begin(fleet, path)
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["export", "--state", str(fleet.folder), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert load_any(out) == PLAIN
    exported = json.loads((out / "adapter_config.json").read_text())
    assert (exported["task_type"], exported["target_modules"]) == ("SEQ_CLS", r".*\.q_proj")
    assert exported["base_model_name_or_path"] == str(fleet.base)  # what the fleet really trains on
    card = (out / "README.md").read_text()
    for part in (
        "Fleet home, version 0",
        "given/adapter_model.safetensors",
        "nothing is trained",
        fleet.fingerprint,
    ):
        assert part in card


def test_a_journal_of_the_second_schema_is_brought_up_to_date(fleet):
    begin(fleet, ranks=(4,))
    with closing(sqlite3.connect(fleet.folder / FILE)) as db:
        db.execute("ALTER TABLE versions DROP COLUMN origin")
        db.execute("ALTER TABLE devices DROP COLUMN astray")
        db.executescript(
            "DROP TABLE access; DROP TABLE spent_tokens; DROP TABLE forgotten;"
            "ALTER TABLE devices DROP COLUMN stamps;"
            "DROP INDEX updates_attempts; ALTER TABLE updates DROP COLUMN norm;"
            "ALTER TABLE devices DROP COLUMN num_unlisted;"
        )
        db.execute("DELETE FROM meta WHERE key = 'base name'")
        db.execute("PRAGMA user_version = 2")
        db.commit()
    with fleet.opened() as (journal, versions):
        assert versions.current().origin is None
        assert journal.meta("base name") is None
    begin(fleet)
    with fleet.opened() as (journal, _):
        assert journal.meta("base name") == str(fleet.base)
