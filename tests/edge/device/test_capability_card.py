import json
import os

import pytest

from converters.bases.read import read_base
from converters.errors import BaseModelError
from edge.backends.toy import make_toy_base
from edge.device.capability_card import capability_card, device_presence, memory_bytes
from edge.device.own_base import base_files, base_fingerprint
from edge.protocol.messages import Presence
from edge.protocol.signing import Keyring, Signer, new_key, read_signed

BASE = "b" * 64


@pytest.mark.parametrize(
    ("max_rank", "ranks"), [(1, (1,)), (4, (4, 2, 1)), (6, (6, 4, 2, 1)), (64, (64, 32, 16, 8, 4, 2, 1))]
)
def test_a_card_lists_the_ranks_largest_first(max_rank, ranks):
    assert capability_card("lamp", "toy", max_rank, None, BASE).ranks == ranks


def test_memory_is_that_of_the_machine():
    assert memory_bytes() > 1 << 28


def test_birth_and_will_are_signed_anew_at_each_connection_the_will_right_after_the_birth():
    make = device_presence("home", "lamp", Signer(new_key(), 7))
    stamps = []
    for presence in (make(), make()):
        for payload, is_online in ((presence.birth, True), (presence.will, False)):
            opened = Keyring().open(presence.topic, read_signed(payload), Presence)
            assert opened.record.online is is_online
            stamps.append(opened.stamp)
    assert stamps == [(7, 1), (7, 2), (7, 3), (7, 4)]
    assert presence.topic == "tunefleet/v2/home/device/lamp/state"


def test_a_fingerprint_that_is_configured_must_be_the_models_own(tmp_path):
    base = make_toy_base(tmp_path / "base")
    own = read_base(base).fingerprint
    assert base_fingerprint(base, None) == base_fingerprint(base, own) == own
    with pytest.raises(BaseModelError, match=f"has fingerprint {own}, the configuration says {BASE}"):
        base_fingerprint(base, BASE)


def test_a_quantised_base_has_the_fingerprint_that_is_configured(tmp_path):
    base = make_toy_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}))
    assert base_fingerprint(base, BASE) == BASE
    assert base_fingerprint(base, None) is None


def test_files_are_known_by_size_and_time(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 5))
    first = base_files(path)
    assert base_files(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 5))
    assert base_files(path) == first
    path.write_bytes(b"three")
    assert base_files(path) != first
    before = base_files(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert base_files(tmp_path) != before
