"""Ask TensorFlow for its answers: `make FILE` draws new cases, `check FILE` asks again.

Needs tensorflow, in an environment of its own. A file holds, per case N, the image ``xN``, the
answer ``yN`` (absent where TensorFlow raised) and for gradients the incoming gradient ``gN``;
``meta`` is UTF-8 JSON with the arguments of every case and the version of TensorFlow.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

DTYPES = {
    "extract": "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 "
    "complex64 complex128".split(),
    "volume": "uint8 uint16 int8 int16 int32 float16 float32 float64".split(),
    "gradient": ["float32"],
}


def answer(case: dict[str, Any], image: Any, gradient: Any = None) -> Any:
    """Run one case through TensorFlow."""
    sizes, strides, rates = ([1, *case[name], 1] for name in ("size", "stride", "rate"))
    if case["op"] == "volume":
        return tf.extract_volume_patches(image, sizes, strides, case["padding"]).numpy()
    if case["op"] == "extract":
        return tf.image.extract_patches(image, sizes, strides, rates, case["padding"]).numpy()
    with tf.GradientTape() as tape:
        x = tf.constant(image)
        tape.watch(x)
        y = tf.image.extract_patches(x, sizes, strides, rates, case["padding"])
    return tape.gradient(y, x, output_gradients=tf.constant(gradient)).numpy()


def draw(rng: np.random.Generator, number: int) -> tuple[dict[str, Any], Arrays]:
    """Draw one case and its image; integer values, so that sums of float32 are exact."""
    op = str(rng.choice(["extract", "volume", "gradient"], p=[0.7, 0.1, 0.2]))
    ndim = 3 if op == "volume" else 2
    case: dict[str, Any] = {
        "op": op,
        "size": rng.integers(1, 6, ndim).tolist(),
        "stride": rng.integers(1, 6, ndim).tolist(),
        "rate": [1] * ndim if op == "volume" else rng.integers(1, 4, ndim).tolist(),
        "padding": str(rng.choice(["VALID", "SAME"])),
        "dtype": str(rng.choice(DTYPES[op])),
        "case": number,
    }
    shape = (rng.integers(1, 4), *rng.integers(1, 24 if ndim == 2 else 9, ndim), rng.integers(1, 6))
    arrays = {f"x{number}": rng.integers(0, 100, shape).astype(case["dtype"])}
    if op == "gradient":
        forward = answer({**case, "op": "extract"}, arrays[f"x{number}"])
        arrays[f"g{number}"] = rng.integers(-9, 10, forward.shape).astype("float32")
    return case, arrays


def make(path: Path, count: int, seed: int) -> None:
    """Write a file of new cases."""
    rng = np.random.default_rng(seed)
    cases: list[dict[str, Any]] = []
    arrays: Arrays = {}
    while len(cases) < count:
        number = len(cases)
        try:
            case, drawn = draw(rng, number)
        except tf.errors.InvalidArgumentError:
            continue  # a gradient of an extraction that has no answer
        try:
            drawn[f"y{number}"] = answer(case, drawn[f"x{number}"], drawn.get(f"g{number}"))
        except tf.errors.InvalidArgumentError as error:
            case["error"] = type(error).__name__
        cases.append(case)
        arrays.update(drawn)
    meta = json.dumps({"tensorflow": tf.__version__, "seed": seed, "cases": cases})
    arrays["meta"] = np.frombuffer(meta.encode(), np.uint8)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{len(cases)} cases written to {path}")


def check(path: Path) -> None:
    """Ask again for every answer of a file and compare the bits."""
    with np.load(path) as stored:
        cases = json.loads(stored["meta"].tobytes())["cases"]
        for case in cases:
            number = case["case"]
            gradient = stored[f"g{number}"] if case["op"] == "gradient" else None
            try:
                again = answer(case, stored[f"x{number}"], gradient)
            except tf.errors.InvalidArgumentError as error:
                assert case["error"] == type(error).__name__, case
                continue
            expected = stored[f"y{number}"]
            assert (again.shape, again.dtype) == (expected.shape, expected.dtype), case
            assert again.tobytes() == expected.tobytes(), case
    print(f"{len(cases)} answers are those of TensorFlow {tf.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("make", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=158)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.verb == "check":
        check(args.file)
    else:
        make(args.file, args.cases, args.seed)


if __name__ == "__main__":
    main()
