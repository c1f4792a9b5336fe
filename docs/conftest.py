"""Pages that need more than the tests do are run where that is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

EARTH_OBSERVATION = "earth-observation.md"
collect_ignore = [] if find_spec("rioxarray") else [EARTH_OBSERVATION]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore what rasterio and rioxarray say of each other."""
    for item in items:
        if item.path == Path(__file__).parent / EARTH_OBSERVATION:
            # Of rasterio and rioxarray, about affine.
            ignored = "ignore:Use `@` matmul instead of:PendingDeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(ignored), append=False)
