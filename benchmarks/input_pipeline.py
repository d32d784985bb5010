"""Images a second of the training input: this library beside torchvision, on the same JPEGs and cores, in turn.

python benchmarks/input_pipeline.py --rounds=7 --seconds=4

From encoded bytes in memory to uint8 batches of 128 at 224 pixels: decoded, a random window resized, half of them
mirrored, stacked; no normalisation in either. In each round every pipeline delivers batches for so many seconds, the
next starting where the last one stopped; medians are printed, and the median of the rounds' ratios to the best of
torchvision. On a machine that others share, only the ratios of images to each second of a core mean anything: the
scheduler gives each process a share of its own.

The JPEGs are windows of scikit-learn's two photographs with noise like a sensor's, in sizes as in ImageNet (most of
them 500 x 375), 4:2:0, of about 110 kB: what takes a decoder's time is the number of pixels and of bytes.
"""

import argparse
import dataclasses
import functools
import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from resnet_jax.data import pipeline, rows, transforms
from resnet_jax.data.augment import crops
from resnet_jax.data.images import jpeg, opencv, pillow
from resnet_jax.data.sources import base

BATCH, SIZE, EPOCH = 128, 224, 1_281_167
SHAPES = {(375, 500): 45, (333, 500): 20, (500, 375): 10, (500, 333): 5, (300, 400): 8, (240, 320): 6, (480, 640): 6}


def make_jpegs(number: int, seed: int = 0) -> list[bytes]:
    """JPEGs of ImageNet's sizes, in height, width and bytes."""
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    rng, shapes = np.random.default_rng(seed), list(SHAPES)
    share = np.array(list(SHAPES.values())) / sum(SHAPES.values())
    files = []
    for index in range(number):
        height, width = shapes[rng.choice(len(shapes), p=share)]
        photo = photos[index % len(photos)]
        scale = min(photo.width / width, photo.height / height) * rng.uniform(0.7, 1)
        left, top = (
            rng.uniform(0, side - scale * part) for side, part in zip(photo.size, (width, height), strict=True)
        )
        box = (left, top, left + scale * width, top + scale * height)
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box=box))
        noisy = np.clip(pixels + rng.normal(0, 6.5, (height, width, 1)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
        files.append(buffer.getvalue())
    return files


# The pipelines ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Files:
    """A data set as long as ImageNet that has few files."""

    files: list[bytes]

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.files[index % len(self.files)], "label": index % 1000}

    def origin(self, index: int) -> str:
        return f"file {index % len(self.files)}"


def ours(files: list[bytes], decoder: str, num_threads: int, num_workers: int) -> Generator[np.ndarray, None, None]:
    """Batches of this library."""
    dataset = base.Dataset("files", "train", Files(files), tuple(map(str, range(1000))), 3)
    transform = transforms.train_transform(SIZE, crop="resized", decoder=decoder)
    reading = {"num_threads": num_threads, "num_workers": num_workers}
    for batch in pipeline.train_batches(dataset, batch_size=BATCH, transform=transform, seed=0, **reading):
        yield batch["image"]


class TorchFiles(Dataset):
    """The same for PyTorch: by `decode_jpeg` to a tensor, or by Pillow."""

    def __init__(self, files: list[bytes], kind: str):
        self.files, self.kind = files, kind
        self.augment = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data = self.files[index % len(self.files)]
        if self.kind == "PIL":
            return v2.functional.pil_to_tensor(self.augment(Image.open(io.BytesIO(data)).convert("RGB"))), index % 1000
        # A bytearray, as PyTorch warns of bytes that cannot be written to.
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return self.augment(decode_jpeg(encoded, mode=ImageReadMode.RGB)), index % 1000


def theirs(files: list[bytes], kind: str, num_workers: int) -> Generator[np.ndarray, None, None]:
    """Batches of torchvision; one thread in each process, as PyTorch itself sets it in workers."""
    torch.set_num_threads(1)
    for pixels, _ in DataLoader(TorchFiles(files, kind), BATCH, shuffle=True, num_workers=num_workers, drop_last=True):
        yield pixels.numpy()


def decode_alone(files: list[bytes]) -> Generator[np.ndarray, None, None]:
    """OpenCV's decoding of all pixels, in one thread: no window, no batch."""
    for start in itertools.count(step=BATCH):
        for index in range(start, start + BATCH):
            data = files[index % len(files)]
            header = opencv.read_header(data, 3)
            assert header is not None
            opencv.decode(data, header, opencv.place((0, 0, header.height, header.width), 10_000), 3)
        yield np.empty((BATCH, SIZE, SIZE, 3), np.uint8)


def make_pipelines(files: list[bytes], cores: int) -> dict[str, Callable[[], Generator[np.ndarray, None, None]]]:
    """Name -> function that starts it. Torchvision's are those that a name with "torchvision" has."""
    table: dict[str, Callable[[], Generator[np.ndarray, None, None]]] = {}
    for decoder in pillow.DECODERS:
        table[f"ours, {decoder}, {cores} threads"] = functools.partial(ours, files, decoder, cores, 0)
    table[f"ours, opencv, {cores} workers"] = functools.partial(ours, files, "opencv", 0, cores)
    for kind in ("decode_jpeg", "PIL"):
        for workers in sorted({0, 1, cores}):
            name = f"torchvision, {kind}, {workers} worker{'s' * (workers != 1)}"
            table[name] = functools.partial(theirs, files, kind, workers)
    table["decoding alone, 1 thread"] = functools.partial(decode_alone, files)
    return table


# Measuring ----------------------------------------------------------------------------------------------


def core_seconds() -> float:
    """Time that this process and its living workers have computed for. Linux only."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        with open(f"/proc/{worker.pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def rates_of(start: Callable[[], Generator[np.ndarray, None, None]], seconds: float) -> tuple[float, float]:
    """Images a second, and for each second of a core, once the batches that were made ahead are used up."""
    batches = start()
    for _ in range(3):
        assert next(batches).dtype == np.uint8
    begin, computed, number = time.perf_counter(), core_seconds(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        assert next(batches).size == BATCH * SIZE * SIZE * 3
        number += BATCH
    computed = core_seconds() - computed
    batches.close()
    return number / elapsed, number / computed


def split_of_time(files: list[bytes], rounds: int) -> dict[str, float]:
    """Microseconds of a core for each image, by what they go to; the best of the rounds."""
    transform = transforms.train_transform(SIZE, crop="resized", decoder="opencv")
    dataset = base.Dataset("files", "train", Files(files), tuple(map(str, range(1000))), 3)
    whole = pipeline.train_batches(dataset, batch_size=BATCH, transform=transform, seed=0, num_threads=0)
    best: dict[str, float] = {}
    for round_ in range(rounds):
        marks = dict.fromkeys(("header, window", "damage, cutting", "decoding", "resizing, mirroring"), 0.0)
        for start in range(0, BATCH, rows.GROUP):
            begin, chosen = time.thread_time(), []
            for index in range(start, start + rows.GROUP):
                rng = np.random.default_rng((round_, index))
                header = opencv.read_header(files[index % len(files)], 3)
                assert header is not None, "the files are plain JPEGs"
                chosen.append((index, rng, header, crops.sample_window(header.height, header.width, rng)))
            marks["header, window"] += time.thread_time() - begin
            for index, rng, header, window in chosen:
                data, begin = files[index % len(files)], time.thread_time()
                jpeg.cut(data, header, window[0] + window[2])
                cut = time.thread_time()
                pixels = opencv.decode(data, header, opencv.place(window, SIZE), 3)
                decoded = time.thread_time()
                transform.finish(pixels, rng)
                marks["damage, cutting"] += cut - begin
                marks["decoding"] += decoded - cut - (cut - begin)
                marks["resizing, mirroring"] += time.thread_time() - decoded
        begin = time.thread_time()
        next(whole)
        marks["in all, with batching"] = time.thread_time() - begin
        best = {name: min(best.get(name, np.inf), 1e6 * spent / BATCH) for name, spent in marks.items()}
    best["batching, Grain"] = 2 * best["in all, with batching"] - sum(best.values())
    return best


def print_rates(rates: dict[str, np.ndarray]) -> None:
    """The table; each rate beside its ratio to the best of torchvision. `rates`: [rounds, 2]."""
    rivals = {name: np.median(values, axis=0) for name, values in rates.items() if "torchvision" in name}
    print(f"{'':<36}{'images/s':>20}{'ratio':>7}{'images/core-second':>24}{'ratio':>7}")
    for name, values in rates.items():
        line = f"{name:<36}"
        for clock, room in enumerate((20, 24)):
            best = max(rivals, key=lambda rival: rivals[rival][clock], default=name)
            ratio = np.median(values[:, clock] / rates[best][:, clock])
            low, middle, high = np.percentile(values[:, clock], (0, 50, 100))
            line += f"{f'{middle:.0f} ({low:.0f} to {high:.0f})':>{room}}{ratio:>7.2f}"
        print(line)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4, help="of each pipeline in a round")
    parser.add_argument("--images", type=int, default=512, help="different files")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads, or worker processes")
    parser.add_argument("--only", default="", help="pipelines whose name contains this, and no split of the time")
    arguments = parser.parse_args()
    files = make_jpegs(arguments.images)
    print(f"{len(files)} JPEGs of {np.mean([len(data) for data in files]) / 1e3:.0f} kB; {arguments.cores} cores")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, OpenCV {opencv.version()}")
    pipelines = make_pipelines(files, arguments.cores)
    pipelines = {name: start for name, start in pipelines.items() if arguments.only in name}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for _ in range(arguments.rounds):
        for name, start in pipelines.items():
            rates[name].append(rates_of(start, arguments.seconds))
    print_rates({name: np.array(values) for name, values in rates.items()})
    if not arguments.only:
        print("microseconds of a core for each image, opencv:")
        for name, spent in split_of_time(files, 3 * arguments.rounds).items():
            print(f"  {name:<24}{spent:>6.0f}")


if __name__ == "__main__":
    main()
