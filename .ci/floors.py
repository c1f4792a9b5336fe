"""Print the oldest version that pyproject.toml allows of each dependency: ``name==floor``, for pip.

The extras whose dependencies are wanted besides are the arguments.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).with_name("..").joinpath("pyproject.toml").read_text())[
    "project"
]
needed = list(project["dependencies"])
for extra in sys.argv[1:]:
    needed += project["optional-dependencies"][extra]
for requirement in needed:
    pinned, replaced = re.subn(r">=", "==", requirement)
    if replaced != 1 or "," in requirement:
        raise SystemExit(f"pyproject.toml: {requirement!r} has no floor of the form name>=version")
    print(pinned)
