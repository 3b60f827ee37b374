from itertools import combinations

from coordinator.demo.household import FLEET, Household, held_out, load_examples, own_examples, save_examples


def words(example):
    room, appliance, command = example.completion.split("/")
    return room, appliance, command.split()[0]


def test_the_same_seed_says_the_same():
    assert own_examples(FLEET[0], 50, 7) == own_examples(FLEET[0], 50, 7)
    assert own_examples(FLEET[0], 50, 7) != own_examples(FLEET[0], 50, 8)
    assert held_out(100, 7) == held_out(100, 7)


def test_no_two_households_share_a_word():
    for one, other in combinations(FLEET, 2):
        assert not {*one.rooms, *one.appliances, one.kind} & {*other.rooms, *other.appliances, other.kind}
        assert not set(one.phrasings) & set(other.phrasings)


def test_a_household_hears_only_its_own():
    for home in FLEET:
        for example in own_examples(home, 200, 0):
            room, appliance, kind = words(example)
            assert room in home.rooms
            assert appliance in home.appliances
            assert kind == home.kind


def test_no_household_has_seen_two_parts_of_a_held_out_example():
    def num_known(home: Household, example) -> int:
        room, appliance, kind = words(example)
        return (room in home.rooms) + (appliance in home.appliances) + (kind == home.kind)

    for example in held_out(240, 0):
        assert sorted(num_known(home, example) for home in FLEET) == [0, 1, 1, 1]


def test_held_out_examples_differ_and_ask_every_household_alike():
    examples = held_out(240, 0)
    assert len(set(examples)) == 240
    for home in FLEET:
        assert sum(words(example)[2] == home.kind for example in examples) == 60


def test_the_sentence_names_all_that_the_command_needs():
    for example in held_out(240, 1):
        room, appliance, command = example.completion.split("/")
        value = "".join(filter(str.isdigit, command))
        assert example.prompt.endswith("\n")
        assert all(part in example.prompt for part in (room, appliance, value))


def test_examples_survive_their_file(tmp_path):
    examples = own_examples(FLEET[2], 20, 3)
    save_examples(examples, tmp_path / "own.jsonl")
    assert load_examples(tmp_path / "own.jsonl") == examples
