"""The patches of a labelled image, `Patches`, and all that can be done with them."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np  # noqa: F401  for the examples
import xarray as xr  # noqa: F401  for the examples

from xpatches import verbs
from xpatches.images.image import T
from xpatches.jobs.options import JobOptions, as_options
from xpatches.mapping.output import Output
from xpatches.sequence import PatchSequence
from xpatches.stitching.tapers import Taper


class Patches(PatchSequence[T]):
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
            otherwise); ``{dim}_origin`` (int64) is the source index of each patch's first sample
            and may be negative; ``{dim}_patch`` (int64) are the offsets, so that the source index
            of every sample is their sum. Other coords, the attrs and the name pass through; the
            attr ``xpatches`` holds the geometry as JSON. Lazy, in chunks, if the image is a dask
            array or was opened without dask; NumPy in, NumPy out.

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
        return verbs.extract(
            self._image, flatten=flatten, label=label, engine=engine, max_bytes=max_bytes
        )

    def to_zarr(
        self, store: Any, *, layout: str = "grid", label: str = "center", **job: Unpack[JobOptions]
    ) -> T:
        """Write all patches to a zarr store, as a job that can be resumed.

        Parameters
        ----------
        store
            Where to: a path, a URL of fsspec or obstore, or a zarr store.
        layout
            ``"grid"``: dims as `extract` gives them. ``"samples"``: the patches along one dim
            ``sample``, in the order of iteration, then the patch dims, then all others, with each
            sample's labels and origins as coords along it.
        label
            As for `extract`.
        **job
            Chunks, shards, encoding, checksums, resume, overwrite, retries, lock, fsync, progress:
            see `xpatches.jobs.options.JobOptions`. By default a chunk is one patch, or patches of 1
            MiB in all where they are smaller, and a shard has 32 MiB. Dims that are not cut, such
            as bands, are whole in a chunk where it has 4 MiB at most then.

        Returns
        -------
        DataArray or Dataset
            What was written, opened lazily, as `open_patches` does.

        Raises
        ------
        PatchError, JobError
            If an argument does not fit; and what `JobOptions` says.

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
        options = as_options(Patches.to_zarr, job)
        return verbs.to_zarr(self._image, store=store, layout=layout, label=label, **options)

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
        PatchError, MapError
            As `extract`; or if `how` is unknown or does not fit the dtype, `min_count` or
            `ignore_padding`; or if it is a function that fails.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(36).reshape(6, 6), dims=("y", "x"))
        >>> image.patches(y=2, x=2, stride=2, rate=3, padding="same").reduce("max").values
        array([[14, 16, 15],
               [26, 28, 27],
               [20, 22, 21]])
        """
        return verbs.reduce(
            self._image, how=how, skipna=skipna, min_count=min_count,
            ignore_padding=ignore_padding, label=label, engine=engine, max_bytes=max_bytes,
        )  # fmt: skip

    def reduce_to_zarr(
        self,
        store: Any,
        how: Callable[..., Any] | str,
        *,
        skipna: bool | None = None,
        min_count: int | None = None,
        ignore_padding: bool | None = None,
        label: str = "center",
        max_bytes: int | str | None = None,
        **job: Unpack[JobOptions],
    ) -> T:
        """Reduce every patch to one sample, and write them to a zarr store, as a job.

        Parameters
        ----------
        store, **job
            As for `to_zarr`. By default a chunk has 1 MiB, and a shard up to 16 MiB, less where it
            would take more than four budgets of samples; blocks are shards. A function is known by
            its name.
        how, skipna, min_count, ignore_padding, label
            As for `reduce`.
        max_bytes
            Budget of a task: for the samples that it reads at a time, what it makes of them, and
            its block of the result; dask's ``array.chunk-size`` by default.

        Returns
        -------
        DataArray or Dataset
            What `reduce` gives, to the bit, as it was written, opened lazily.

        Raises
        ------
        PatchError, MapError, JobError
            As `reduce` and `to_zarr`.

        Examples
        --------
        >>> from zarr.storage import MemoryStore
        >>> image = xr.DataArray(np.arange(36).reshape(6, 6), dims=("y", "x"))
        >>> p = image.patches(y=2, x=2, stride=2)
        >>> p.reduce_to_zarr(MemoryStore(), "mean", progress=False).identical(p.reduce("mean"))
        True
        """
        return verbs.reduce_to_zarr(
            self._image, store=store, how=how, skipna=skipna, min_count=min_count,
            ignore_padding=ignore_padding, label=label, max_bytes=max_bytes,
            **as_options(Patches.reduce_to_zarr, job),
        )  # fmt: skip

    def map(
        self,
        func: Callable[..., Any],
        *,
        batch_size: int = 32,
        taper: Taper | None = None,
        reduce: str | None = None,
        output: Output | Mapping[str, Any] | None = None,
        labelled: bool = False,
        factory: bool = False,
        fill_value: Any = None,
        skipna: bool | None = None,
        max_bytes: int | str | None = None,
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
            What `func` returns for a patch, where that differs from the patch; some of ``dims``,
            ``sizes``, ``scale``, ``dtype``, ``name``, ``attrs`` and ``nodata``: see
            `xpatches.mapping.output.Output`.
        labelled
            Call `func` with a DataArray instead: the patches along ``sample``, with their labels
            and origins as coords along it, and ``{dim}_patch`` for the dims that are cut.
        factory
            `func` takes no arguments and gives the function. It is called once in this process, or
            once on every worker of a dask cluster that runs blocks, for all variables; what it
            gives stays there until another is sent.
        fill_value, skipna
            The value of samples that no patch holds, and whether missing samples, NaN and NaT, of
            what `func` returns do not count where other patches have some; see `xpatches.stitch`.
        max_bytes
            Budget of a task: for the samples that it reads, the rows of patches that it holds, and
            its block of the result. A batch and what the model takes for itself are not counted.

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
            lazy result would take 10 million tasks or more.
        MapError
            When the result is computed: if `func` fails, with the origin and the labels of the
            patch; or if it returns something else than `output` says.

        Examples
        --------
        >>> image = xr.DataArray(np.arange(24.0).reshape(1, 4, 6), dims=("band", "y", "x"))
        >>> def brighter(batch):
        ...     return np.concatenate([batch, batch + 1], axis=1)
        >>> p = image.patches(y=2, x=2, stride=1)
        >>> made = p.map(brighter, output={"dims": ("of", "y", "x"), "sizes": {"of": 2}})
        >>> made.sizes, bool((made[1] == image[0] + 1).all())
        (Frozen({'of': 2, 'y': 4, 'x': 6}), True)
        """
        return verbs.map_patches(
            self._image, func=func, batch_size=batch_size, taper=taper, reduce=reduce,
            output=output, labelled=labelled, factory=factory, fill_value=fill_value,
            skipna=skipna, max_bytes=max_bytes,
        )  # fmt: skip

    def map_to_zarr(
        self,
        store: Any,
        func: Callable[..., Any],
        *,
        batch_size: int = 32,
        taper: Taper | None = None,
        reduce: str | None = None,
        output: Output | Mapping[str, Any] | None = None,
        labelled: bool = False,
        factory: bool = False,
        fill_value: Any = None,
        skipna: bool | None = None,
        max_bytes: int | str | None = None,
        materialize: Any = None,
        **job: Unpack[JobOptions],
    ) -> T:
        """Run a model on all patches, and write the image it makes to a zarr store, as a job.

        Parameters
        ----------
        store, **job
            As for `to_zarr`. By default a chunk has 1 MiB, and a shard up to 32 MiB; blocks are
            whole shards. `func` is known by its name: a job that is resumed may have another
            function of that name, and another `batch_size`.
        func, batch_size, taper, reduce, output, labelled, factory, fill_value, skipna, max_bytes
            As for `map`.
        materialize
            Run the model on every patch once, and write what it returns to this zarr store, as a
            job; the result is stitched from there, lazily if `store` is None. For slow models.

        Returns
        -------
        DataArray or Dataset
            As `map`; what was written is opened lazily.

        Raises
        ------
        PatchError, JobError
            As `map` and `to_zarr`; a job whose `func` fails alike in block after block stops.
        """
        return verbs.map_to_zarr(
            self._image, store=store, func=func, batch_size=batch_size, taper=taper, reduce=reduce,
            output=output, labelled=labelled, factory=factory, fill_value=fill_value,
            skipna=skipna, max_bytes=max_bytes, materialize=materialize,
            **as_options(Patches.map_to_zarr, job),
        )  # fmt: skip

    def plan(self, verb: str = "extract", **arguments: Any) -> dict[Any, Any]:
        """Say how a verb will work, as plain data; nothing is read, computed or written.

        Parameters
        ----------
        verb
            ``"extract"``, ``"reduce"`` or ``"map"``, or the same as a job: ``"to_zarr"``,
            ``"reduce_to_zarr"`` or ``"map_to_zarr"``.
        **arguments
            Those of that method, of which most may be left out.

        Returns
        -------
        dict
            For a Dataset, one such dict per variable that is cut. The same word means the same:

            - ``patches``, ``dims``, ``bytes``: number of patches, lengths of the result, its bytes;
            - ``chunks``, ``shards``: its chunks, of a lazy result the lengths of all by dim;
            - ``blocks``: of a lazy result, regions of the source that it is computed from;
            - ``tasks``: of a job, its blocks; of a lazy result but a map, what is added to the dask
              graph of the image, before dask fuses some (1 for an image in memory);
            - ``bytes_per_task``: projected peak of the largest task: what it is given, makes on
              the way and returns; with one batch, but without what a model takes for itself;
            - ``read_amplification``: how often a stored sample is read, on average, of a job
              estimated from 100 blocks; not of maps, but
            - ``runs``, ``runs_per_patch``: number of patches that the model is run on, and how
              often on each, since those that reach into several blocks are run for each of them;
            - ``engine``, ``max_bytes``, ``image_tasks``, ``halo``, ``regions``: of lazy results but
              maps, ``"map_overlap"``, ``"region"`` or, in memory, ``"numpy"``; the budget; tasks of
              the image's graph, needed or not; and by dim the samples ``[before, after]`` that
              blocks share, and ``[start, stop)`` of every block.

        Raises
        ------
        PatchError
            As the method, but any number of tasks is told of, if fewer than 10 million blocks lie
            along every dim; or if one of the arguments is not the method's.

        Examples
        --------
        >>> image = xr.DataArray(np.zeros((1024, 1024), "uint8"), dims=("y", "x"))
        >>> p = image.chunk(y=512, x=1024).patches(y=64, x=64, stride=32)
        >>> p.plan()["halo"]
        {'y': [0, 32], 'x': [0, 0]}
        >>> plan = p.plan("to_zarr", layout="samples")
        >>> plan["dims"], plan["chunks"], plan["tasks"]
        ({'sample': 961, 'y_patch': 64, 'x_patch': 64}, (256, 64, 64), 1)
        >>> plan = p.plan("map_to_zarr", output={"dtype": "float32"})
        >>> plan["tasks"], plan["patches"], plan["runs"]
        (1, 961, 961)
        """
        return verbs.plan(self._image, Patches, verb, arguments)
