"""What users give, made canonical, or refused in one voice: "X must be ..., got ...; do ...".

Public functions normalise every argument here before anything else; inner code takes what comes
out. Nothing is asked of a value that it may refuse to answer: an object may raise where it is
compared, counted, iterated over or shown, and an array says neither yes nor no.
"""

import math
import operator
import reprlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Set
from itertools import islice
from typing import Any, TypeVar

from xpatches.errors import PatchError

Choice = TypeVar("Choice")

_SHOWN = 100
"""Characters of a value that an error shows, at most."""
_TOLD = 400
"""Of what another error says."""
_MOST = 2**63 - 1
"""The largest integer that coords hold."""


def shown(value: object) -> str:
    """Show a value in an error: shortened, arrays by their shape, and whatever its repr raises.

    Examples
    --------
    >>> shown("a" * 999), shown(10**999)
    ("'aaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaa'", 'an integer of 3319 bits')
    >>> class Hostile:
    ...     def __repr__(self):
    ...         raise KeyError
    >>> shown([Hostile(), 1])
    '[<Hostile>, 1]'
    """
    return _shortened(_BRIEF.repr(value), _SHOWN)


def said(error: BaseException) -> str:
    """Tell what an error says, shortened; one may raise where it is asked."""
    try:
        return _shortened(str(error), _TOLD)
    except Exception:  # whatever it raises
        return type(error).__name__


def _shortened(text: str, most: int) -> str:
    text = " ".join(text[: 2 * most].encode(errors="backslashreplace").decode().split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


_ARRAY = ("shape", "dtype")


class _Brief(reprlib.Repr):
    """Shows no more than an error does, however large, deep or hostile a value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _SHOWN // 2, _SHOWN
        self.maxtuple = self.maxlist = self.maxdict = 10

    def repr1(self, x: Any, level: int) -> str:
        try:
            return super().repr1(x, level)
        except Exception:  # whatever a type raises that is to be shown
            return f"<{type(x).__name__}>"

    def repr_int(self, x: int, level: int) -> str:
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 300 else repr(x)

    def repr_instance(self, x: Any, level: int) -> str:
        shape, dtype = (None if isinstance(x, type) else getattr(x, of, None) for of in _ARRAY)
        if shape and dtype is not None:
            return f"{type(x).__name__} of shape {shape} and dtype {dtype}"
        return repr(x[:_SHOWN] if isinstance(x, str | bytes | bytearray) else x)


_BRIEF = _Brief()


def as_integer(what: str, value: object, least: float = -math.inf, most: float = _MOST) -> int:
    """Normalise an integer of any library; refuse bools, floats and what is out of bounds."""
    if type(value) is int:  # nearly always, and fast: small images are cut in microseconds
        number = value
    else:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)  # type: ignore[arg-type]
        except Exception:  # whatever a type raises that is asked for an integer
            kind = type(value).__name__
            raise PatchError(f"{what} must be an integer, got {shown(value)} ({kind})") from None
    if number < least:
        raise PatchError(f"{what} must be >= {least}, got {shown(number)}")
    if number > most:
        raise PatchError(f"{what} must be <= {most}, got {shown(number)}")
    return number


def as_flag(what: str, value: object, *others: None) -> Any:
    """Normalise True or False, Python's or NumPy's, or None where it is among `others`."""
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"):
        value = bool(value)
    return as_choice(what, value, (True, False, *others))


def as_choice(what: str, value: object, choices: tuple[Choice, ...], *others: str) -> Choice:
    """Normalise a word of some, of which None may be one.

    Examples
    --------
    >>> as_choice("label", "middle", ("center", "origin"))
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: label must be 'center' or 'origin', got 'middle'
    """
    for choice in choices:
        if value is choice:
            return choice
        if isinstance(value, str) and isinstance(choice, str) and str.__eq__(choice, value):
            return choice
    *most, last = [*map(repr, choices), *others]
    raise PatchError(f"{what} must be {', '.join(most)} or {last}, got {shown(value)}")


def as_name(what: str, value: object) -> str:
    """Normalise a name: a text of Unicode's characters that files, too, may have in their names."""
    if isinstance(value, str) and is_name(value):
        return str.__str__(value)
    raise PatchError(f"{what} must be a string without NUL and lone surrogates, got {shown(value)}")


def is_name(text: str) -> bool:
    """Whether UTF-8 holds a text, and no NUL is in it."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def as_function(what: str, value: object, of: str) -> Callable[..., Any]:
    """Normalise a function: anything that can be called."""
    if not callable(value):
        raise PatchError(f"{what} must be a function {of}, got {shown(value)}")
    return value


def as_tuple(what: str, value: object, of: str, count: int | None = None) -> tuple[Any, ...]:
    """Normalise several things in an order: those of a list, a tuple, or an array."""
    try:
        length = len(value)  # type: ignore[arg-type]
        if isinstance(value, str | bytes | Mapping | Set) or count not in (None, length):
            raise TypeError
        return tuple(islice(iter(value), length))  # type: ignore[call-overload]
    except Exception:  # whatever a type raises that is to be gone through
        raise PatchError(f"{what} must be {of}, got {shown(value)}") from None


def as_mapping(what: str, value: object, of: str, instead: str = "") -> dict[Any, Any]:
    """Normalise a mapping."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value.items())
    except Exception:  # whatever a type raises that is to be gone through
        raise PatchError(f"{what} must be a mapping {of}, got {shown(value)}{instead}") from None


def merge(what: str, given: object, kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    """Join a mapping from dim to value and the same as keywords."""
    if given is None:
        return dict(kwargs)
    example = "; write for example {'y': 3, 'x': 3} or y=3, x=3"
    mapping = as_mapping(what, given, "from dim to value", example)
    twice = [dim for dim in mapping if among(dim, kwargs)]
    if twice:
        raise PatchError(
            f"{what} names {shown(twice[0])} twice, in the mapping and as a keyword; name it once"
        )
    return {**mapping, **kwargs}


def by_dim(what: str, value: object, dims: Collection[Hashable]) -> dict[Hashable, Any]:
    """Give the value of every dim that has one: one for all, or a mapping; none for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(dims, value)
    mapping = as_mapping(what, value, "from dim to value")
    check_among(what, mapping, dims)
    return mapping


def as_lengths(what: str, value: object) -> dict[Any, int] | None:
    """Normalise lengths by dim, where -1 stands for a whole dim."""
    if value is None:
        return None
    lengths = as_mapping(what, value, "from dim to length")
    for dim, length in lengths.items():
        lengths[dim] = as_integer(f"{what} on {shown(dim)}", length, -1)
        if not lengths[dim]:
            raise PatchError(f"{what} on {shown(dim)} must be >= 1, or -1 for all, got 0")
    return lengths


def check_among(
    what: str, names: Iterable[Any], known: Collection[Any], kind: str = "dims"
) -> None:
    """Refuse names that are not among those that are known."""
    for name in names:
        if not among(name, known):
            raise PatchError(
                f"{what} names {shown(name)}, which is not among the {kind} {shown((*known,))}; "
                "name one of those"
            )


def among(name: object, known: Collection[Any]) -> bool:
    """Whether a name is one of some; what cannot be compared is none of them."""
    try:
        return name in known
    except Exception:  # whatever a type raises that is compared
        return False
