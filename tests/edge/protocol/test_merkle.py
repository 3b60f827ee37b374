"""Merkle trees: the vectors of RFC 6962's implementations, and proofs that hold for their own chunk alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import Rejected
from edge.protocol.merkle import NODE_BYTES, Tree, proof_bytes, proven_chunk

# Roots over the first n of these, as Certificate Transparency's test data has them.
LEAVES = [bytes.fromhex(one) for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
payloads = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=40)


@pytest.mark.parametrize("number", sorted(ROOTS))
def test_roots_are_those_of_the_standard(number):
    assert Tree(LEAVES[:number]).root == ROOTS[number]


@given(payloads)
def test_every_chunk_is_proven_and_its_proof_is_as_long_as_its_number_says(chunks):
    tree = Tree(chunks)
    assert tree.num_chunks == len(chunks)
    for number, chunk in enumerate(chunks):
        proof = tree.proof(number)
        assert len(proof) == proof_bytes(number, len(chunks)) <= NODE_BYTES * (len(chunks) - 1).bit_length()
        assert proven_chunk(proof + chunk, number, len(chunks), tree.root) == chunk


@given(payloads, st.data())
def test_one_changed_bit_anywhere_proves_nothing(chunks, data):
    tree, number = Tree(chunks), data.draw(st.integers(0, len(chunks) - 1))
    message = bytearray(tree.proof(number) + chunks[number])
    place = data.draw(st.integers(0, 8 * len(message) - 1))
    message[place // 8] ^= 1 << place % 8
    with pytest.raises(Rejected, match="hash-mismatch"):
        proven_chunk(bytes(message), number, len(chunks), tree.root)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=40, unique=True), st.data())
def test_a_chunk_is_proven_at_its_own_place_and_in_its_own_payload_alone(chunks, data):
    tree = Tree(chunks)
    one, other = data.draw(st.lists(st.integers(0, len(chunks) - 1), min_size=2, max_size=2, unique=True))
    message = tree.proof(one) + chunks[one]
    for number, total, root in (
        (other, len(chunks), tree.root),
        (one, len(chunks), Tree(chunks[:-1]).root),
        (one, len(chunks), hashlib.sha256(b"").hexdigest()),
    ):
        with pytest.raises(Rejected):
            proven_chunk(message, number, total, root)


@given(st.binary(max_size=200), st.integers(0, 39), st.integers(40, 2**20))
def test_junk_of_any_length_is_one_refusal(junk, number, total):
    with pytest.raises(Rejected, match="hash-mismatch"):
        proven_chunk(junk, number, total, "0" * 64)


def test_a_node_is_never_taken_for_a_chunk():
    """Leaves and nodes are hashed apart: else two chunks' hashes would pass as one chunk."""
    left, right = (hashlib.sha256(b"\0" + chunk).digest() for chunk in (b"a", b"b"))
    with pytest.raises(Rejected):
        proven_chunk(left + right, 0, 1, Tree([b"a", b"b"]).root)
