from pathlib import Path

import pytest

IGNORED = [
    # rasterio and rioxarray multiply the transforms of affine as it will no longer have it.
    "ignore:Use `@` matmul instead of:PendingDeprecationWarning",
]
"""Warnings of neighbours about each other, which are none of ours; for pytest's filterwarnings."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # of the whole session
        if item.path.is_relative_to(Path(__file__).parent):
            for ignored in IGNORED:
                item.add_marker(pytest.mark.filterwarnings(ignored), append=False)
