"""The patches of a labelled image, `Patches`, and all that can be done with them."""

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Generic, TypeVar, cast

import numpy as np
import xarray as xr

from xpatches.arguments import (
    as_choice,
    as_flag,
    as_function,
    as_integer,
    as_lengths,
    as_mapping,
    as_optional_flag,
    merge,
    shown,
)
from xpatches.display import text as reprs
from xpatches.dtypes import Array, is_dask
from xpatches.errors import PatchError, PatchOverflowError
from xpatches.extraction import labelled as variables
from xpatches.extraction import single as take
from xpatches.geometry.grid import PatchGrid
from xpatches.images import labels
from xpatches.images.labels import SAMPLE_DIM
from xpatches.images.lines import Line
from xpatches.images.packing import NODATA, kept_encoding
from xpatches.images.samples import as_budget, checked_lazy
from xpatches.mapping import labelled as mapping
from xpatches.mapping import output as outputs
from xpatches.mapping.model import Function
from xpatches.reduction.kernel import SEPARABLE
from xpatches.reduction.labelled import reduce_variable
from xpatches.stitching.choose import as_reduce
from xpatches.stitching.tapers import Taper

T = TypeVar("T", xr.DataArray, xr.Dataset)

ARRAY = "<this-array>"
"""Name of a DataArray's variable in the Dataset that stands for it."""


@dataclass(frozen=True, eq=False, repr=False)
class Patches(Generic[T]):
    """The patches of a labelled image: an immutable, lazy sequence.

    Made by ``image.patches(...)``. Its length, or `total`, is the number of patches; ``p[i]`` is
    the i-th one, the last dim running fastest, ``p[i, j]`` the one at an index per dim, and
    iteration gives them all, each as a labelled array on the image's own dims. Iteration over an
    image that was opened without dask reads ahead, up to dask's ``array.chunk-size``, so that
    little is read twice.

    Examples
    --------
    >>> image = xr.DataArray(np.arange(100).reshape(10, 10), dims=("y", "x"))
    >>> p = image.patches(y=3, x=3, stride=5)
    >>> p
    <xpatches.Patches: 4 patches, 288 bytes in all>
    Source: DataArray int64 (y: 10, x: 10)
    Fill:   0 (no nodata declared)
    Grid:
        dim  count  size  stride  rate  padding
        y        2     3       5     1  valid
        x        2     3       5     1  valid
    >>> p[0, 1].values
    array([[ 5,  6,  7],
           [15, 16, 17],
           [25, 26, 27]])
    >>> p.extract().sizes
    Frozen({'y': 2, 'x': 2, 'y_patch': 3, 'x_patch': 3})
    """

    source: T
    """The image."""
    grid: PatchGrid
    """The patches per dim, in the order in which they are numbered: the last one runs fastest."""
    _dataset: xr.Dataset
    _fill_values: Mapping[Hashable, Array]
    _fill_reasons: Mapping[Hashable, str]

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Samples per patch per dim."""
        return self.grid.sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all patches, as `extract` gives them."""
        counts = self.grid.counts
        return sum(
            variable.dtype.itemsize
            * prod(counts.get(dim, length) for dim, length in variable.sizes.items())
            * prod(self.sizes[dim] for dim in variable.dims if dim in counts)
            for _, variable, _ in self._extracted()
        )

    @property
    def total(self) -> int:
        """Number of patches: as ``len(p)``, which Python allows up to 2**63 - 1 of them only."""
        return self.grid.total

    def __len__(self) -> int:
        if self.total > sys.maxsize:
            raise PatchOverflowError(
                f"len(p) must be <= {sys.maxsize}, as for all sequences of Python, and there are "
                f"{self.total} patches; use p.total"
            )
        return self.total

    def __bool__(self) -> bool:
        return True  # no grid is empty, and len may be too large

    def __iter__(self) -> Iterator[T]:
        for part, indices in take.read_ahead(self._indexed, self._fill_values, self.grid):
            for index in indices:
                yield self._take(index, part)

    def __getitem__(self, index: int | tuple[int, ...]) -> T:
        if not isinstance(index, tuple):
            return self._take(self.grid.unravel(index))
        if len(index) != len(self.grid.axes):
            raise PatchError(
                f"index must have one integer for each of the dims {self.grid.dims}, got "
                f"{shown(index)}"
            )
        return self._take(self.grid.index(dict(zip(self.grid.dims, index, strict=True))))

    def isel(self, /, indexers: Mapping[Any, int] | None = None, **kwargs: int) -> T:
        """Take one patch by its index along every dim of the grid.

        Parameters
        ----------
        indexers, **kwargs
            An integer for every dim; a negative one counts from the end.

        Returns
        -------
        DataArray or Dataset
            On the image's own dims, with its labels, and ``{dim}_index`` (int64), the source index
            of every sample. Outside the image the samples are `fill_value`, and labels go on where
            those of the dim are evenly spaced; others are missing (NaN, NaT, None). Lazy if the
            image is a dask array, in memory otherwise; only the chunks under the patch are read.

        Raises
        ------
        PatchError
            If a dim is unknown or left out, or an index is not an integer.
        PatchIndexError
            If an index lies outside the grid.
        """
        return self._take(self.grid.index(self._one_each("isel", indexers, kwargs)))

    def sel(
        self,
        /,
        indexers: Mapping[Any, Any] | None = None,
        method: str | None = None,
        tolerance: Any = None,
        **kwargs: Any,
    ) -> T:
        """Take patches by the labels of their centers along every dim of the grid.

        Parameters
        ----------
        indexers, **kwargs
            A label for every dim, or several: an array takes patches along the dim, DataArrays that
            share a dim take them pointwise, as in xarray.
        method, tolerance
            As in `xarray.DataArray.sel`; ``method="nearest"`` takes the patch whose center is the
            nearest to the label. A label outside the image must then lie within `tolerance`, half a
            stride if there is none.

        Returns
        -------
        DataArray or Dataset
            As `isel` for one patch; as ``extract().sel(...)`` for several, of which no others are
            taken.

        Raises
        ------
        PatchError
            If a dim is unknown, left out or has no coord, or if a label is not that of exactly one
            patch.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(9), {"x": np.arange(9) / 2})
        >>> p = image.patches(x=3)
        >>> p.sel(x=2.0).values
        array([3, 4, 5])
        >>> p.sel(x=[3.5, 0.5]).values
        array([[6, 7, 8],
               [0, 1, 2]])
        """
        method = as_choice("method", method, take.METHODS)
        at = {
            dim: take.find(
                self._dataset.coords, self.grid[dim], self._lines, label, method, tolerance
            )
            for dim, label in self._one_each("sel", indexers, kwargs).items()
        }
        if any(numbers.ndim for numbers in at.values()):
            return self._take_several(at)
        return self._take(self.grid.index({dim: int(number) for dim, number in at.items()}))

    def extract(
        self,
        flatten: str | None = None,
        label: str = "center",
        engine: str = "auto",
        max_bytes: int | str | None = None,
    ) -> T:
        """Extract all patches.

        Parameters
        ----------
        flatten
            None, or ``"patch"`` to join the patch dims and the image's dims behind them into one
            dim ``patch``, TensorFlow's layout, with the coords of all of them along it.
        label
            What of a patch labels it: ``"center"``, its true middle, between two samples for even
            effective sizes (numbers and times are their mean, other kinds the first of the two), or
            ``"origin"``, its first sample.
        engine
            How an image that is not in memory is computed: ``"map_overlap"`` exchanges halos
            between the chunks of a dask array; ``"region"`` lets every block read its own region,
            for images that were opened, with dask or without, and not computed on since;
            ``"auto"`` is ``"region"`` for images opened with ``chunks=None`` where no sample is
            read more than 1.3 times on average. The values are the same.
        max_bytes
            Budget of a task, for its input and its output together: a number of bytes or a string
            like ``"64 MiB"``; dask's ``array.chunk-size`` (128 MiB) by default.

        Returns
        -------
        DataArray or Dataset
            The image's dims, in their order, with ``{dim}_patch`` inserted right after the last
            spatial dim. Coords along the grid are the labels of the patches' centers (or origins;
            where that lies outside the image they go on if they are evenly spaced, and are missing
            otherwise); ``{dim}_origin`` (int64) is the source
            index of each patch's first sample and may be negative; ``{dim}_patch`` (int64) are the
            offsets, so that the source index of every sample is their sum. Other coords, the
            attrs and the name pass through; the attr ``xpatches`` holds the geometry as JSON.
            Lazy, in chunks, if the image is a dask array or was opened without dask; NumPy in,
            NumPy out.

        Raises
        ------
        PatchError
            If `flatten`, `label` or `engine` is unknown, the source cannot be read by region, one
            patch does not fit `max_bytes`, the variables of a Dataset cannot share one dim
            ``patch``, or a lazy result would take 10 million tasks or more.

        Examples
        --------
        >>> image = xr.DataArray([1, 2, 3], {"x": [0.5, 1.5, 2.5]}, name="image")
        >>> image.patches(x=3, stride=1, padding="same").extract()
        <xarray.DataArray 'image' (x: 3, x_patch: 3)> Size: 72B
        array([[0, 1, 2],
               [1, 2, 3],
               [2, 3, 0]])
        Coordinates:
          * x         (x) float64 24B 0.5 1.5 2.5
            x_origin  (x) int64 24B -1 0 1
          * x_patch   (x_patch) int64 24B 0 1 2
        Attributes:
            xpatches:  {"version": 2, "dims": ["x"], "axes": [{"dim": "x", "length": ...
        """
        flatten = as_choice("flatten", flatten, (None, labels.FLAT_DIM))
        label = as_choice("label", label, _LABELS)
        how = _how(engine, max_bytes)
        joined = self._joined_dims() if flatten else {}
        made = {
            name: variables.extract_variable(
                variable, self.grid, fill_value, label, joined, self._lines, how
            )
            for name, variable, fill_value in self._extracted()
        }
        coords = self._coords(label)
        return self._wrap(made, labels.flatten_coords(coords, joined) if joined else coords)

    def reduce(
        self,
        how: Callable[..., Any] | str,
        *,
        skipna: bool | None = None,
        min_count: int | None = None,
        ignore_padding: bool | None = None,
        label: str = "center",
        engine: str = "auto",
        max_bytes: int | str | None = None,
    ) -> T:
        """Reduce every patch to one sample: pooling, with any stride, rate and padding.

        The result is that of reducing what `extract` gives over its patch dims, but no patches
        stand in memory, except for a median or a function: each dim is reduced by itself.

        Parameters
        ----------
        how
            ``"min"``, ``"max"``, ``"sum"``, ``"mean"``, ``"var"``, ``"std"`` (both with ``ddof``
            0), ``"any"``, ``"all"``, ``"count"`` (of samples that are not missing), ``"argmin"``,
            ``"argmax"`` (index of the first extreme among the samples of the patch, in C order),
            ``"median"``, or a function that is called as ``how(patches, axis=axes)`` with NumPy
            patches of a block and reduces those axes.
        skipna
            Whether NaN is no sample; None is True for floating dtypes, as in xarray.
        min_count
            Patches with fewer samples become NaN. It counts where samples are skipped: for
            floating dtypes, or with `ignore_padding`.
        ignore_padding
            Whether padding is no sample; it takes part as `fill_value` otherwise. None is True
            where the padding of numbers is their nodata, unless `how` is a function.
        label, engine, max_bytes
            As for `extract`.

        Returns
        -------
        DataArray or Dataset
            The image's dims, with the number of patches as lengths, and the patches' labels. The
            dtype is xarray's: that of the image for extremes and for floating sums and means,
            float64 for means of integers, int64 for counts and indices. Lazy as with `extract`.

        Raises
        ------
        PatchError
            As `extract`; or if `how` is unknown or does not fit the dtype, `min_count` or
            `ignore_padding`.
        MapError
            If `how` is a function that fails.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(36).reshape(6, 6), dims=("y", "x"))
        >>> image.patches(y=2, x=2, stride=2, rate=3, padding="same").reduce("max").values
        array([[14, 16, 15],
               [26, 28, 27],
               [20, 22, 21]])
        """
        if not callable(how):
            how = as_choice("how", how, (*SEPARABLE, "median"), "a function")
        if min_count is not None:
            min_count = as_integer("min_count", min_count, 0)
        options = {"skipna": as_optional_flag("skipna", skipna), "min_count": min_count}
        ignore_padding = as_optional_flag("ignore_padding", ignore_padding)
        label = as_choice("label", label, _LABELS)
        by = _how(engine, max_bytes)
        made = {
            name: reduce_variable(
                variable,
                self.grid,
                fill,
                how,
                {**options, "ignore_padding": self._ignores(name, how, ignore_padding)},
                by,
            )
            for name, variable, fill in self._extracted()
        }
        coords = self._coords(label).to_dataset()
        return self._wrap(made, coords.drop_vars([f"{dim}_patch" for dim in self.grid.dims]).coords)

    def map(
        self,
        func: Callable[..., Any],
        *,
        batch_size: int = 32,
        taper: Taper | None = None,
        reduce: str | None = None,
        output: Mapping[str, Any] | None = None,
        labelled: bool = False,
        factory: bool = False,
        fill_value: Any = None,
        skipna: bool | None = None,
        max_bytes: int | str | None = None,
        store: Any = None,
        materialize: Any = None,
        chunks: Mapping[Any, int] | None = None,
        shards: Mapping[Any, int] | bool | None = None,
        encoding: Mapping[Any, Mapping[str, Any]] | None = None,
        checksums: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        retries: int = 2,
        lock: bool = True,
        fsync: bool = False,
        progress: bool = True,
    ) -> T:
        """Run a model on all patches, and stitch what it returns into an image.

        No patches are stored. Every block of the result extracts the patches that reach into it,
        runs the model on them and stitches what it returns; patches that reach into several blocks
        are run several times, as often as `plan` says.

        Parameters
        ----------
        func
            Is called with a batch of patches: a NumPy array, the patches along the first axis, then
            the image's own dims with the sizes of a patch, as if ``p[i]`` were stacked. It returns
            an array with the batch first. It may be called by several threads at once.
        batch_size
            Patches of a batch, at most.
        taper, reduce
            How several patches become one sample, as for `xpatches.stitch`. The taper is for
            "mean", and ``"hann"`` by default. Integers, bools and whatever else is not floating may
            be labels: where patches of them overlap, one of the two must be given.
        output
            What `func` returns for a patch, where that differs from the patch; a mapping with some
            of

            - ``"dims"``: behind the batch, in order: all dims along which patches are cut, and
              others, new ones or the image's;
            - ``"sizes"``: lengths by dim: of new dims, and of patches that come back smaller, as
              many samples cut off on both sides;
            - ``"scale"``: samples returned per sample of the patch, an integer or 1 divided by
              one, for all dims or a mapping;
            - ``"dtype"``: that of the image if it is left out;
            - ``"name"``: of the result, for a DataArray;
            - ``"attrs"``: of the result. Of the image's attrs it keeps those that say nothing of
              the numbers: no units, names and flags, and nothing of how they are stored;
            - ``"nodata"``: its value of missing samples, which becomes the attr ``_FillValue`` and
              the `fill_value`.
        labelled
            Call `func` with a DataArray instead: the patches along ``sample``, with their labels
            and origins as coords along it, and ``{dim}_patch`` for the dims that are cut.
        factory
            `func` takes no arguments and gives the function. It is called once in this process, or
            once on every worker of a dask cluster that runs blocks, for all variables; what it
            gives stays there until another is sent.
        fill_value
            Value of samples that no patch holds, as for `xpatches.stitch`.
        skipna
            Whether missing samples, NaN and NaT, of what `func` returns do not count where other
            patches have some, as for `xpatches.stitch`.
        max_bytes
            Budget of a task: for the samples that it reads, the rows of patches that it holds, and
            its block of the result. A batch and what the model takes for itself are not counted.
        store
            Write the result to this zarr store, as a job, like `to_zarr`; it is opened lazily.
        materialize
            Run the model on every patch once, and write what it returns to this zarr store, as a
            job; the result is stitched from there. This costs disk, for a model that takes long.
        chunks, shards, encoding
            Of the result in `store`, as for `to_zarr`. Chunks have 1 MiB by default, shards up to
            32 MiB; blocks are whole shards.
        checksums, resume, overwrite, retries, lock, fsync, progress
            Of the jobs, as for `to_zarr`. `func` is known by its name: a job that is resumed may
            have another function of that name, and another `batch_size`.

        Returns
        -------
        DataArray or Dataset
            Of the dims that `output` names, with the image's coords as far as they fit. `func` is
            run on each variable of a Dataset by itself. Lazy if the image is; an image in memory
            is one block, every patch of which is run once.

        Raises
        ------
        PatchError
            If an argument does not fit, samples that no patch holds have no value, neither
            `reduce` nor `taper` says what becomes of integers, say, of which patches overlap, or a
            lazy result would take 10 million tasks or more; for jobs, as `to_zarr`.
        MapError
            When the result is computed: if `func` fails, with the origin and the labels of the
            patch; or if it returns something else than `output` says.
        JobError
            If blocks of a job failed; all others are written then, unless `func` failed alike in
            one after the other: then the job stops at once.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(24.0).reshape(1, 4, 6), dims=("band", "y", "x"))
        >>> def brighter(batch):
        ...     return np.concatenate([batch, batch + 1], axis=1)
        >>> p = image.patches(y=2, x=2, stride=1)
        >>> made = p.map(brighter, output={"dims": ("of", "y", "x"), "sizes": {"of": 2}})
        >>> made.sizes
        Frozen({'of': 2, 'y': 4, 'x': 6})
        >>> bool((made[1] == image[0] + 1).all())
        True
        """
        max_bytes = as_budget(max_bytes)
        func = as_function("func", func, "of a batch of patches")
        chunks, shards, encoding = _stored(chunks, shards, encoding)
        report, job = _job(
            progress, retries,
            checksums=checksums, resume=resume, overwrite=overwrite, lock=lock, fsync=fsync,
        )  # fmt: skip
        reduce, taper = as_reduce(reduce, taper)
        if store is None and any(given is not None for given in (chunks, shards, encoding)):
            raise PatchError("chunks, shards and encoding are for store; give one, or leave them")
        outlines = self._outlines(output, batch_size, reduce)
        if store is None and materialize is None:
            if job["resume"] or job["overwrite"]:
                raise PatchError("resume and overwrite are for store or materialize; give one")
            for outline in outlines.values():
                outline.check_size(max_bytes)
        every = self._mapped(
            func,
            outlines,
            as_flag("factory", factory),
            taper=taper,
            reduce=reduce,
            labelled=as_flag("labelled", labelled),
            fill_value=fill_value,
            skipna=as_optional_flag("skipna", skipna),
        )
        coords = mapping.mapped_coords(self._dataset, every)
        if store is None and materialize is None:
            data = {name: of.compute(max_bytes) for name, of in every.items()}
            return self._made(every, data, coords)
        (called, *_) = (of.answer.name for of in every.values())
        from xpatches.datasets.image import write_map  # zarr and dask are loaded for jobs only
        from xpatches.jobs.open import open_folder

        store = None if store is None else open_folder(store)
        if materialize is not None:
            materialize = open_folder(materialize, what="materialize")
        made: Any = write_map(
            self._written(called),
            every,
            coords,
            store=store,
            materialize=materialize,
            chunks=chunks,
            shards=shards,
            encoding=encoding,
            max_bytes=max_bytes,
            report=report,
            **job,
        )
        return self._made(every, made, coords) if store is None else cast(T, made)

    def to_zarr(
        self,
        store: Any,
        *,
        layout: str = "grid",
        label: str = "center",
        chunks: Mapping[Any, int] | None = None,
        shards: Mapping[Any, int] | bool | None = None,
        encoding: Mapping[Any, Mapping[str, Any]] | None = None,
        checksums: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        retries: int = 2,
        lock: bool = True,
        fsync: bool = False,
        progress: bool = True,
    ) -> T:
        """Write all patches to a zarr store, as a job that can be resumed.

        The store is set up, then independent tasks write blocks, each reading what it needs of the
        image and writing whole chunks or shards. They run on the workers of the dask client that is
        active, or in threads of this process. A block that fails is tried again; blocks that are
        done are recorded in the store, and a job that was killed or failed goes on from there.
        Large variables that are not cut are copied by such tasks, too.

        Parameters
        ----------
        store
            Where to: a path, a URL of fsspec or obstore, or a zarr store.
        layout
            ``"grid"``: dims as `extract` gives them. ``"samples"``: the patches along one dim
            ``sample``, in the order of iteration, then the patch dims, then all others, with each
            sample's labels and origins as coords along it.
        label
            What labels a patch, ``"center"`` or ``"origin"``, as for `extract`.
        chunks, shards
            Lengths by dim of the result, -1 for a whole dim; a shard is a stored object of several
            chunks, False for none. By default a chunk is one patch, or patches of 1 MiB in all
            where they are smaller, and a shard has 32 MiB. Dims that are not cut, such as bands,
            are whole in a chunk where it has 4 MiB at most then.
        encoding
            By variable, how values are stored, as in `xarray.Dataset.to_zarr`: ``compressors``,
            ``dtype``, ``scale_factor``, ...
        checksums
            Whether every chunk of numbers ends with its CRC-32C (zarr's codec ``crc32c``), by which
            whoever reads it notices what was damaged.
        resume
            Finish what an earlier call with the same arguments began in the store.
        overwrite
            Replace whatever zarr holds there.
        retries
            How many times a block that fails is tried again.
        lock
            False to keep nobody else out of the store, where it cannot: then nobody else may write
            there.
        fsync
            Whether what is written is on the disk before it counts, so that it outlasts a loss of
            power; for stores on disks.
        progress
            Whether to tell of the progress on stderr.

        Returns
        -------
        DataArray or Dataset
            What was written, opened lazily, as `open_patches` does.

        Raises
        ------
        PatchError
            If an argument does not fit; if the store holds something and neither `resume` nor
            `overwrite` is given, or another job's blocks, or is being written; if the image is not
            the one that was cut so far.
        JobError
            If blocks failed; all others are written then.

        Examples
        --------
        >>> from zarr.storage import MemoryStore
        >>> image = xr.DataArray(np.arange(36).reshape(6, 6), {"x": range(6)}, ("y", "x"), "image")
        >>> made = image.patches(y=3, x=3).to_zarr(MemoryStore(), layout="samples", progress=False)
        >>> made.drop_attrs()
        <xarray.DataArray 'image' (sample: 4, y_patch: 3, x_patch: 3)> Size: 288B
        dask.array<...>
        Coordinates:
        ...
        """
        from xpatches.datasets import write as datasets  # zarr and dask are loaded for jobs only

        chunks, shards, encoding = _stored(chunks, shards, encoding)
        report, job = _job(
            progress, retries,
            checksums=checksums, resume=resume, overwrite=overwrite, lock=lock, fsync=fsync,
        )  # fmt: skip
        written = self._cut(layout, chunks, shards, label)
        made: Any = datasets.write_dataset(written, store, encoding, report(), **job)
        return cast(T, made)

    def plan_zarr(
        self,
        layout: str = "grid",
        chunks: Mapping[Any, int] | None = None,
        shards: Mapping[Any, int] | bool | None = None,
    ) -> dict[Any, Any]:
        """Say how `to_zarr` will work, as plain data; nothing is read or written.

        Parameters
        ----------
        layout, chunks, shards
            As for `to_zarr`.

        Returns
        -------
        dict
            For a Dataset, one such dict per variable that is cut:

            - ``patches``, ``bytes``: number of patches, and their bytes;
            - ``dims``, ``chunks``, ``shards``: lengths of the result, of its chunks and shards;
            - ``tasks``: number of blocks;
            - ``bytes_per_task``: projected peak of one: the patches that it writes at a time, three
              times for zarr encodes them, and the samples that it reads at a time, twice for they
              may be padded;
            - ``read_amplification``: how often a stored sample of the image is read, on average,
              estimated from 100 blocks.

        Raises
        ------
        PatchError
            As `to_zarr`.

        Examples
        --------
        >>> image = xr.DataArray(np.zeros((1024, 1024), "uint8"), dims=("y", "x"))
        >>> plan = image.patches(y=64, x=64, stride=32).plan_zarr("samples")
        >>> plan["dims"], plan["chunks"], plan["tasks"]
        ({'sample': 961, 'y_patch': 64, 'x_patch': 64}, (256, 64, 64), 1)
        """
        from xpatches.datasets import patches as datasets  # zarr and dask are loaded for jobs only

        chunks, shards, _ = _stored(chunks, shards)
        plans = datasets.plan_patches(self._cut(layout, chunks, shards))
        return plans[ARRAY] if isinstance(self.source, xr.DataArray) else plans

    def plan_map(
        self,
        output: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        reduce: str | None = None,
        max_bytes: int | str | None = None,
        chunks: Mapping[Any, int] | None = None,
        shards: Mapping[Any, int] | bool | None = None,
    ) -> dict[Any, Any]:
        """Say how `map` will work that writes to a store, as plain data; nothing is read or run.

        Parameters
        ----------
        output, batch_size, reduce, max_bytes, chunks, shards
            As for `map`.

        Returns
        -------
        dict
            For a Dataset, one such dict per variable that is cut: ``patches``, ``runs``,
            ``runs_per_patch`` and ``bytes_per_task`` as in `plan`; ``bytes``, ``dims``, ``chunks``
            and ``shards`` of the result; ``tasks``, the number of blocks.

        Raises
        ------
        PatchError
            As `map`.

        Examples
        --------
        >>> image = xr.DataArray(np.zeros((1024, 1024), "uint8"), dims=("y", "x"))
        >>> plan = image.patches(y=64, x=64, stride=32).plan_map({"dtype": "float32"})
        >>> plan["tasks"], plan["patches"], plan["runs"]
        (1, 961, 961)
        """
        from xpatches.datasets.image import plan_written_map  # zarr and dask are for jobs only

        max_bytes = as_budget(max_bytes)
        chunks, shards, _ = _stored(chunks, shards)
        outlines = self._outlines(output, batch_size, reduce)
        plans = plan_written_map(self._written(), outlines, max_bytes, chunks, shards)
        return plans[ARRAY] if isinstance(self.source, xr.DataArray) else plans

    def plan(
        self,
        flatten: str | None = None,
        engine: str = "auto",
        max_bytes: int | str | None = None,
        output: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        reduce: str | None = None,
    ) -> dict[Any, Any]:
        """Say how `extract` and `map` will work, as plain data; nothing is read or computed.

        Parameters
        ----------
        flatten, engine, max_bytes
            As for `extract`.
        output, batch_size, reduce
            As for `map`.

        Returns
        -------
        dict
            For a Dataset, one such dict per extracted variable:

            - ``engine``: ``"map_overlap"``, ``"region"``, or ``"numpy"`` for an image in memory;
            - ``patches``: number of patches;
            - ``blocks``: number of regions of the source that patches are computed from;
            - ``tasks``: tasks that `extract` adds to the dask graph of the image, before dask
              fuses some (1 for an image in memory);
            - ``image_tasks``: tasks that the graph of the image holds, also those that no patch
              needs; 0 where blocks read regions, and for an image in memory;
            - ``halo``: per dim, the samples ``[before, after]`` that blocks share;
            - ``regions``: per dim of the source, ``[start, stop)`` of every block;
            - ``chunks``: per dim of the result, the lengths of its chunks;
            - ``max_bytes``: the budget (None for an image in memory);
            - ``bytes_per_task``: projected peak of the largest task: what it is given, makes on
              the way and returns;
            - ``read_amplification``: how often a stored sample is read, on average;
            - ``map``: the same of `map`: ``blocks`` and ``chunks`` of its result, its
              ``bytes_per_task`` with one batch, but without what the model takes for itself,
              ``runs``, the number of patches that the model is run on, and ``runs_per_patch``, how
              often on each, since those that reach into several blocks are run for each of them.

        Raises
        ------
        PatchError
            As `extract`, but any number of tasks is told of, as long as there are fewer than 10
            million blocks along every dim.

        Examples
        --------
        >>> image = xr.DataArray(np.zeros((8, 8), "uint8"), dims=("y", "x"))
        >>> image.chunk(y=4, x=8).patches(y=3, x=3, stride=1).plan()["halo"]
        {'y': [0, 2], 'x': [0, 0]}
        """
        flatten = as_choice("flatten", flatten, (None, labels.FLAT_DIM))
        how = _how(engine, max_bytes)
        joined = self._joined_dims() if flatten else {}
        outlines = self._outlines(output, batch_size, reduce)
        plans = {
            name: {
                **variables.plan_variable(variable, self.grid, joined, how),
                "map": outputs.plan_map(outlines[name], how["max_bytes"]),
            }
            for name, variable, _ in self._extracted()
        }
        return plans[ARRAY] if isinstance(self.source, xr.DataArray) else plans

    def __repr__(self) -> str:
        return reprs.text(self.source, self.grid, self._fills(), self.nbytes)

    def _repr_html_(self) -> str:
        return reprs.html(self.source, self.grid, self._fills(), self.nbytes)

    def _fills(self) -> dict[Hashable, str]:
        """Say by variable which value padding has, and why."""
        return {
            name: f"{value} ({self._fill_reasons[name]})"
            for name, value in self._fill_values.items()
        }

    @cached_property
    def _indexed(self) -> xr.Dataset:
        """The image with room for ``{dim}_index`` (int64): a coord that holds one number."""
        names = [f"{dim}_index" for dim in self.grid.dims]
        labels.check_names(self._dataset, names)
        dataset = self._dataset
        for name, variable, _ in self._extracted():
            if is_dask(variable._data):
                dataset = dataset.assign({name: checked_lazy(variable)})
        room = (
            xr.Variable((axis.dim,), np.broadcast_to(np.int64(0), axis.length))
            for axis in self.grid
        )
        return dataset.assign_coords(dict(zip(names, room, strict=True)))

    @cached_property
    def _lines(self) -> dict[Hashable, Line]:
        """The coords along the grid whose labels are evenly spaced."""
        return labels.lines_of(self._dataset.coords, self.grid.dims)

    def _take(self, index: tuple[int, ...], part: take.Part | None = None) -> T:
        part = part or (self._indexed, dict.fromkeys(self.grid.dims, 0))
        samples = {axis.dim: axis.samples(i) for axis, i in zip(self.grid.axes, index, strict=True)}
        ends = ((axis.length, samples[axis.dim]) for axis in self.grid)
        inside = all(of[0] >= 0 and of[-1] < length for length, of in ends)
        known = {} if inside else self._lines  # which looks at every label of the image
        return self._as_source(take.take_patch(part, self._fill_values, samples, known))

    def _take_several(self, at: Mapping[Hashable, xr.Variable]) -> T:
        coords = self._coords("center").to_dataset().isel(at).coords
        made = {
            name: take.take_patches(self._indexed, name, fill_value, self.grid, self._lines, at)
            for name, fill_value in self._fill_values.items()
        }
        return self._wrap(made, coords)

    def _extracted(self) -> Iterator[tuple[Hashable, xr.Variable, Array]]:
        """Iterate over the variables that are cut into patches, with their fill values."""
        for name, fill_value in self._fill_values.items():
            yield name, self._dataset.variables[name], fill_value

    def _cut(self, layout: str, chunks: Any, shards: Any, label: str = "center") -> Any:
        from xpatches.datasets import patches as datasets  # zarr and dask are loaded for jobs only

        layout = as_choice("layout", layout, ("grid", "samples"))
        label = as_choice("label", label, _LABELS)
        return datasets.PatchDataset(self._written(), layout, chunks, shards, label)

    def _written(self, called: Hashable = None) -> Any:
        """Give what jobs take of the image, which calls a DataArray by its own name by default."""
        from xpatches.datasets import write as datasets  # zarr and dask are loaded for jobs only

        array = None
        if isinstance(self.source, xr.DataArray):
            array = ARRAY, self.source.name if called is None else called
        return datasets.Source(self._dataset, self.grid, self._fill_values, array)

    def _one_each(
        self, method: str, indexers: Mapping[Any, Any] | None, kwargs: Mapping[str, Any]
    ) -> dict[Hashable, Any]:
        merged: dict[Hashable, Any] = merge(method, indexers, kwargs)
        if set(merged) != set(self.grid.dims):
            raise PatchError(
                f"{method} must name each of the dims {self.grid.dims} once, got "
                f"{shown((*merged,))}"
            )
        return merged

    def _coords(self, label: str) -> xr.Coordinates:
        """Give all patches their coords."""
        return labels.patch_coords(self._dataset.coords, self.grid, label, self._lines)

    def _mapped(
        self,
        func: Callable[..., Any],
        outlines: Mapping[Hashable, outputs.OutputPlan],
        factory: bool,
        **how: Any,
    ) -> dict[Hashable, mapping.Mapped]:
        options, every = mapping.MapOptions(Function(func, factory), **how), {}
        if options.labelled:
            labels.check_names(self._dataset, [SAMPLE_DIM])
        for name, outline in outlines.items():
            shown = self.source.name if isinstance(self.source, xr.DataArray) else name
            given = (shown, outline, self._dataset.coords, self._fill_values[name], options)
            every[name] = mapping.as_mapped(*given)
        return every

    def _ignores(self, name: Hashable, how: object, ignore_padding: bool | None) -> bool:
        """Tell whether padding of a variable is no sample of a reduction."""
        if ignore_padding is None:
            return not callable(how) and self._fill_reasons[name] in NODATA
        return ignore_padding

    def _as_output(self, output: object) -> dict[str, Any]:
        """Normalise the argument `output` of `map`."""
        words = outputs.as_output(output)
        if "name" in words and isinstance(self.source, xr.Dataset):
            raise PatchError(
                f"output name is for a DataArray, got {shown(words['name'])} for a Dataset, whose "
                "variables keep their names; rename them afterwards"
            )
        return words

    def _outlines(
        self, output: object, batch_size: object, reduce: object
    ) -> dict[Hashable, outputs.OutputPlan]:
        """Normalise the arguments `output`, `batch_size` and `reduce` of `map`, by variable."""
        batch_size, (how, _) = as_integer("batch_size", batch_size, 1), as_reduce(reduce)
        given = (self._dataset.coords, self._as_output(output), batch_size, how)
        return {
            name: outputs.as_output_plan(variable, self.grid.restrict(variable.dims), *given)
            for name, variable, _ in self._extracted()
        }

    def _made(
        self,
        every: Mapping[Hashable, mapping.Mapped],
        data: Mapping[Hashable, Any],
        coords: xr.Coordinates,
    ) -> T:
        """Label what was made of every variable."""
        made = {
            name: xr.Variable(of.dims, data[name], of.attrs, kept_encoding(of.variable))
            for name, of in every.items()
        }
        result = self._wrap(made, coords)
        (called, *_) = (of.answer.name for of in every.values())
        if called is not None:
            result.name = called
        return result

    def _joined_dims(self) -> dict[Hashable, int]:
        """Dims that flattening joins, with their lengths; the same for every variable."""
        joined = {
            tuple(labels.joined_dims(variable, self.grid).items())
            for _, variable, _ in self._extracted()
        }
        dims = dict(joined.pop())
        kept = self._dataset.data_vars.keys() - self._fill_values.keys()
        shared = [name for name in kept if not dims.keys().isdisjoint(self._dataset[name].dims)]
        if joined or shared:
            raise PatchError(
                f"flatten='patch' joins the dims {tuple(dims)}, and the Dataset has variables "
                "without all of them or that are no patches; flatten each variable by itself"
            )
        labels.check_names(self._dataset, [labels.FLAT_DIM])
        return dims

    def _wrap(self, made: Mapping[Hashable, xr.Variable], coords: xr.Coordinates) -> T:
        """Join what was made of variables to the untouched ones, and give what the source is."""
        every = {**self._dataset.data_vars.variables, **made}
        coords = labels.chunk_alike(coords, made.values())
        return self._as_source(xr.Dataset(every, coords, self.source.attrs))

    def _as_source(self, dataset: xr.Dataset) -> T:
        """Give what the source is: a Dataset, or the array that it stands for."""
        if isinstance(self.source, xr.Dataset):
            return dataset
        array = dataset[ARRAY]
        array.name = self.source.name
        return array


_LABELS = ("center", "origin")
"""What of a patch may label it."""


def _how(engine: object, max_bytes: object) -> dict[str, Any]:
    engine = as_choice("engine", engine, ("auto", "map_overlap", "region"))
    return {"engine": engine, "max_bytes": as_budget(max_bytes)}


def _stored(chunks: object, shards: object, encoding: object = None) -> tuple[Any, Any, Any]:
    """Normalise how a result is stored."""
    if encoding is not None:
        encoding = as_mapping("encoding", encoding, "from variable to a mapping")
        for name, of in encoding.items():
            encoding[name] = as_mapping(f"encoding of {shown(name)}", of, "from word to value")
    shards = False if shards is False else as_lengths("shards", shards)
    return as_lengths("chunks", chunks), shards, encoding


def _job(
    progress: object, retries: object, **flags: object
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Give what makes what is told of the progress of a job, and its other options."""
    return partial(_report, as_flag("progress", progress)), {
        "retries": as_integer("retries", retries, 0),
        **{name: as_flag(name, flag) for name, flag in flags.items()},
    }


def _report(progress: bool) -> Any:
    from xpatches.jobs.job import Report  # zarr and dask are loaded for jobs only
    from xpatches.jobs.progress import Progress

    return Progress() if progress else Report()
