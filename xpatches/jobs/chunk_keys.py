"""Which objects of a zarr hierarchy are its own: those that the metadata of its arrays allow."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xpatches.documents import parse

_PARTIAL = re.compile(r"(zarr|c|[0-9]+)\.[0-9a-f]{32}\.partial")
"""What a process that was killed had not yet renamed: zarr replaces the last suffix by this one."""
_INDEX = re.compile("0|[1-9][0-9]{0,17}")
_METADATA = "zarr.json"


@dataclass(frozen=True)
class ChunkKeys:
    """The keys of an array's chunks, below the array.

    Examples
    --------
    >>> keys = ChunkKeys((2, 3), "default", "/")
    >>> [keys.index_of(key) for key in ("c/1/2", "c/2/0", "c/1", "c/01/0", "c/src/main.c")]
    [(1, 2), None, None, None, None]
    >>> ChunkKeys((), "v2", ".").index_of("0")
    ()
    """

    counts: tuple[int, ...]
    """Of chunks, along every dim."""
    encoding: str
    separator: str

    def index_of(self, key: str) -> tuple[int, ...] | None:
        """Give the index of the chunk that has a key; None if no chunk has it."""
        start = f"c{self.separator}" if self.encoding == "default" else ""
        if not self.counts:
            return () if key == (start[:1] or "0") else None
        names = key.removeprefix(start).split(self.separator) if key.startswith(start) else []
        if len(names) != len(self.counts) or not all(map(_INDEX.fullmatch, names)):
            return None
        index = tuple(map(int, names))
        return index if all(i < n for i, n in zip(index, self.counts, strict=True)) else None


def chunk_keys(content: bytes) -> ChunkKeys | None:
    """Read from the ``zarr.json`` of a node which chunks it has; None for a group.

    Raises
    ------
    ValueError
        If it is neither a group's nor an array's with a regular grid and keys that are known.
    """
    try:
        node = parse(content, whole=True)
        if node["node_type"] == "group":
            return None
        shape = node["shape"]
        lengths = node["chunk_grid"]["configuration"]["chunk_shape"]
        encoding = node["chunk_key_encoding"]["name"]
        defaults = {"default": "/", "v2": "."}
        options = node["chunk_key_encoding"].get("configuration") or {}
        separator = options.get("separator", defaults.get(encoding, ""))
        known = node["node_type"] == "array" and node["chunk_grid"]["name"] == "regular"
        known &= encoding in defaults and separator in ("/", ".")
        known &= all(type(n) is int and n >= 0 for n in shape)
        known &= all(type(n) is int and n > 0 for n in lengths)
        counts = tuple(-(-n // length) for n, length in zip(shape, lengths, strict=True))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no metadata of zarr, {error!r}") from error
    if not known:
        raise ValueError("a grid of chunks, or keys, of another kind")
    return ChunkKeys(counts, encoding, separator)


def foreign(names: Iterable[str], metadata: Mapping[str, bytes]) -> list[str]:
    """List the objects that no metadata allow.

    Parameters
    ----------
    names
        Of all objects.
    metadata
        By name, the content of those that are called ``zarr.json``.

    Examples
    --------
    >>> group = b'{"node_type": "group"}'
    >>> foreign(["zarr.json", "c/0", "a/zarr.json"], {"zarr.json": group, "a/zarr.json": b"{"})
    ['a/zarr.json', 'c/0']
    """
    nodes: dict[str, ChunkKeys | None] = {}
    for name, content in metadata.items():
        # Of a node inside of an array, or of what is no group, nothing is known.
        try:
            nodes[name.removesuffix(_METADATA)] = chunk_keys(content)
        except ValueError:
            continue
    return sorted(name for name in names if not _is_allowed(name, nodes))


def _is_allowed(name: str, nodes: Mapping[str, ChunkKeys | None]) -> bool:
    node, _, last = name.rpartition("/")
    prefix = f"{node}/" if node else ""
    if last == _METADATA:
        ends = (i + 1 for i, letter in enumerate(prefix[:-1]) if letter == "/")
        parents = ["", *(prefix[:end] for end in ends)] if prefix else []
        return prefix in nodes and all(nodes.get(parent) is None for parent in parents)
    if prefix in nodes and last.startswith("zarr.") and _PARTIAL.fullmatch(last):
        return True
    # A chunk of an array of n dims lies n levels below it, or one.
    while True:
        keys = nodes.get(prefix)
        if keys is not None:
            chunk = keys.index_of(name[len(prefix) :]) is not None
            return chunk or bool(_PARTIAL.fullmatch(last))
        if not prefix:
            return False
        parent = prefix[:-1].rpartition("/")[0]
        prefix = f"{parent}/" if parent else ""
