"""What all filters have in common."""

import pytest

from coordinator.strategies.stages.clip import Clip
from coordinator.strategies.stages.cosine import Cosine
from coordinator.strategies.stages.krum import Krum

FILTERS = [Clip(), Cosine(), Krum(0.0)]


@pytest.mark.parametrize("stage", FILTERS)
def test_a_norm_that_overflows_is_left_out(stage, pipeline_of, vector, buffer_of, bowl):
    buffer = buffer_of((1e30, 1e30), *[(1, 1)] * 5)
    pipeline = stage(pipeline_of(vector(0, 0), buffer, calibrator=bowl(vector(1, 1))))
    assert [item.weight > 0 for item in pipeline.items] == [False, True, True, True, True, True]
    assert pipeline.items[0].reason == "its norm is not finite"


@pytest.mark.parametrize("space", ["factors", "product"])
@pytest.mark.parametrize("stage", FILTERS)
def test_a_filter_leaves_alone_what_was_left_out_before(stage, space, pipeline_of, vector, buffer_of, bowl):
    pipeline = pipeline_of(vector(0, 1), buffer_of((1, 1)), space=space, calibrator=bowl(vector(1, 1)))
    out = pipeline._replace(items=(pipeline.items[0]._replace(weight=0.0, reason="before"),))
    assert stage(out).items == out.items
