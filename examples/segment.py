"""Map a small model over NASA's Blue Marble: where is water? And the seams that there would be.

Run ``python examples/segment.py [FOLDER]``; needs ``pip install "xpatches[examples]"``. The folder
(by default ``segment``) receives the image and the map of water as zarr stores and a picture.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from quickstart import make_image

import xpatches  # noqa: F401  registers .patches

HERE = {"lat": slice(47, 29), "lon": slice(-6, 38)}
"""Part of the world that is drawn."""


def water(batch: Any) -> Any:
    """Give the probability of water for every pixel of some patches.

    This is as small as a network can be, and has two of their habits: it surrounds a patch with
    zeros before it looks at the neighbours of a pixel, and it compares with the mean of the patch.
    What it says of a pixel depends on the patch, most of all near its edges.

    Parameters
    ----------
    batch
        Patches, uint8: (patch, lat, lon, band), the bands red, green and blue.

    Returns
    -------
    numpy.ndarray
        float32: (patch, lat, lon).
    """
    red, green, blue = np.moveaxis(batch.astype("float32"), -1, 0)
    warmth = np.log((red + green) / 2 + 8) - np.log(blue + 8)  # water is blue
    for axis in (1, 2):
        pads = [(3, 3) if axis == along else (0, 0) for along in range(3)]
        around = np.lib.stride_tricks.sliding_window_view(np.pad(warmth, pads), 7, axis)
        warmth = around.mean(axis=-1)
    warmth -= 0.3 * warmth.mean(axis=(1, 2), keepdims=True)
    return 1 / (1 + np.exp(8 * (warmth + 0.3)))


def main(folder: Path) -> None:
    """Map the model, and draw what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    make_image(folder / "blue_marble.zarr")
    image = xr.open_dataarray(
        folder / "blue_marble.zarr", engine="zarr", chunks=None, consolidated=False
    )

    # 1. The naive way: patches side by side, and what the model says of them, side by side.
    output = {"dims": ("lat", "lon"), "dtype": "float32"}
    tiles = image.patches(lat=256, lon=256, padding="same")
    naive = tiles.map(water, taper="flat", output=output)

    # 2. Patches that overlap by half, less weight near their edges; written block by block.
    p = image.patches(lat=256, lon=256, stride=128, padding="same")
    plan = p.plan("map_to_zarr", output=output)
    print(f"{plan['patches']} patches, each run {plan['runs_per_patch']:.2f} times on average")
    seamless = p.map_to_zarr(folder / "water.zarr", water, output=output, overwrite=True)

    # 3. The result is labelled as the image is: pixels count by their area.
    assert seamless.lat.equals(image.lat)
    assert seamless.lon.equals(image.lon)
    share = float((seamless > 0.5).weighted(np.cos(np.deg2rad(seamless.lat))).mean())
    print(f"{share:.0%} of the Earth is blue.")

    draw(image, {"side by side": naive, "stitched": seamless}, folder / "segment.png")
    print(f"Picture: {folder / 'segment.png'}")


def draw(image: xr.DataArray, ways: dict[str, xr.DataArray], path: Path) -> None:
    """Draw a part of the world, and what was made of it both ways."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 12), layout="constrained", sharex=True)
    lat, lon = (image[dim].sel({dim: of}) for dim, of in HERE.items())
    extent = (float(lon[0]), float(lon[-1]), float(lat[-1]), float(lat[0]))
    axes[0].imshow(image.sel(HERE), extent=extent)
    axes[0].set_title("NASA's Blue Marble")
    for below, (name, made) in zip(axes[1:], ways.items(), strict=True):
        shown = below.imshow(made.sel(HERE), extent=extent, vmin=0, vmax=1, cmap="viridis")
        below.set_title(f"Probability of water, patches {name}")
    figure.colorbar(shown, ax=axes[1:], shrink=0.6)
    for of in axes:
        of.set_ylabel("latitude (°)")
    axes[-1].set_xlabel("longitude (°)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "segment"))
