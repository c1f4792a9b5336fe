"""What a store says, which anyone may have written: JSON within limits, and checks of its values.

A check takes the place of a value in its document, such as ``blocks.image.count``, and the value,
and gives it back, or raises `Unfit`. Who knows the document makes a `PatchError` of that.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np

from xpatches.arguments import shown

Check: TypeAlias = Callable[[str, Any], Any]
"""Refuses a value at a place, or gives it back."""

MOST = 1 << 48
"""Integers are at most this: sums of some, and products with an itemsize, fit into 64 bits."""
TEXT = 1 << 25
"""Characters of a document: the tapers of a map, or consolidated metadata, are long."""
NAME = 1 << 10
"""Characters of other texts."""
_DEPTH = 64
_DTYPE = re.compile(
    r"bool|u?int(8|16|32|64)|float(16|32|64|96|128)|complex(64|128|192|256)|[<>|]?[SU][0-9]{1,7}"
    r"|[<>][iufc](2|4|8|16|32)|[<>]?(datetime64|timedelta64|[mM]8)(\[[0-9]{0,9}[a-zA-Z]{1,7}\])?"
)


class Unfit(ValueError):
    """A document, or a value at a place in it, is not as it must be."""


def parse(content: Any, *, whole: bool = False) -> Any:
    """Parse JSON that a store holds.

    Parameters
    ----------
    content
        The text, as an attr holds it, or the bytes of an object.
    whole
        Whether it is an object as zarr writes it, with NaN and Infinity, which attrs may hold.

    Raises
    ------
    Unfit
        If it is no JSON, longer or deeper than any that is meant, or ambiguous.

    Examples
    --------
    >>> parse('{"count": 3}')
    {'count': 3}
    >>> parse('{"count": NaN}')
    Traceback (most recent call last):
    ...
    xpatches.documents.Unfit: it holds NaN, which is no finite number
    """
    if not isinstance(content, str | bytes):
        raise Unfit(f"it must be text, got {type(content).__name__}")
    if len(content) > TEXT:
        raise Unfit(f"it must be at most {TEXT} characters long, got {len(content)}")
    try:
        document = content.decode() if isinstance(content, bytes) else content
        _check_depth(document)
        as_float = float if whole else _finite
        return json.loads(
            document, object_pairs_hook=_unique, parse_constant=as_float, parse_float=as_float
        )
    except Unfit:
        raise
    except ValueError as error:
        raise Unfit(f"it is no JSON, {error}") from error


def refuse(place: str, required: str, value: Any) -> NoReturn:
    """Raise what says of a place what it must be, and what it is."""
    raise Unfit(f"{place} must be {required}, got {shown(value)}")


def text(place: str, value: Any, most: int = NAME) -> str:
    """Check a text, which can be encoded and is not long."""
    if not isinstance(value, str) or len(value) > most:
        refuse(place, f"text of at most {most} characters", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(place, "Unicode", value)
    return value


def long_text(place: str, value: Any) -> str:
    """Check a text that may be a document itself."""
    return text(place, value, TEXT)


def integer(place: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """Check an integer."""
    if type(value) is not int or not least <= value <= most:
        refuse(place, f"an integer from {least} to {most}", value)
    return value


def flag(place: str, value: Any) -> bool:
    """Check a bool."""
    if not isinstance(value, bool):
        refuse(place, "true or false", value)
    return value


def number(place: str, value: Any) -> Any:
    """Check a number, as it is; those that are parsed are finite."""
    if type(value) is not float and not (type(value) is int and abs(value) < 1 << 64):
        refuse(place, "a number of at most 64 bits", value)
    return value


def dtype(place: str, value: Any) -> np.dtype[Any]:
    """Check the name of a dtype of fixed width, without fields."""
    if isinstance(value, str) and _DTYPE.fullmatch(value):
        try:
            return np.dtype(value)
        except (TypeError, ValueError):
            pass  # an itemsize or a unit that there is not
    refuse(place, "the name of a NumPy dtype of fixed width", value)


def one_of(*words: Any) -> Check:
    """Make a check of a choice."""

    def check(place: str, value: Any) -> Any:
        if not any(type(value) is type(word) and value == word for word in words):
            refuse(place, "one of " + ", ".join(map(repr, words)), value)
        return value

    return check


def either(first: Check, second: Check) -> Check:
    """Make a check of what passes one of two; the second says what is wrong."""

    def check(place: str, value: Any) -> Any:
        try:
            return first(place, value)
        except Unfit:
            return second(place, value)

    return check


def list_of(check_item: Check, least: int = 0, most: int = TEXT) -> Check:
    """Make a check of a list."""

    def check(place: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            refuse(place, f"a list of {least} to {most}", value)
        return [check_item(f"{place}[{index}]", item) for index, item in enumerate(value)]

    return check


def tuple_of(*checks: Check) -> Check:
    """Make a check of a list of so many, each of its own kind."""

    def check(place: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(checks):
            refuse(place, f"a list of {len(checks)}", value)
        pairs = zip(checks, value, strict=True)
        return tuple(check(f"{place}[{index}]", item) for index, (check, item) in enumerate(pairs))

    return check


def mapping_of(check_key: Check, check_value: Check, least: int = 0) -> Check:
    """Make a check of an object whose keys are names."""

    def check(place: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) < least:
            refuse(place, "an object" + f" of at least {least}" * (least > 0), value)
        return {
            check_key(f"a key of {place}", key): check_value(f"{place}.{shown(key)[1:-1]}", item)
            for key, item in value.items()
        }

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Make a check of an object of known keys."""
    known = {**required, **(optional or {})}

    def check(place: str, value: Any) -> dict[str, Any]:
        where, dot = (place, f"{place}.") if place else ("it", "")
        if not isinstance(value, dict):
            refuse(where, "an object", value)
        for what, keys in (
            ("lacks", [key for key in required if key not in value]),
            ("has the unknown keys", [key for key in value if key not in known]),
        ):
            if keys:
                raise Unfit(f"{where} {what} {', '.join(map(shown, keys[:5]))}")
        return {key: known[key](f"{dot}{key}", item) for key, item in value.items()}

    return check


def version_of(document: Any) -> int:
    """Give the version of a document, of which nothing else is known before."""
    if not isinstance(document, dict) or "version" not in document:
        refuse("it", "an object with a version", document)
    return integer("version", document["version"])


def _check_depth(text: str) -> None:
    """Refuse what is nested deeper than a document is, before anything recurses over it."""
    depth = 0
    if text.count("[") + text.count("{") > _DEPTH:
        for token in re.finditer(r'"(?:[^"\\]+|\\.)*+"?|[\[{]|[\]}]', text, re.DOTALL):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth > _DEPTH:
                raise Unfit(f"it must be nested at most {_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Unfit(f"it has the key {shown(twice)} twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Unfit(f"it holds {digits[:20]}, which is no finite number")
    return value
