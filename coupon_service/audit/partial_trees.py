"""What shows that some of the leaves of a tree are its leaves, without the others.

The hashes of the largest parts of the tree that have none of these leaves, from left to right: with
them, and the leaves, anyone can make the root. For one leaf they are its inclusion path, in another
order; for leaves that are neighbours, as those that are archived together mostly are, they are few.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from coupon_service.audit.merkle import node_hash, tree_hash
from coupon_service.audit.records import MalformedError

Part = tuple[int, int]
"""Of the leaves of a tree: from the first, up to the second and without it."""


def missing_parts(leaves: Sequence[bytes], indexes: Sequence[int]) -> list[bytes]:
    """The hashes of what of the tree has none of the leaves at these indexes, which rise."""
    return list(_missing(leaves, 0, len(leaves), indexes))


def parts_of(size: int, known: Mapping[int, bytes], missing: Sequence[bytes]) -> dict[Part, bytes]:
    """The hashes of all parts of a tree of `size` leaves that lead to its root, which is that of
    the part (0, size). `known`: leaves by their indexes, at least one. `missing`: see above.

    Raises MalformedError when there are more or fewer of those than it takes.
    """
    parts: dict[Part, bytes] = {}
    indexes = sorted(known)
    if not indexes or indexes[0] < 0 or indexes[-1] >= size:
        raise MalformedError("A part of a tree has other leaves than its tree.")
    rest = iter(missing)
    try:
        _hash(0, size, indexes, known, rest, parts)
    except StopIteration:
        raise MalformedError("A part of a tree lacks hashes.") from None
    if next(rest, None) is not None:
        raise MalformedError("A part of a tree has too many hashes.")
    return parts


def path_in(parts: Mapping[Part, bytes], size: int, index: int) -> list[bytes]:
    """The inclusion path of a known leaf, as of RFC 6962: from the bottom up."""
    first, end = 0, size
    path: list[bytes] = []
    while end - first > 1:
        middle = first + _left_size(end - first)
        if index < middle:
            path.append(parts[middle, end])
            end = middle
        else:
            path.append(parts[first, middle])
            first = middle
    return path[::-1]


def _missing(
    leaves: Sequence[bytes], first: int, end: int, indexes: Sequence[int]
) -> Iterator[bytes]:
    if not indexes:
        yield tree_hash(leaves[first:end])
    elif len(indexes) < end - first:
        middle = first + _left_size(end - first)
        split = bisect_left(indexes, middle)
        yield from _missing(leaves, first, middle, indexes[:split])
        yield from _missing(leaves, middle, end, indexes[split:])


def _hash(
    first: int,
    end: int,
    indexes: Sequence[int],
    known: Mapping[int, bytes],
    missing: Iterator[bytes],
    parts: dict[Part, bytes],
) -> bytes:
    """The hash of this part of the tree; adds it, and all that it was made of."""
    if not indexes:
        made = next(missing)
    elif end - first == 1:
        made = known[first]
    else:
        middle = first + _left_size(end - first)
        split = bisect_left(indexes, middle)
        left = _hash(first, middle, indexes[:split], known, missing, parts)
        made = node_hash(left, _hash(middle, end, indexes[split:], known, missing, parts))
    parts[first, end] = made
    return made


def _left_size(size: int) -> int:
    """The largest power of two that is smaller than the size."""
    return 1 << ((size - 1).bit_length() - 1)
