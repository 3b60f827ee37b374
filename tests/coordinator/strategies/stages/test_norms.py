import numpy as np
import pytest

from coordinator.strategies.stages.centre import Centre
from coordinator.strategies.stages.norms import InverseNorm, InverseNormLiteral, ProductNorm
from coordinator.strategies.stages.weights import Normalise


def weights(pipeline):
    return [item.weight for item in pipeline.items]


def test_the_inverse_norm_makes_steps_alike(pipeline_of, vector, lengths):
    found = weights(InverseNorm()(pipeline_of(vector(0), lengths(1, 2, 4))))
    assert found == pytest.approx([1 / 3, 1 / 6, 1 / 12])


def test_a_tiny_norm_is_taken_for_a_tenth_of_the_median(pipeline_of, vector, lengths):
    pipeline = InverseNorm(0.1)(pipeline_of(vector(0), lengths(1e-6, 2, 4)))
    assert weights(pipeline) == pytest.approx([1 / 3 / 0.2, 1 / 6, 1 / 12])


def test_as_printed_a_tiny_norm_weighs_without_bound(pipeline_of, vector, lengths):
    pipeline = pipeline_of(vector(0), lengths(0, 2))
    assert weights(InverseNormLiteral()(pipeline)) == pytest.approx([0.5e8, 0.25])


def test_a_group_of_one_weighs_as_one_of_the_usual_deviation(pipeline_of, vector, contribution):
    versions = {1: (5,), 2: (5,), 3: (5,), 4: (4, 6)}  # deviations 0, 0, 0, -1 and 1
    buffer = [
        contribution(vector(x), vector(0), f"u{version}{x}", base_version=version)
        for version, sizes in versions.items()
        for x in sizes
    ]
    pipeline = Normalise()(InverseNorm(0.1)(Centre()(pipeline_of(vector(0), buffer))))
    assert weights(pipeline) == pytest.approx([1 / 5] * 5)


def test_product_norms_are_those_of_the_devices_adapters(pipeline_of, random_adapter, contribution):
    base, delta = random_adapter(2, 1), random_adapter(2, 2)
    square = 0.0
    for name, f in base:
        d = delta.modules[name]
        square += np.linalg.norm(1.5 * (f.b + d.b) @ (f.a + d.a)) ** 2
    pipeline = ProductNorm()(pipeline_of(base, [contribution(delta, base)]))
    assert weights(pipeline) == pytest.approx([square**0.5], rel=1e-5)


def test_what_was_left_out_is_not_read_for_its_weight(pipeline_of, vector, lengths):
    def unreadable():
        raise AssertionError

    pipeline = pipeline_of(vector(0), lengths(1, 2))
    out = pipeline.items[0]._replace(weight=0.0, load_delta=unreadable)
    pipeline = pipeline._replace(items=(out, pipeline.items[1]))
    for stage in (InverseNorm(), InverseNormLiteral(), ProductNorm()):
        assert weights(stage(pipeline))[0] == 0
