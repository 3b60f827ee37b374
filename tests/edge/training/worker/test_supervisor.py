import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from msgspec import structs

from converters.errors import BaseModelError
from converters.formats.canonical import load_adapter
from edge.errors import BackendError, DataError, OutOfMemory, StateError
from edge.training.checkpoint import FILE
from edge.training.data.source import DataSource
from edge.training.plan import Plan
from edge.training.requests import Generation, Sampling, Scoring, Training
from edge.training.worker.supervisor import Worker

PLAN = Plan(steps=40, lr=0.02, seq_tokens=64, batch_tokens=128, checkpoint_every_s=0.0)


@pytest.fixture
def task(source, adapter_file, tmp_path):
    return Training(adapter=str(adapter_file), data=source, plan=PLAN, folder=str(tmp_path / "task"))


@pytest.fixture
def slow(task):
    """So slow that it is always interrupted."""
    return structs.replace(task, slowdown=500.0)


def whole_run(base, task, tmp_path):
    async def run():
        async with Worker(base) as worker:
            return await worker.train(structs.replace(task, slowdown=1.0, folder=str(tmp_path / "whole")))

    return asyncio.run(run())


def assert_same(result, whole):
    assert result.is_complete
    assert result.losses == whole.losses
    assert load_adapter(Path(result.adapter)) == load_adapter(Path(whole.adapter))


async def started(worker, task):
    """Training under way, at least one step done."""
    has_begun = asyncio.Event()
    training = asyncio.create_task(worker.train(task, lambda _: has_begun.set()))
    await has_begun.wait()
    return training


def test_a_worker_trains_and_tells_how_far_it_is(base, task):
    told = []

    async def run():
        async with Worker(base) as worker:
            return await worker.train(task, told.append)

    result = asyncio.run(run())
    assert result.is_complete
    assert result.loss_after < result.loss_before
    assert told[0].step == 1
    assert (told[-1].step, told[-1].steps) == (40, 40)
    assert told[-1].memory_bytes > 1 << 20


def test_the_model_stays_loaded_between_tasks(base, task, tmp_path):
    async def run():
        async with Worker(base) as worker:
            first = await worker.train(task)
            pid = worker.pid
            second = await worker.train(structs.replace(task, folder=str(tmp_path / "second")))
            assert worker.pid == pid
            assert second.losses == first.losses

    asyncio.run(run())


def test_a_stopped_run_is_resumed_to_the_same_adapter(base, slow, tmp_path):
    async def run():
        async with Worker(base) as worker:
            training = await started(worker, slow)
            await worker.stop()
            stopped = await training
            return stopped, await worker.train(structs.replace(slow, slowdown=1.0))

    stopped, resumed = asyncio.run(run())
    assert not stopped.is_complete
    assert 0 < stopped.num_steps < 40
    assert_same(resumed, whole_run(base, slow, tmp_path))


def test_a_stop_before_the_first_step_is_not_lost(base, slow):
    async def run():
        async with Worker(base) as worker:
            training = asyncio.create_task(worker.train(slow))
            await asyncio.sleep(0)
            await worker.stop()
            return await training

    assert not asyncio.run(run()).is_complete


def test_stopping_an_idle_worker_does_nothing(base, task):
    async def run():
        async with Worker(base) as worker:
            await worker.stop()
            await worker.load()
            await worker.stop()
            return await worker.train(task)

    assert asyncio.run(run()).is_complete


def test_a_killed_run_is_resumed_to_the_same_adapter(base, slow, tmp_path):
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 3\n")

    async def run():
        async with Worker(base, vmstat=vmstat) as worker:
            training = await started(worker, slow)
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(BackendError, match="not for want of memory"):
                await training
            return await worker.train(structs.replace(slow, slowdown=1.0))

    assert_same(asyncio.run(run()), whole_run(base, slow, tmp_path))


def test_a_run_killed_for_want_of_memory_goes_on_with_smaller_parts(base, slow, tmp_path):
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 3\n")
    sizes = []

    async def run():
        async with Worker(base, vmstat=vmstat) as worker:
            has_begun = asyncio.Event()

            def tell(progress):
                sizes.append(progress.micro_batch_tokens)
                has_begun.set()

            training = asyncio.create_task(worker.train(slow, tell))
            await has_begun.wait()
            vmstat.write_text("oom_kill 4\n")
            os.kill(worker.pid, signal.SIGKILL)
            has_begun.clear()
            await has_begun.wait()
            await worker.stop()
            return await training

    assert asyncio.run(run()).micro_batch_tokens == 64
    assert set(sizes) == {0, 64}


def test_a_run_that_memory_never_suffices_for_gives_up(base, slow, tmp_path):
    smallest = structs.replace(slow, plan=structs.replace(PLAN, micro_batch_tokens=32))

    async def run():
        async with Worker(base, vmstat=tmp_path / "none") as worker:  # as on macOS: the cause is unknown
            training = await started(worker, smallest)
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(OutOfMemory, match="lower seq_tokens"):
                await training

    asyncio.run(run())


def test_a_worker_that_dies_leaves_its_last_words(base, slow):
    async def run():
        async with Worker(base) as worker:
            training = await started(worker, slow)
            os.kill(worker.pid, signal.SIGABRT)
            with pytest.raises(BackendError, match="ended with status -6; its last words"):
                await training

    asyncio.run(run())


def test_a_cancelled_call_does_not_answer_the_next_one(base, slow):
    async def run():
        async with Worker(base) as worker:
            training = await started(worker, slow)
            training.cancel()
            with pytest.raises(asyncio.CancelledError):
                await training
            return await worker.generate(Generation(prompts=("turn ",), sampling=Sampling(max_tokens=2)))

    assert len(asyncio.run(run())) == 1


def test_leaving_a_worker_ends_its_process_with_a_checkpoint(base, slow, tmp_path):
    async def run():
        async with Worker(base) as worker:
            training = await started(
                worker, structs.replace(slow, plan=structs.replace(PLAN, checkpoint_every_s=60))
            )
            pid = worker.pid
        assert not (await training).is_complete
        return pid

    pid = asyncio.run(run())
    assert (tmp_path / "task" / FILE).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_scores_and_completions_are_those_of_the_adapter(base, task, source):
    async def run():
        async with Worker(base) as worker:
            plan = structs.replace(PLAN, steps=900, schedule="linear", checkpoint_every_s=60.0)
            result = await worker.train(structs.replace(task, plan=plan))
            scores = [
                await worker.score(Scoring(adapter=adapter, data=source))
                for adapter in (None, result.adapter)
            ]
            texts = await worker.generate(
                Generation(prompts=("turn left ",), adapter=result.adapter, sampling=Sampling(max_tokens=8))
            )
            return *scores, texts

    plain, trained, texts = asyncio.run(run())
    assert trained.loss < 0.2 * plain.loss
    assert trained.num_examples == plain.num_examples == 8
    assert [answer.text for answer in texts] == ["LEFT"]


@pytest.mark.parametrize("kind", ["mlx-lm", "saved-dict"])
def test_a_file_that_changes_inside_a_folder_is_read_again_and_is_other_data(
    base, task, tmp_path, write_data, kind
):
    rows = [{"prompt": f"turn {word} ", "completion": word.upper()} for word in ("on", "off", "up", "down")]
    source = DataSource(path=str(write_data(tmp_path / "data", kind, rows)))
    task = structs.replace(task, data=source)

    async def run():
        async with Worker(base) as worker:
            assert (await worker.score(Scoring(adapter=None, data=source))).num_examples == 4
            await worker.train(task)
            shutil.rmtree(tmp_path / "data")
            write_data(tmp_path / "data", kind, [*rows[:3], {"prompt": "turn DOWN ", "completion": "down"}])
            with pytest.raises(StateError, match="another task"):
                await worker.train(task)
            shutil.rmtree(tmp_path / "data")
            write_data(tmp_path / "data", kind, rows)  # the same rows in new files are the same data
            assert (await worker.train(task)).is_complete

    asyncio.run(run())


def test_errors_keep_their_kind_over_the_pipe(base, task):
    async def run():
        async with Worker(base) as worker:
            with pytest.raises(DataError, match=r"nowhere\.jsonl"):
                await worker.score(Scoring(adapter=None, data=DataSource(path="nowhere.jsonl")))
            await worker.train(task)
            with pytest.raises(StateError, match="another task"):
                await worker.train(structs.replace(task, plan=structs.replace(PLAN, steps=41)))

    asyncio.run(run())


def test_a_base_that_cannot_be_loaded_is_an_error_of_its_kind(tmp_path):
    async def run():
        async with Worker(tmp_path, "toy") as worker:
            await worker.load()

    with pytest.raises(BaseModelError, match="is no toy base"):
        asyncio.run(run())


def test_an_unknown_backend_is_refused_before_a_process_is_started(base):
    async def run():
        async with Worker(base, "abacus") as worker:
            await worker.load()

    with pytest.raises(BackendError, match="'abacus' is unknown; expected one of auto, toy, torch, mlx"):
        asyncio.run(run())


def test_a_plan_longer_than_the_context_is_cut_to_it(base, task):
    async def run():
        async with Worker(base) as worker:
            return await worker.train(
                structs.replace(task, plan=Plan(steps=2, seq_tokens=4096, batch_tokens=4096))
            )

    assert asyncio.run(run()).num_steps == 2
