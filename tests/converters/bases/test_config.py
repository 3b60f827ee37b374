import pytest

from converters.bases.config import head_dim_of, num_heads_of, rope_of


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"rope_theta": 1e4, "rope_type": "default"}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        ),
        ({"partial_rotary_factor": 1.0}, {"rope_theta": 1e4, "rope_type": "default"}),
    ],
)
def test_rope_is_alike_from_transformers_4_and_5(config, expected):
    assert rope_of(config) == expected


def test_sliding_layers_have_a_rope_of_their_own():
    sliding, full = {"rope_theta": 1e4, "rope_type": "default"}, {"rope_theta": 1e6, "rope_type": "default"}
    newer = {"rope_parameters": {"sliding_attention": sliding, "full_attention": full}}
    older = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
    for config in (newer, older):
        assert rope_of(config, "sliding_attention") == sliding
        assert rope_of(config, "full_attention") == full


def test_heads_are_counted_where_config_json_leaves_them_out():
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": None}
    assert num_heads_of(config, "num_key_value_heads") == 4
    assert (head_dim_of(config), head_dim_of(config, 256), head_dim_of({})) == (16, 256, None)
