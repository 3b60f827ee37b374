import math

import pytest

from benchmarks.strategies.population import Accident, Trace, factors, load_traces, make_population
from edge.errors import DataError


def test_the_slowest_device_is_400_times_slower_than_the_fastest():
    speeds = factors("400x", 10)
    assert speeds[-1] / speeds[0] == pytest.approx(400)
    assert speeds[1] / speeds[0] == pytest.approx(400 ** (1 / 9))  # equal ratios: log-uniform


def test_log_normal_devices_lie_at_the_laws_quantiles():
    speeds = factors("lognormal", 5)
    assert speeds[2] == pytest.approx(1)  # the median
    assert math.log(speeds[4]) == pytest.approx(1.2816, abs=1e-4)  # the 90 % quantile, sigma 1


def test_a_seed_decides_who_is_slow():
    same, again, other = (make_population("400x", 10, seed).machines for seed in (0, 0, 1))
    assert same == again
    assert [one.s_per_token for one in same] != [one.s_per_token for one in other]
    assert sorted(one.s_per_token for one in same) == sorted(one.s_per_token for one in other)


def test_what_befalls_a_task_follows_from_its_number_alone():
    population = make_population("400x", 4, 7, drop_out=0.5)
    backwards = [population.accident(2, number) for number in range(20)][::-1]
    assert [population.accident(2, number) for number in reversed(range(20))] == backwards
    assert 0 < sum(one is not None for one in backwards) < 20


def test_without_drop_outs_nothing_happens():
    population = make_population("lognormal", 4, 0)
    assert not any(population.accident(device, number) for device in range(4) for number in range(50))


def test_drop_outs_come_as_often_as_they_are_said_to():
    population = make_population("400x", 1, 0, drop_out=0.2)
    found = [population.accident(0, number) for number in range(2000)]
    assert sum(one is not None for one in found) / 2000 == pytest.approx(0.2, abs=0.03)
    lost = [one.is_lost for one in found if isinstance(one, Accident)]
    assert sum(lost) / len(lost) == pytest.approx(0.5, abs=0.08)


def test_a_trace_is_replayed_task_by_task_without_jitter():
    traces = [Trace("phone", "llama_cpp", "1b", [10.0, 20.0])]
    population = make_population("traces", 3, 0, traces=traces)
    assert [population.duration_s(1, number, 100) for number in range(3)] == [10.0, 5.0, 10.0]


def test_the_slowest_quarter_of_eight_is_two():
    population = make_population("400x", 8, 3)
    speeds = [machine.s_per_token[0] for machine in population.machines]
    assert {speeds[index] for index in population.slowest(0.25)} == set(sorted(speeds)[-2:])


def test_traces_are_read_in_order_of_their_names(tmp_path):
    for name, speed in (("b", 2.0), ("a", 1.0)):
        record = (
            f'{{"device": "{name}", "backend": "torch", "model": "m", "tokens_per_s": [{speed}], "x": 1}}'
        )
        (tmp_path / f"{name}.json").write_text(record)
    assert [trace.device for trace in load_traces(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "is no device trace"),
        ('{"device": "a", "backend": "b", "model": "c", "tokens_per_s": []}', "numbers above 0"),
        ('{"device": "a", "backend": "b", "model": "c", "tokens_per_s": [3, 0]}', "numbers above 0"),
    ],
)
def test_a_bad_trace_is_named(tmp_path, content, said):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=f"bad.json.*{said}"):
        load_traces(tmp_path)


def test_traces_without_a_trace_say_where_they_come_from():
    with pytest.raises(DataError, match="bench device --json"):
        make_population("traces", 3, 0)
