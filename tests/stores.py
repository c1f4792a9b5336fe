"""Stores that count what is read from them."""

from collections import Counter
from typing import Any, ClassVar

from zarr.storage import LocalStore


class CountingStore(LocalStore):
    """A zarr store on disk that counts how often each object is read."""

    reads: ClassVar[Counter[str]] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.reads[key] += 1
        return await super().get(key, *args, **kwargs)

    @classmethod
    def chunk_reads(cls, name: str = "") -> dict[str, int]:
        """Reads of chunks, of one array or of all, since the last call."""
        reads = {key: n for key, n in cls.reads.items() if "/c/" in key and key.startswith(name)}
        cls.reads.clear()
        return reads
