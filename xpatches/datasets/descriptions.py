"""What describes the job of a patch dataset: JSON in an attr of its group, all of it checked."""

from collections.abc import Mapping
from typing import Any

from xpatches.documents import (
    Unfit,
    dtype,
    either,
    flag,
    integer,
    list_of,
    long_text,
    mapping_of,
    number,
    one_of,
    parse,
    record,
    refuse,
    text,
    version_of,
)
from xpatches.errors import PatchError
from xpatches.images.packing import LINKS
from xpatches.jobs.folder import JOB
from xpatches.jobs.state import SAID_LAST, damaged

VERSION = 5
"""Of what describes a dataset."""


def _stored(place: str, value: Any) -> str:
    """Check the name of a stored variable: one path below the group."""
    name = text(place, value)
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > 200:
        refuse(place, "the name of a variable", name)
    return name


_lengths = list_of(integer, most=64)
_names = list_of(text, most=64)
_mapped = record(
    {
        "func": long_text, "factory": flag, "labelled": flag, "patches": long_text,
        "dims": _names, "shape": _lengths, "dtype": text,
    },
    {
        "reduce": text, "fill_value": text, "skipna": flag,
        "taper": either(one_of(None), list_of(list_of(number), most=64)),
    },
)  # fmt: skip
_reduced = record(
    {
        "how": long_text, "skipna": either(one_of(None), flag),
        "min_count": either(one_of(None), integer), "ignore_padding": flag, "patches": long_text,
    }
)  # fmt: skip
_MADE = {"image": "map", "runs": "map", "reduced": "reduce"}
"""What describes how an image becomes something else than its patches, by layout."""
_description = record(
    {
        "version": integer,
        "xpatches": text,
        "layout": one_of("grid", "samples", *_MADE),
        "array": either(
            one_of(None), record({"stored": _stored, "name": either(one_of(None), text)})
        ),
        "blocks": mapping_of(_stored, record({"count": integer, "shape": _lengths}), least=1),
        "source": mapping_of(
            _stored,
            record({"dims": _names, "shape": _lengths, "dtype": long_text}),
        ),
        "coords": list_of(_stored),
        "links": mapping_of(_stored, list_of(one_of(*LINKS))),
        "dtypes": mapping_of(_stored, dtype),
        "packed": list_of(_stored),
    },
    {
        "map": mapping_of(_stored, _mapped),
        "reduce": mapping_of(_stored, _reduced),
        **SAID_LAST,
    },
)


def read_description(attrs: Mapping[str, Any], store: object) -> dict[str, Any]:
    """Read what describes the job of a patch dataset from the attrs of its group.

    Parameters
    ----------
    attrs
        Of the group.
    store
        What errors name.

    Returns
    -------
    dict
        The document as it is; all that it holds is of the kind and size that it must be.

    Raises
    ------
    PatchError
        If anything in it is not, or it is of another version.

    Examples
    --------
    >>> read_description({"xpatches_job": '{"version": 5}'}, "tiles.zarr")
    Traceback (most recent call last):
    ...
    xpatches.errors.PatchError: attr 'xpatches_job' of store tiles.zarr is damaged, it lacks ...
    """
    try:
        job: dict[str, Any] = parse(attrs.get(JOB))
        if version_of(job) != VERSION:
            raise PatchError(
                f"store {store} is a patch dataset of version {job['version']}, this xpatches "
                f"reads {VERSION}; write it anew"
            )
        _description("", job)
        _check_names(job)
    except Unfit as error:
        raise damaged(store, error) from error
    return job


def _check_names(job: Mapping[str, Any]) -> None:
    """Check that what is made of the image is what blocks are of."""
    blocks, array = job["blocks"], job["array"]
    if array is not None and array["stored"] not in blocks:
        refuse("array.stored", "a name of blocks", array["stored"])
    for word in ("map", "reduce"):
        if (_MADE.get(job["layout"]) == word) != (word in job):
            has = "has no" if word in job else "needs a"
            raise Unfit(f"the layout {job['layout']!r} {has} {word}")
        for name in job.get(word, ()):
            if name not in blocks:
                refuse(f"a key of {word}", "a name of blocks", name)
