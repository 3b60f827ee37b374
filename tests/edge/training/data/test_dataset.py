import json

import pytest

from edge.backends.toy import BOS, EOS, ByteTokenizer
from edge.errors import DataError
from edge.training.data.dataset import encode_prompt, load_dataset
from edge.training.data.source import DataSource

TOKENIZER = ByteTokenizer()


@pytest.fixture
def read(tmp_path):
    def read(*rows, seq_tokens=64, **settings):
        path = tmp_path / "data.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines))
        return load_dataset(DataSource(path=str(path), **settings), TOKENIZER, seq_tokens=seq_tokens)

    return read


def labelled(example) -> str:
    return TOKENIZER.decode(example.tokens[example.labels].tolist())


def test_all_of_a_text_is_trained_on(read):
    (example,) = read({"text": "abc"}).examples
    assert example.tokens.tolist() == [BOS, *b"abc", EOS]
    assert example.labels.tolist() == [False, True, True, True, True]


def test_of_prompt_and_completion_only_the_completion_is_trained_on(read):
    (example,) = read({"prompt": "ab", "completion": "c"}).examples
    assert example.tokens.tolist() == [BOS, *b"abc", EOS]  # joined as they stand
    assert example.labels.tolist() == [False, False, False, True, True]


def test_prompts_are_trained_on_when_asked(read):
    (example,) = read({"prompt": "ab", "completion": "c"}, train_on_prompt=True).examples
    assert example.labels.tolist() == [False, True, True, True, True]


def test_columns_can_be_named(read):
    row = {"question": "ab", "answer": "c", "text": "ignored"}
    (example,) = read(row, prompt_column="question", completion_column="answer").examples
    assert example.tokens.tolist() == [BOS, *b"abc", EOS]


def test_only_assistant_turns_are_trained_on(read):
    turns = [("system", "s"), ("user", "u"), ("assistant", "yes"), ("user", "v"), ("assistant", "no")]
    (example,) = read({"messages": [{"role": role, "content": text} for role, text in turns]}).examples
    whole = "<system>s\n<user>u\n<assistant>yes\n<user>v\n<assistant>no\n"
    assert example.tokens.tolist() == [BOS, *whole.encode(), EOS]
    assert labelled(example) == "yes\nno\n"


def test_turns_after_the_last_assistant_are_left_out(read):
    turns = [("user", "u"), ("assistant", "yes"), ("user", "never answered")]
    (example,) = read({"messages": [{"role": role, "content": text} for role, text in turns]}).examples
    assert "never" not in TOKENIZER.decode(example.tokens.tolist())


def test_every_bad_line_is_named_with_its_reason(read):
    with pytest.raises(DataError) as caught:
        read(
            {"prompt": "a", "completion": "b"},
            b'{"prompt": "a"',
            [1],
            {"prompt": "a", "completion": 3},
            {"prompt": "a", "completion": ""},
        )
    message = str(caught.value)
    assert "data.jsonl: 4 of 5 rows cannot be used: " in message
    assert "1 is not JSON (line 2)" in message
    assert "1 holds a list, expected an object (line 3)" in message
    assert "1 has a completion that is a number, expected a string (line 4)" in message
    assert "1 has an empty completion (line 5)" in message


def test_a_reason_is_named_once_with_its_count_and_the_first_lines(read):
    good, poor, empty = {"prompt": "a", "completion": "b"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}
    with pytest.raises(DataError) as caught:
        read(*[good, poor, empty] * 1000, poor, poor)
    assert str(caught.value).endswith(
        "data.jsonl: 2,002 of 3,002 rows cannot be used: "
        '1,002 lack "completion" (lines 2, 5, 8, …); 1,000 have an empty completion (lines 3, 6, 9, …)'
    )


def test_columns_of_no_known_form_are_named_with_what_to_do(read):
    with pytest.raises(DataError) as caught:
        read(*[{"question": "a", "answer": "b"}] * 2)
    message = str(caught.value)
    assert "2 have columns of no known form (question, answer) (lines 1, 2); expected text, prom" in message
    assert message.endswith("name others by --prompt-column and --completion-column")


def test_columns_beside_a_known_one_are_named_with_what_to_do(read):
    with pytest.raises(DataError) as caught:
        read({"instruction": "a", "context": "", "response": "b"})
    assert str(caught.value).endswith(
        '1 lacks "output" (line 1); the columns are instruction, context, response; '
        "name others by --prompt-column and --completion-column"
    )


def test_many_reasons_are_cut_and_counted(read):
    with pytest.raises(DataError) as caught:
        read(*[{f"column{number}": "a"} for number in range(1000)])
    message = str(caught.value)
    assert "1,000 of 1,000 rows" in message
    assert "and 197 more reasons (tunefleet data check names all)" in message
    assert len(message) < 700


def test_bytes_that_are_not_utf_8_are_a_bad_line(read):
    with pytest.raises(DataError, match=r"1 is not UTF-8 \(line 2\)"):
        read({"text": "good"}, b'{"text": "\xff\xfe"}')


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no assistant turn"),
        ([{"role": "user", "content": "hi"}], "no assistant turn"),
        ([{"role": "assistant"}], "has an empty assistant turn"),
        ([{"role": "user"}, {"role": "assistant", "content": "a"}], "a turn without role and content"),
        ([{"content": "a"}], "a turn without role and content"),
        (["hi"], "a turn that is a string, expected an object"),
        ("hi", "messages that are a string, expected a list of turns"),
        ([{"role": "assistant", "content": 3}], "content that is a number"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "a part that is of type 'image'"),
    ],
)
def test_messages_that_cannot_be_trained_on_say_why(read, messages, reason):
    with pytest.raises(DataError, match=reason):
        read({"messages": messages})


def test_an_empty_file_is_an_error(read):
    with pytest.raises(DataError, match="holds no examples"):
        read(b"", b"  ")


def test_a_missing_file_is_an_error():
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        load_dataset(DataSource(path="nowhere.jsonl"), TOKENIZER, seq_tokens=8)


def test_blank_lines_and_a_byte_order_mark_do_no_harm(read):
    dataset = read(b'\xef\xbb\xbf{"text": "a"}', b"", b'{"text": "b"}')
    assert [labelled(example) for example in dataset.examples] == ["a", "b"]


def test_a_long_text_becomes_several_examples_and_loses_nothing(read):
    text = "abcdefghijklmnopqrstuvwxyz"
    dataset = read({"text": text}, seq_tokens=8)
    assert [len(example.tokens) for example in dataset.examples] == [9, 9, 9, 4]
    assert "".join(labelled(example) for example in dataset.examples) == text
    assert dataset.num_truncated == 0


def test_a_long_prompt_loses_its_beginning_and_is_counted(read):
    dataset = read({"prompt": "0123456789", "completion": "ab"}, seq_tokens=7)
    assert dataset.examples[0].tokens.tolist() == [BOS, *b"6789ab", EOS]
    assert labelled(dataset.examples[0]) == "ab"
    assert dataset.num_truncated == 1


def test_a_long_completion_loses_its_end_and_teaches_no_false_end(read):
    dataset = read({"prompt": "0123456789", "completion": "abcdefgh"}, seq_tokens=5)
    assert dataset.examples[0].tokens.tolist() == [BOS, *b"abcde"]
    assert dataset.num_truncated == 1


def test_other_examples_or_labels_give_another_digest(read):
    row = {"prompt": "a", "completion": "b"}
    digests = {read(row).digest, read(row, row).digest, read(row, train_on_prompt=True).digest}
    assert len(digests) == 3
    assert read(row).digest in digests


def test_a_prompt_to_generate_from_is_made_as_in_training(read):
    (example,) = read({"prompt": "ab", "completion": "c"}).examples
    prompt = encode_prompt(TOKENIZER, "ab")
    assert prompt == example.tokens[: len(prompt)].tolist()
