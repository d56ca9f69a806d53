"""The objects of a checkpoint: what hangs on what under which attribute, and which tensors each one saved."""

from typing import NamedTuple

from modulekit.sonnet.wire import content, fields, number, text

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Saved(NamedTuple):
    """One tensor that an object saved: under which attribute, the variable's full name, its key in the checkpoint."""

    attribute: str
    full_name: str
    key: str


class Node(NamedTuple):
    """One object: the objects below it by attribute name, list index or dict key, and what it saved itself."""

    children: dict[str, int]
    saved: tuple[Saved, ...]


def parse(message: bytes) -> list[Node]:
    """Returns the objects of a graph; the first one is the root.

    Raises:
      ValueError: the message is damaged, or a child points nowhere.
    """
    nodes = [_node(content(value)) for field, value in fields(message) if field == 1]
    for node in nodes:
        for name, child in node.children.items():
            if child >= len(nodes):
                raise ValueError(f"the child {name!r} is object {child} of {len(nodes)}")
    return nodes


def _node(message: bytes) -> Node:
    children: dict[str, int] = {}
    saved: list[Saved] = []
    for field, value in fields(message):
        if field == 1:
            numbers, texts = _split(content(value), {2})
            children[texts.get(2, "")] = numbers.get(1, 0)
        elif field == 2:
            _, texts = _split(content(value), {1, 2, 3})
            saved.append(Saved(texts.get(1, ""), texts.get(2, ""), texts.get(3, "")))
    return Node(children, tuple(saved))


def _split(message: bytes, text_fields: set[int]) -> tuple[dict[int, int], dict[int, str]]:
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    for field, value in fields(message):
        if field in text_fields:
            texts[field] = text(value)
        elif isinstance(value, int):
            numbers[field] = number(value)
    return numbers, texts
