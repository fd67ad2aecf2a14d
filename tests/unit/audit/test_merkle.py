"""The tree is that of RFC 6962: its known answers, and proofs for any tree and leaf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.audit.merkle import (
    EMPTY_ROOT,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of_path,
    tree_hash,
)

# The test vectors of Certificate Transparency.
INPUTS = [
    bytes.fromhex(it)
    for it in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATH_OF_FIRST_OF_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
PATH_OF_SIXTH_OF_8 = [
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]

sizes = st.integers(1, 70)


def leaves_of(size: int) -> list[bytes]:
    return [leaf_hash(bytes([it])) for it in range(size)]


def root_by_the_rfc(leaves: list[bytes]) -> bytes:
    """The recursive definition, word for word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else EMPTY_ROOT
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(root_by_the_rfc(leaves[:split]), root_by_the_rfc(leaves[split:]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_known_ones(size: int) -> None:
    assert tree_hash([leaf_hash(it) for it in INPUTS[:size]]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "path"), [(0, PATH_OF_FIRST_OF_8), (5, PATH_OF_SIXTH_OF_8)])
def test_paths_are_the_known_ones(index: int, path: list[str]) -> None:
    leaves = [leaf_hash(it) for it in INPUTS]
    assert [it.hex() for it in inclusion_path(leaves, index)] == path


def test_root_is_that_of_the_definition() -> None:
    for size in range(70):
        leaves = leaves_of(size)
        assert tree_hash(leaves) == root_by_the_rfc(leaves)


def test_path_of_each_leaf_leads_to_the_root() -> None:
    for size in range(1, 70):
        leaves = leaves_of(size)
        root = tree_hash(leaves)
        for index, leaf in enumerate(leaves):
            assert root_of_path(leaf, index, size, inclusion_path(leaves, index)) == root


@given(st.data())
def test_path_of_anything_else_does_not(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    root, path = tree_hash(leaves), inclusion_path(leaves, index)
    other = data.draw(st.integers(0, size - 1).filter(lambda it: it != index) | st.just(-1))
    assert root_of_path(leaves[index], other, size, path) != root
    assert root_of_path(leaf_hash(b"other"), index, size, path) != root
    assert root_of_path(leaves[index], index, size, [*path, root]) != root
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert root_of_path(leaves[index], index, size, path[:at] + path[at + 1 :]) != root
        changed = [*path]
        changed[at] = leaf_hash(path[at])
        assert root_of_path(leaves[index], index, size, changed) != root


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_path_of_no_leaf(index: int) -> None:
    with pytest.raises(IndexError):
        inclusion_path(leaves_of(3), index)
