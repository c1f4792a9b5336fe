"""Credentials are not told: what URLs and options of stores hold of them is masked in texts."""

import re

_RUN = re.compile(r"\S++")
_CLOSING = "'\")]}>;:,."
"""What ends a sentence or a repr, and belongs to no URL."""
_OPTION = re.compile(r"(?<![\w.-])([\w.-]++)(['\"]?\s*+[:=]\s*+)")
_VALUE = re.compile(
    r"(?:(?:bearer|basic)\s++)?"
    r"(?:[bu]?'(?:[^'\\]|\\.)*+'?|[bu]?\"(?:[^\"\\]|\\.)*+\"?"
    r"|\[[^\]]*+\]?|\([^)]*+\)?|\{[^}]*+\}?|[^\s,;)}\]]*+)",
    re.IGNORECASE | re.DOTALL,
)
_SECRET = re.compile(
    "secret|token|passw|accountkey|accesskey|apikey|privatekey|^sas|^sig$|signature|credential|"
    "authorization|connectionstring"
)
"""In names of options, without what parts their words."""


def redacted(text: object) -> str:
    """Write a text, a URL or an error without the credentials that it holds.

    Parameters
    ----------
    text
        Whatever is written as text.

    Returns
    -------
    str
        Who is named before the host of a URL, what is asked of it behind the path, and the values
        of options such as ``secret`` and ``token`` are ``***``.

    Examples
    --------
    >>> redacted("s3://ann:a/b+c@bucket/tiles.zarr")
    's3://***@bucket/tiles.zarr'
    >>> redacted("store https://host/tiles.zarr?sig=abc&se=2030#d is incomplete")
    'store https://host/tiles.zarr?*** is incomplete'
    >>> redacted({"anon": False, "secret": "abc", "token": "d e"})
    "{'anon': False, 'secret': ***, 'token': ***}"
    """
    return _options(_RUN.sub(_url, str(text)))


def told(error: BaseException) -> str:
    """Name an error and what it says, without credentials.

    Examples
    --------
    >>> told(OSError("no answer from https://ann:abc@host/"))
    'OSError: no answer from https://***@host/'
    """
    return f"{type(error).__name__}: {redacted(error)}"


def _options(text: str) -> str:
    """Mask the values of options whose names say that they are secret."""
    parts, done = list[str](), 0
    for option in _OPTION.finditer(text):
        if option.start() >= done and _is_secret(*option.groups()):
            parts += [text[done : option.end()], "***"]
            value = _VALUE.match(text, option.end())
            done = option.end() if value is None else value.end()
    return "".join([*parts, text[done:]])


def _is_secret(name: str, separator: str) -> bool:
    words = re.sub("[_.-]", "", name).lower()
    return (words == "key" and separator[0] in "='\"") or _SECRET.search(words) is not None


def _url(run: re.Match[str]) -> str:
    """Mask a URL in a text without spaces; rather too much of it than too little."""
    before, scheme, url = run[0].partition("://")
    if not scheme:
        return run[0]
    bare = url.rstrip(_CLOSING)
    closing = url[len(bare) :]
    user, at, place = bare.rpartition("@")
    if at and (":" in user or "/" not in user):
        bare = f"***@{place}"
    asked = re.search("[?#]", bare)
    bare = bare if asked is None else f"{bare[: asked.end()]}***"
    return f"{before}{scheme}{bare}{closing}"
