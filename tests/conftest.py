from collections import Counter
from collections.abc import Iterator
from typing import Any

import dask
import pytest
import xarray as xr
from hypothesis import settings
from zarr.storage import LocalStore

settings.register_profile("xpatches", deadline=None, max_examples=200, print_blob=True)
settings.load_profile("xpatches")


class CountingStore(LocalStore):
    """A zarr store on disk that counts how often each object is read."""

    reads: Counter[str] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.reads[key] += 1
        return await super().get(key, *args, **kwargs)

    @classmethod
    def chunk_reads(cls, name: str = "") -> dict[str, int]:
        """Reads of chunks, of one array or of all, since the last call."""
        reads = {key: n for key, n in cls.reads.items() if "/c/" in key and key.startswith(name)}
        cls.reads.clear()
        return reads


@pytest.fixture
def counting_store() -> Iterator[type[CountingStore]]:
    CountingStore.reads.clear()
    yield CountingStore
    CountingStore.reads.clear()


@pytest.fixture
def no_compute() -> Iterator[None]:
    """Fail when anything computes a dask graph."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed a dask graph")

    with dask.config.set(scheduler=refuse):
        yield


@pytest.fixture(autouse=True)
def _synchronous() -> Iterator[None]:
    """Compute in this thread: tests of small arrays need no pool."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    import numpy as np

    import xpatches

    doctest_namespace.update(np=np, xr=xr, xpatches=xpatches)
