import numpy as np

from converters.bases.architectures import (
    ARCHITECTURES,
    file_order,
    find_exact,
    find_gguf,
    graph_of,
    hub_order,
)


def test_every_entry_is_found_by_its_own_name_and_a_shared_graph_has_one() -> None:
    assert len({one.model_type for one in ARCHITECTURES}) == len(ARCHITECTURES)
    assert [graph_of(kind) for kind in ("llama", "mistral", "gemma3_text", "qwen2", "new", None)] == [
        "llama", "llama", "gemma3_text", "qwen2", "new", None,
    ]  # fmt: skip
    assert [find_gguf(name).model_type for name in ("llama", "gemma3")] == ["llama", "gemma3_text"]
    assert find_gguf("mistral") is None


def test_only_what_llama_cpp_computes_to_the_letter_is_exact() -> None:
    assert [one.model_type for one in ARCHITECTURES if one.exact] == [
        "llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3", "gemma3_text",
    ]  # fmt: skip
    assert find_exact("granite") is find_exact("new") is None


def test_rows_of_q_and_k_lie_in_turns() -> None:
    # Two heads of four: Hugging Face rotates row 0 with 2 and 1 with 3, llama.cpp 0 with 1 and 2 with 3.
    assert file_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    for num_rows, heads in [(8, 2), (12, 1), (24, 3), (128, 2)]:
        order = file_order(num_rows, heads)
        np.testing.assert_array_equal(order[hub_order(num_rows, heads)], np.arange(num_rows))
