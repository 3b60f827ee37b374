import threading

import pytest
from threadpoolctl import ThreadpoolController

from converters.parallel import count_processors, share


def blas_threads() -> list[int]:
    return [one["num_threads"] for one in ThreadpoolController().info() if one["user_api"] == "blas"]


@pytest.fixture
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")


@pytest.mark.usefixtures("three_processors")
@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("is_small", [False, True])
def test_results_come_in_order_of_the_items(num_items: int, is_small: bool) -> None:
    assert share(lambda item: item * 2, range(num_items), is_small=is_small) == [
        item * 2 for item in range(num_items)
    ]


@pytest.mark.usefixtures("three_processors")
def test_each_thread_has_one_of_blas_and_small_work_stays_where_it_is() -> None:
    before = blas_threads()
    assert share(lambda _: blas_threads(), range(3)) == [[1] * len(before)] * 3
    assert blas_threads() == before
    assert set(share(lambda _: threading.current_thread(), range(3), is_small=True)) == {
        threading.current_thread()
    }


@pytest.mark.usefixtures("three_processors")
def test_an_error_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        share(lambda item: 1 // item, [1, 1, 0])


def test_as_many_threads_as_omp_num_threads_says_and_else_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert count_processors() == 5
    for told in ("0", "", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert count_processors() >= 1
