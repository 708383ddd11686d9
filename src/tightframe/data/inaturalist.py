"""INaturalist: species, their images and their taxonomy, from annotation files in the layout of COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch

from tightframe.data.base import ClassificationData, HoldOutSource, StrPath, differing
from tightframe.data.images import ImageFiles
from tightframe.errors import DataFileError, check_positive, is_name, require_extra, shown
from tightframe.files import reading

# Above the species, from coarse to fine.
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
CATEGORIES_FILE = "categories.json"

Entry = dict[str, Any]
Paths = tuple[tuple[str, ...], ...]


@final
class INaturalist(HoldOutSource):
    """iNaturalist (Van Horn et al., CVPR 2018) of 2019 or 2021: species with their taxonomy, images decoded when read.

    Class k is the k-th category of the annotation file of the training part, by id. Its ``paths`` go down the ranks
    (kingdom, phylum, class, order, family, genus) that the file names, to the species; a file without ranks gives none.
    Images are cut to a square as by :class:`ImageFolder`, and the parts are datasets as there.

    Args:
        root: the folder that the files are in, and from which annotations name the images.
        resize: height and width of the images, in pixels.
        train: annotation file of the training part: ``images``, ``annotations`` and ``categories``.
        test: the same of the test part. The published test images have no labels; the validation part stands in.
        categories: file with the names and ranks of the categories, which the annotations of 2019 keep back; None is
            ``categories.json`` where there is one, else what ``train`` says.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: Seed of that split; fixed by default so that all runs of a comparison share it.

    Raises:
        ArgumentError: if an argument lies outside its range, or (from :meth:`load`) a part would miss a class.
        DataFileError: from :meth:`load`, if a file is missing, truncated or of another format, has an image without
            exactly one category, has other categories than ``train``, or names a rank of some categories alone; from
            reading a sample, if its file is missing or no image.
        MissingExtraError: from :meth:`load`, if Pillow is not installed.

    Example:
        >>> source = INaturalist("inat2021", resize=224, train="train_mini.json", test="val.json")
    """

    def __init__(
        self,
        root: StrPath,
        resize: int,
        train: str = "train2019.json",
        test: str = "val2019.json",
        categories: str | None = None,
        validation_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_positive("resize", resize)
        super().__init__(validation_fraction, seed)
        self.root = Path(root)
        self.resize = resize
        self.train = train
        self.test = test
        self.categories = categories

    def _read(self) -> ClassificationData:
        require_extra("PIL.Image", "cli")
        train_file, test_file = (_AnnotationFile(self.root / name) for name in (self.train, self.test))
        ids = sorted(train_file.by_id("categories"))
        # The same id may mean different species in two releases.
        if found := differing(ids, list(test_file.by_id("categories"))):
            raise test_file.error(f"the categories must be those of {train_file.path.name}, but {found}")
        names, paths = self._taxonomy(ids, train_file)
        labels = {category: k for k, category in enumerate(ids)}
        train, test = (self._part(file, labels) for file in (train_file, test_file))
        return ClassificationData.of(train, None, test, train.labels, names, paths)

    def _part(self, file: _AnnotationFile, labels: dict[int, int]) -> ImageFiles:
        """Return the samples of a file, in the order of its images."""
        images = file.by_id("images", file_name=str)
        found: dict[int, int] = {}
        for annotation in file.entries("annotations", image_id=int, category_id=int):
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in images:
                raise file.error(f"an annotation is of image {image}, which is not among the images")
            if category not in labels:
                raise file.error(f"image {image} has category {category}, which is not among the categories")
            if image in found:
                raise file.error(f"image {image} has two annotations, but must have one")
            found[image] = labels[category]
        bare = [image for image in images if image not in found]
        if bare:
            raise file.error(f"image {bare[0]} has no annotation ({len(bare)} of {len(images)} images have none)")
        paths = [str(self.root / entry["file_name"]) for entry in images.values()]
        return ImageFiles(paths, torch.tensor([found[image] for image in images], device="cpu"), self.resize)

    def _taxonomy(self, ids: list[int], train: _AnnotationFile) -> tuple[tuple[str, ...], Paths | None]:
        """Return names and paths of the categories, from the file that has them."""
        file = train
        if self.categories is not None or (self.root / CATEGORIES_FILE).exists():
            file = _AnnotationFile(self.root / (self.categories or CATEGORIES_FILE))
        named = file.by_id("categories", name=str)
        missing = [category for category in ids if category not in named]
        if missing:
            raise file.error(f"there is no category {missing[0]}, which {train.path.name} has")
        chosen = [named[category] for category in ids]
        return tuple(entry["name"] for entry in chosen), _paths(chosen, file)


def _paths(categories: list[Entry], file: _AnnotationFile) -> Paths | None:
    """Return the way down the ranks to each category, or None if no rank is given."""
    ranks = [rank for rank in RANKS if any(category.get(rank) for category in categories)]
    if not ranks:
        return None
    first: dict[tuple[str, ...], int] = {}
    for category in categories:
        for rank in ranks:
            if not is_name(category.get(rank)):
                known = f"category {category['id']} ({shown(category['name'])})"
                raise file.error(
                    f"{known} must have a name for its {rank}, as others have, got {shown(category.get(rank))}"
                )
        path = (*(category[rank] for rank in ranks), category["name"])
        if first.setdefault(path, category["id"]) != category["id"]:
            raise file.error(f"categories {first[path]} and {category['id']} are both {shown(' > '.join(path))}")
    return tuple(first)


class _AnnotationFile:
    """A JSON object of lists of entries, or the list of categories alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        missing = "root must be the folder with the annotation files, and train, test and categories their names"
        with reading(path, "is no JSON or is truncated", "unpack it again", missing):
            content = json.loads(path.read_bytes())
        self.content = {"categories": content} if isinstance(content, list) else content

    def error(self, seen: str) -> DataFileError:
        """Return what to raise about something in the file."""
        return DataFileError(f"{self.path}: {seen}; correct the file or get the published one again")

    def entries(self, section: str, **kinds: type) -> list[Entry]:
        """Return the entries of a section, each of which must have values of these types."""
        entries = self.content.get(section) if isinstance(self.content, dict) else None
        if not isinstance(entries, list) or not entries:
            held = shown(sorted(self.content)) if isinstance(self.content, dict) else type(self.content).__name__
            raise self.error(f"there must be a list of {section} with something in it, got {held}")
        for number, entry in enumerate(entries):
            # Not isinstance, which takes true for a number.
            if not isinstance(entry, dict) or any(
                type(entry.get(key)) is not kind or (kind is str and not is_name(entry[key]))
                for key, kind in kinds.items()
            ):
                wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
                raise self.error(f"entry {number} of {section} must have {wanted}, got {shown(entry)}")
        return entries

    def by_id(self, section: str, **kinds: type) -> dict[int, Entry]:
        """Return the entries of a section by their ids, in order."""
        found: dict[int, Entry] = {}
        for entry in self.entries(section, id=int, **kinds):
            if found.setdefault(entry["id"], entry) is not entry:
                raise self.error(f"id {entry['id']} comes twice among the {section}")
        return found
