import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def test_three_old_versions_of_four_are_aligned_on_the_part_of_the_set_that_is_probed(tmp_path):
    from benchmarks.speed.alignment import measure

    found = measure("LLaMA-2M", tmp_path, 2, num_examples=8)
    assert found["aligned"] == 12
    assert found["probed_tokens"] == 4 * 64
    assert len(found["seconds_all"]) == 2
