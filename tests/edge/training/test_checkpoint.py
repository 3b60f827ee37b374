import numpy as np
import pytest
from msgspec import structs

from edge.errors import DiskFull, StateError
from edge.training.checkpoint import (
    FILE,
    Checkpoint,
    Tally,
    load_checkpoint,
    save_checkpoint,
    training_digest,
)
from edge.training.plan import Plan

CHECKPOINT = Checkpoint(
    Tally(num_steps=3, seconds=1.5, num_examples=7, num_tokens=90, micro_batch_tokens=64),
    [3.0, 2.5, 0.1],
    {"factor": np.arange(6, dtype=np.float32).reshape(2, 3), "num_steps": np.array(3, np.int64)},
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_checkpoint(CHECKPOINT, tmp_path, "a task")
    found = load_checkpoint(tmp_path, "a task")
    assert found.tally == CHECKPOINT.tally
    assert found.losses == CHECKPOINT.losses
    assert found.model.keys() == CHECKPOINT.model.keys()
    assert all(np.array_equal(found.model[name], array) for name, array in CHECKPOINT.model.items())


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path, "a task") is None


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    save_checkpoint(CHECKPOINT, tmp_path, "a task")
    with pytest.raises(StateError, match="belongs to another task"):
        load_checkpoint(tmp_path, "another")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda _: b""]
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    save_checkpoint(CHECKPOINT, tmp_path, "a task")
    path = tmp_path / FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match="is damaged"):
        load_checkpoint(tmp_path, "a task")


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    save_checkpoint(CHECKPOINT, tmp_path, "a task")
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(rb"{\"format\":1,", rb"{\"format\":2,"))
    with pytest.raises(StateError, match="has format 2, expected 1"):
        load_checkpoint(tmp_path, "a task")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, small_disk):
    save_checkpoint(CHECKPOINT, tmp_path, "a task")
    large = CHECKPOINT._replace(model={"factor": np.zeros(1_000_000, np.float32)})
    with small_disk(), pytest.raises(DiskFull):
        save_checkpoint(large, tmp_path, "a task")
    assert load_checkpoint(tmp_path, "a task").tally == CHECKPOINT.tally
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_task_is_known_by_adapter_data_plan_and_base(adapter, model):
    plan = Plan(steps=3)
    card = model.card
    digests = {
        training_digest(adapter, "data", plan, card),
        training_digest(adapter, "other data", plan, card),
        training_digest(adapter, "data", structs.replace(plan, lr=0.5), card),
        training_digest(adapter, "data", plan, card._replace(backend="torch")),
    }
    assert len(digests) == 4


def test_a_task_stays_the_same_with_smaller_micro_batches(adapter, model):
    plan = Plan(steps=3)
    other = structs.replace(plan, micro_batch_tokens=32, checkpoint_every_s=1.0)
    assert training_digest(adapter, "data", plan, model.card) == training_digest(
        adapter, "data", other, model.card
    )
