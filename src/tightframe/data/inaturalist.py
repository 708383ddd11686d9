"""INaturalist: species, their images and their taxonomy, from annotation files in the layout of COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch

from tightframe._checks import ArgumentError, DataFileError, check_positive, require_extra
from tightframe.data.base import ClassificationData, DataSource, check_fraction, stratified_split
from tightframe.data.images import SHOWN, ImageFiles, StrPath

# Above the species, from coarse to fine.
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
CATEGORIES_FILE = "categories.json"
AGAIN = "get the published file again"

Entry = dict[str, Any]


@final
class INaturalist(DataSource):
    """iNaturalist (Van Horn et al., CVPR 2018) of 2019 or 2021: species with their taxonomy, images decoded when read.

    Class k is the k-th category of the annotation file of the training part, by id. Its ``paths`` go down the ranks
    (kingdom, phylum, class, order, family, genus) that the file names, to the species; a file without ranks gives none.
    Images are cut to a square as by :class:`ImageFolder`.

    Args:
        root: the folder that the files are in, and from which annotations name the images.
        resize: height and width of the images, in pixels.
        train: annotation file of the training part: ``images``, ``annotations`` and ``categories``.
        test: the same of the test part. The published test images have no labels; the validation part stands in.
        categories: file with the names and ranks of the categories, which the annotations of 2019 keep back; None is
            ``categories.json`` where there is one, else what ``train`` says.
        validation_fraction: share of the training part that is set aside, the same of each class, in [0, 1).
        seed: of that split; fixed by default so that all runs of a comparison share it.

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
        check_fraction("validation_fraction", validation_fraction)
        check_positive("seed", seed, minimum=0)
        if train == test:
            raise ArgumentError(f"train and test must be different files, got {train!r} for both")
        self.root = Path(root)
        self.resize = resize
        self.train = train
        self.test = test
        self.categories = categories
        self.validation_fraction = validation_fraction
        self.seed = seed

    def load(self) -> ClassificationData:
        """Return the parts as map-style datasets of ``(uint8 image (3, resize, resize), int64 label)``."""
        require_extra("PIL.Image", "cli")
        contents = [_read(self.root / name) for name in (self.train, self.test)]
        own, others = (_categories(self.root / name, c) for name, c in zip((self.train, self.test), contents, strict=True))
        ids = sorted(own)
        _check_same(set(others), set(ids), self.root / self.test, self.train)
        names, paths = self._taxonomy(ids, own)
        labels = {category: k for k, category in enumerate(ids)}
        train, test = (self._part(name, c, labels) for name, c in zip((self.train, self.test), contents, strict=True))
        validation = None
        if self.validation_fraction:
            rest, held_out = stratified_split(train.labels, self.validation_fraction, self.seed)
            train, validation = train.subset(rest), train.subset(held_out)
        return ClassificationData(
            train=train,
            validation=validation,
            test=test,
            num_classes=len(ids),
            class_names=names,
            class_counts=train.labels.bincount(minlength=len(ids)),
            paths=paths,
        )
