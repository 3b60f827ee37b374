"""What the benchmark of flat memory lets pass, and what not."""

from benchmarks.speed.backends import MB, flat_faults, flat_row
from benchmarks.speed.steps import Watched

STEPS = range(50, 1001, 50)


def row(name, sizes_mb, seed=0):
    held = [(step, int(size * MB)) for step, size in zip(STEPS, sizes_mb, strict=True)]
    return flat_row(name, seed, Watched(held, int(max(sizes_mb) * MB)))


def test_memory_that_grows_with_every_step_is_a_fault():
    (fault,) = flat_faults([row("torch bf16", [500 + step / 10 for step in STEPS])])
    assert fault == "torch bf16 seed 0 grows by 100 MB in 1,000 steps; expected at most 32"


def test_caches_that_fill_at_the_start_are_no_growth():
    assert list(flat_faults([row("torch bf16", [min(600, 400 + step) for step in STEPS])])) == []


def test_a_small_jump_is_malloc_s():
    assert list(flat_faults([row("llama_cpp f32", [100 + 13 * (step > 500) for step in STEPS])])) == []


def test_a_peak_far_above_torchs_in_float32_is_a_fault():
    rival, heavy = row("torch f32", [500] * 20), row("torch bf16", [1500] * 20)
    assert list(flat_faults([rival, heavy])) == [
        "torch bf16 seed 0 holds 1500 MB at its peak; expected at most 875"
    ]
    assert (
        list(flat_faults([rival, row("torch bf16", [800] * 20), row("MLX f32", [1500] * 20, seed=1)])) == []
    )
