import pytest

from coordinator.strategies.stages.krum import Krum


def test_krum_leaves_out_the_farthest(pipeline_of, vector, buffer_of):
    pipeline = Krum()(pipeline_of(vector(0, 0), buffer_of((0, 1), (0, 2), (0, 90), (0, 3), (0, 5))))
    assert [item.weight > 0 for item in pipeline.items] == [True, True, False, True, True]
    # K = 5 and f = 1: two neighbours each; scores 1 + 4, 1 + 1, 87^2 + 85^2, 1 + 4, 4 + 9
    assert pipeline.items[2].reason == "krum score 1.48e+04, median 5"


def test_krum_cannot_tell_in_a_buffer_of_four(pipeline_of, vector, buffer_of):
    pipeline = pipeline_of(vector(0, 0), buffer_of((0, 1), (0, 2), (0, 90), (0, 3)))
    assert Krum(0.4)(pipeline) == pipeline.measure()


@pytest.mark.parametrize(
    ("num", "share", "num_out"), [(5, 0.2, 1), (6, 0.49, 1), (10, 0.2, 2), (10, 0.49, 3)]
)
def test_krum_drops_its_share_while_the_paper_allows_it(num, share, num_out, pipeline_of, vector, buffer_of):
    buffer = buffer_of(*[(float(n), float(n * n)) for n in range(num)])
    pipeline = Krum(share)(pipeline_of(vector(0, 0), buffer))
    assert [item.weight > 0 for item in pipeline.items] == [True] * (num - num_out) + [False] * num_out
