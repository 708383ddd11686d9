"""Readers of files and the damage that they must stand: a new reader is covered by its entry in ``READERS``."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tests.data import published
from tightframe import runs
from tightframe.data import CIFAR10, CIFAR100, STL10, FeatureFile, ImageFolder, INaturalist, write_features
from tightframe.errors import DataFileError, TightframeError
from tightframe.files import read_checkpoint, read_json, read_tensors, read_yaml, write_json, write_tensors, write_yaml
from tightframe.hierarchy import Tree
from tightframe.records import Records

FLIPS = 200
LONGEST = 1000  # characters of a message, beside the path


@dataclass(frozen=True)
class Reader:
    """A file and what reads it.

    Args:
        name: Name in the tables.
        write: Function that writes valid files into an empty folder and returns the one to damage.
        read: Function of that path; it returns arrays, tuples, or anything with a telling ``repr``.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]


class Planted:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def planted(trace: Path) -> dict[str, bytes]:
    """Return files that make the folder ``trace`` where a reader runs what they say."""
    torch_file, arrays = io.BytesIO(), io.BytesIO()
    torch.save({"features": Planted(trace)}, torch_file)
    objects = np.array([Planted(trace)], dtype=object)
    np.savez(arrays, features=objects, labels=objects)
    return {
        "torch file": torch_file.getvalue(),
        "arrays of objects": arrays.getvalue(),
        "pickle": pickle.dumps({b"data": Planted(trace)}, 2),
        "YAML tag": f"!!python/object/apply:os.mkdir ['{trace}']".encode(),
    }


def damaged(content: bytes, trace: Path) -> dict[str, bytes]:
    """Return what may be in the place of a file; a missing file and a directory come on top."""
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "garbage": random.Random(0).randbytes(1000),
        "another type": planted(trace)["torch file"],
        "brackets": b"[" * 20_000,
    }


def flipped(content: bytes, seed: str) -> Iterator[bytes]:
    """Yield the content with one bit flipped, at ``FLIPS`` places."""
    rng = random.Random(seed)
    for _ in range(FLIPS):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def put(path: Path, content: bytes | None) -> None:
    """Put a content in the place of a file; None is a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def plain(content: Any, values: bool = True) -> Any:
    """Return content for a comparison, or its shapes and types alone."""
    if isinstance(content, torch.Tensor | np.ndarray):
        array = np.asarray(content)
        return array.shape, str(array.dtype), array.tobytes() if values else None
    if isinstance(content, tuple):
        return tuple(plain(part, values) for part in content)
    return repr(content) if values else type(content).__name__


def outcome(reader: Reader, path: Path) -> tuple[str, Any]:
    """Return ``"read"`` and the content, ``"refused"`` and the message, or ``"fault"`` and what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "read", reader.read(path)
    except TightframeError as error:
        said = str(error).replace(str(path.parent), "")
        right = said.isprintable() and len(said) <= LONGEST
        return ("refused", said) if right else ("fault", f"a message of {len(said)} characters: {said[:200]!r}")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of extensions written in Rust are no Exceptions
        return "fault", error


# --- features ---

FEATURES = torch.arange(36.0).reshape(12, 3) / 7
LABELS = torch.arange(12) % 3


def features(suffix: str) -> Callable[[Path], Path]:
    return lambda folder: write_features(folder / f"layer{suffix}", FEATURES, LABELS)


def compressed(folder: Path) -> Path:
    arrays = {"features": np.asfortranarray(FEATURES.numpy()), "labels": LABELS.numpy()}
    np.savez_compressed(folder / "layer.npz", **arrays)
    return folder / "layer.npz"


def unchecked(folder: Path) -> Path:
    pq.write_table(pa.table({"features": FEATURES.tolist(), "labels": LABELS.numpy()}), folder / "layer.parquet")
    return folder / "layer.parquet"


def read_features(path: Path) -> Any:
    dataset = FeatureFile(path).dataset()
    rows, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(rows), torch.stack(labels)


def tensors(folder: Path) -> Path:
    write_tensors(folder / "a.safetensors", {"weight": FEATURES, "bias": LABELS}, {"kind": "test"})
    return folder / "a.safetensors"


def read_all_tensors(path: Path) -> Any:
    found, metadata = read_tensors(path)
    return (*(found[name] for name in sorted(found)), metadata)


# --- images ---


def whole(data: Any) -> Any:
    return (*data.train.tensors, *data.test.tensors, data.class_names, data.paths)


def cifar10(folder: Path) -> Path:
    published.cifar10(folder, 2)
    return folder / "data_batch_1"


def cifar100(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for part in ("train", "test"):
            content = {b"filenames": published.names("a.png", 2), b"data": published.pixels(2, 3072)}
            published.dump(folder / part, content | {b"fine_labels": [0, 1], b"coarse_labels": [0, 0]})
        names = {b"fine_label_names": published.names("fine", 2), b"coarse_label_names": published.names("coarse", 1)}
        published.dump(folder / "meta", names)
        return folder / name

    return write


def stl10(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        published.stl10(folder, 2, 1)
        return folder / name

    return write


def image(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for part in ("train", "test"):
            (folder / part / "a").mkdir(parents=True)
            Image.fromarray(published.pixels(1, 9, 9, 3)[0]).save(folder / part / "a" / name)
        return folder / "train" / "a" / name

    return write


def annotations(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for part in ("train", "val"):
            content = {
                "images": [{"id": i, "file_name": f"{i}.png"} for i in (4, 3)],
                "annotations": [{"id": i, "image_id": i, "category_id": i - 3} for i in (3, 4)],
                "categories": [{"id": i, "name": f"{i}", "genus": "Rana"} for i in (0, 1)],
            }
            (folder / f"{part}2019.json").write_text(json.dumps(content))
        (folder / "categories.json").write_text(json.dumps(content["categories"]))
        return folder / name

    return write


def read_annotations(path: Path) -> Any:
    data = INaturalist(path.parent, 8).load()
    return data.train.labels, data.test.labels, data.class_names, data.paths


# --- hierarchies, and text that the program writes ---


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


def read_tree(path: Path) -> Any:
    tree = Tree.read(path)
    tree.distances()
    return str(tree)


def configuration(folder: Path) -> Path:
    write_yaml(folder / "a.yaml", {"010": [1, 2.5, None, "no"], "b": {"c": "d", "e": [{"f": True}]}})
    return folder / "a.yaml"


def results(folder: Path) -> Path:
    write_json(folder / "a.json", {"a": [1, 2.5, None, "no"], "b": {"c": "d"}})
    return folder / "a.json"


# --- a directory of runs ---


def rows() -> Records:
    records = Records()
    for epoch in range(5):
        records.add("accuracy", 0.1 * epoch, epoch=epoch, split="test", layer="features", tap="input")
    return records


def checkpoint(folder: Path) -> Path:
    content = {"state_dict": {"weight": FEATURES}, "callbacks": {"lock": {"locked": ["weight"]}}, "epoch": 1}
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def shared(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tree = Tree.from_edges([("root", "E"), ("root", "C"), ("E", "A"), ("E", "B")])
        runs.open_directory(folder, {"methods": {"a": {}}}, class_names=tree.class_names, trees={"": tree}, sources={})
        training = runs.write(rows(), folder, run="a")
        runs.Confusion(4, torch.tensor([[0, 1], [1, 1]]), torch.tensor([2, 3])).save(training, "test")
        return next(folder.glob(f"**/{name}"))

    return write


def read_directory(path: Path) -> Any:
    """Return the contents of a directory; what it names as damaged counts as refused."""
    folder = next(parent for parent in path.parents if (parent / "a").is_dir())
    found = runs.RunDirectory.read(folder)
    training = found.trainings[0]
    if named := [*found.damaged, *(each.problem for each in found.problems)]:
        raise DataFileError("; ".join(named))
    facts = (found.class_names, str(found.tree), found.versions, training.timing, str(list(training.records)))
    return *facts, training.load_confusion("test")


READERS = [
    *(Reader(f"features{suffix}", features(suffix), read_features) for suffix in (".npz", ".safetensors", ".parquet")),
    Reader("features, compressed", compressed, read_features),
    Reader("features, parquet of others", unchecked, read_features),
    Reader("tensors", tensors, read_all_tensors),
    Reader("CIFAR-10", cifar10, lambda path: whole(CIFAR10(path.parent).load())),
    *(
        Reader(f"CIFAR-100 {n}", cifar100(n), lambda path: whole(CIFAR100(path.parent).load()))
        for n in ("train", "meta")
    ),
    *(
        Reader(f"STL-10 {name}", stl10(name), lambda path: whole(STL10(path.parent).load()))
        for name in ("train_X.bin", "train_y.bin", "class_names.txt")
    ),
    *(
        Reader(f"image {name}", image(name), lambda path: ImageFolder(path.parents[2], 8).load().train[0])
        for name in ("0.png", "0.jpg", "0.tif", "0.webp", "0.bmp", "0.ppm")
    ),
    *(Reader(f"iNaturalist {n}", annotations(n), read_annotations) for n in ("train2019.json", "categories.json")),
    Reader("hierarchy .tsv", text("tree.tsv", "# edges\nroot\tE\nroot\tF\nE\tA\nE\tB\nF\tC\nF\tD\n"), read_tree),
    Reader("hierarchy .json", text("tree.json", '{"E": ["A", "B"], "F": {"C": null, "D": []}}'), read_tree),
    Reader("hierarchy .yaml", text("tree.yaml", "E: &e [010, 1e5]\nF:\n  - 'no'\n  - D: *e\n"), read_tree),
    Reader("YAML", configuration, read_yaml),
    Reader("JSON", results, read_json),
    Reader("checkpoint", checkpoint, read_checkpoint),
    Reader(
        "confusion",
        lambda folder: runs.Confusion(4, LABELS.view(6, 2)[:3], LABELS[:3] + 1).save(folder, "test"),
        runs.Confusion.load,
    ),
    Reader(
        "snapshot",
        lambda folder: runs.Snapshot(3, FEATURES, FEATURES + 1, FEATURES, LABELS).save(folder),
        runs.Snapshot.load,
    ),
    *(
        Reader(f"runs: {name}", shared(name), read_directory)
        for name in ("config.yaml", "hierarchy.json", "classes.json", "records.jsonl", "timing.json")
    ),
]
