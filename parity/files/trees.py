"""Nested trees of arrays, and their flat names, joined by a slash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.errors import CheckpointError

_OTHERWISE = "Call it otherwise, or write .safetensors"


def flat(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by the names of the branches that lead to them.

    Args:
        tree: mappings, and lists, whose indices are names too; an empty one is no leaf.

    Raises:
        CheckpointError: it has no branches, or two leaves come to one name.
    """
    found: dict[str, Any] = {}
    branches: list[tuple[str, Any]] = [("", tree)]
    while branches:
        name, value = branches.pop()
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            inner = [(f"{name}/{k}" if name else f"{k}", v) for k, v in value.items()]
            branches.extend(reversed(inner))
        elif not name:
            raise CheckpointError(
                f"holds a {type(value).__name__}, not names of arrays"
            )
        elif name in found:
            raise CheckpointError(f"has two entries that come to the name {name!r}")
        else:
            found[name] = value
    return found


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree that has these flat names.

    Raises:
        CheckpointError: a name is a leaf's and a branch's, or has an empty part.
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parts, leaf = name.split("/")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                break
        if not isinstance(branch, dict) or leaf in branch:
            raise CheckpointError(
                f"{name!r} is the name of an array and of a branch", advice=_OTHERWISE
            )
        if not all((*parts, leaf)):
            raise CheckpointError(
                f"{name!r} has an empty part, which is no branch's name",
                advice=_OTHERWISE,
            )
        branch[leaf] = array
    return tree
