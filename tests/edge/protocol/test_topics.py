"""Topics: what is built is what is parsed, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ProtocolError
from edge.protocol.messages import Blob, Recipe, decode_message
from edge.protocol.tiers import tier_name, tier_rank
from edge.protocol.topics import (
    FORMS,
    AnswerTopic,
    BlobTopic,
    ChallengeTopic,
    ChunkTopic,
    CoordinatorTopic,
    HeaderTopic,
    Topics,
    VersionTopic,
    parse_topic,
)

ids = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)
updates = st.text("0123456789abcdef", min_size=32, max_size=32)
numbers = st.integers(0, 9_999_999_999)
SHA, UPDATE = "ab" * 32, "cd" * 16


def test_another_fleets_topic_is_an_error():
    with pytest.raises(ProtocolError, match="topic of fleet other, expected home"):
        Topics("home").parse("tunefleet/v2/other/coordinator")


@given(ids, ids, updates, numbers)
def test_every_topic_that_is_built_is_parsed(fleet, name, update, number):
    topics = Topics(fleet)
    assert parse_topic(topics.coordinator) == CoordinatorTopic(fleet)
    assert parse_topic(topics.challenge) == ChallengeTopic(fleet)
    assert parse_topic(topics.answer) == AnswerTopic(fleet)
    assert parse_topic(topics.version(name)) == VersionTopic(fleet, name)
    assert parse_topic(topics.blob(2 * update, number)) == BlobTopic(fleet, 2 * update, number)
    assert parse_topic(topics.up(name, update, "header")) == HeaderTopic(fleet, name, update)
    assert parse_topic(topics.up(name, update, number)) == ChunkTopic(fleet, name, update, number)
    for kind, form in FORMS.items():
        values = {"tier": name, "sha256": 2 * update, "number": number, "device_id": name, "update": update}
        parsed = parse_topic(f"{topics.root}/{form.format(**values)}")
        assert type(parsed) is kind
        assert all(getattr(parsed, field) == values[field] for field in values if f"{{{field}}}" in form)
    for kind in ("hello", "state", "want", "receipt", "telemetry"):
        assert parse_topic(topics.device(name, kind)).device_id == name


BELOW_THE_ROOT = (
    "", "home", "home/", "home/coordinators", "home/coordinator/", "home/coordinator/challenge/x",
    "HOME/coordinator", "home/version", "home/version/R8", "home/version/../../x", f"home/blob/{SHA}",
    f"home/blob/{SHA[1:]}/0", f"home/blob/{SHA}/-1", f"home/blob/{SHA}/x", f"home/blob/{SHA}/{'9' * 5000}",
    f"home/blob/{SHA}/1e300", f"home/blob/{SHA}/007", f"home/blob/{SHA}/\u0663", f"home/blob/{SHA}/1\n",
    "home/device/lamp", "home/device//state", "home/device/a b/state", "home/device/lamp/boo",
    "home/device/lamp\n/state", f"home/device/{'x' * 65}/state", f"home/device/lamp/up/{UPDATE}",
    f"home/device/lamp/up/{UPDATE}/Header", "home/device/lamp/up/../header",
    f"home/device/lamp/up/{UPDATE.upper()}/header", f"home/device/lamp/up/{UPDATE}/99999999999",
    "+/coordinator",
)  # fmt: skip
HOSTILE = [f"tunefleet/v2/{name}" for name in BELOW_THE_ROOT] + ["", "/", "tunefleet/v1/home/coordinator"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_topic_is_one_short_error(name):
    with pytest.raises(ProtocolError) as caught:
        parse_topic(name)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@given(
    st.text(max_size=80) | st.lists(st.sampled_from(["home", "device", "up", "blob", "x", "0"])).map("/".join)
)
def test_no_name_raises_a_foreign_error(name):
    for topic in (name, f"tunefleet/v2/{name}"):
        try:
            parse_topic(topic)
        except ProtocolError:
            continue


def test_a_name_with_a_line_feed_is_no_id_in_a_payload_either():
    with pytest.raises(ProtocolError, match=r"\.sha256"):
        decode_message(b'{"sha256":"%s\\n","size_bytes":1}' % SHA.encode(), Blob)


@pytest.mark.parametrize("number", ["-1", "1e400", "9" * 5000, "1.5", "NaN", "true"])
def test_a_number_in_a_payload_that_is_none_is_one_error(number):
    with pytest.raises(ProtocolError, match="Recipe"):
        decode_message(b'{"steps":%s}' % number.encode(), Recipe)


@given(st.integers(1, 10**9 - 1))
def test_a_tiers_name_is_its_rank(rank):
    assert tier_rank(tier_name(rank)) == rank


@pytest.mark.parametrize(
    "name", ["", "r", "r0", "r-1", "r08", "8", "R8", "r8 ", "r8\n", "r\u0663", "r" + "9" * 5000]
)
def test_what_names_no_tier_is_one_error(name):
    with pytest.raises(ProtocolError, match="expected r and a rank, as r8"):
        tier_rank(name)
