import json

import pytest
from typer.testing import CliRunner

import tunefleet
from converters.errors import BaseModelError
from edge.backends.toy import make_toy_base
from edge.commands.bench import window_speeds
from edge.errors import ConfigError, DataError
from edge.training.requests import Progress


def after(seconds, tokens):
    return Progress(
        step=1,
        steps=0,
        seconds=seconds,
        loss=1.0,
        tokens_per_s=tokens / seconds,
        memory_bytes=1,
        micro_batch_tokens=0,
        num_truncated=0,
    )


@pytest.fixture
def base(tmp_path):
    return make_toy_base(tmp_path / "base", seed=0)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"turn {word}"}) for word in ("on", "off", "left")))
    return path


def invoke(*arguments):
    result = CliRunner().invoke(tunefleet.app, ["bench", "device", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_window_is_a_second_or_a_longer_step_and_the_first_step_is_left_out():
    reports = [after(4.0, 100), after(4.5, 200), after(5.0, 400), after(8.0, 700), after(8.2, 800)]
    # 300 tokens from 4 s to 5 s, 300 from 5 s to 8 s; the last window is not whole.
    assert list(window_speeds(reports)) == pytest.approx([300.0, 100.0])


def test_a_trace_is_what_a_simulated_device_reads(base, data):
    options = ("--base", base, "--data", data, "--backend", "toy", "--seconds", 2.5)
    trace = json.loads(invoke(*options, "--json").stdout)
    assert (trace["backend"], trace["model"]) == ("toy", "base")
    assert trace["device"]
    assert trace["memory_bytes"] > 1 << 20
    assert len(trace["tokens_per_s"]) in (1, 2)
    assert min(trace["tokens_per_s"]) > 0


def test_people_read_quantiles(base, data):
    shown = invoke("--base", base, "--data", data, "--seconds", 1.5).stdout
    assert "tokens per s median" in shown
    assert "memory bytes" in shown


@pytest.mark.parametrize(
    ("changes", "kind", "complaint"),
    [
        ({"--seconds": 1}, ConfigError, "too few for a trace; give more than --seconds 1"),
        ({"--data": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"--base": "nowhere"}, BaseModelError, "nowhere"),
    ],
)
def test_wrong_input_is_one_line(base, data, changes, kind, complaint):
    options = {"--base": base, "--data": data, "--seconds": 1.5} | changes
    with pytest.raises(kind, match=complaint) as caught:
        invoke(*(part for pair in options.items() for part in pair))
    assert "\n" not in str(caught.value)


def test_less_than_a_second_is_no_measurement(base, data):
    refused = invoke("--base", base, "--data", data, "--seconds", 0.2)
    assert refused.exit_code == 2
    assert "Invalid value for '--seconds'" in refused.output
