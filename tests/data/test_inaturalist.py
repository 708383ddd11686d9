import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import published
from tightframe.config import Method, Part, Recipe, build
from tightframe.data import INaturalist
from tightframe.data.inaturalist import RANKS
from tightframe.errors import ArgumentError, DataFileError, MissingExtraError
from tightframe.hierarchy import Tree
from tightframe.training import make_loader

# By id, not in order, and with a gap; two of a genus, three of a kingdom.
SPECIES = {
    7: ("Animalia", "Chordata", "Amphibia", "Anura", "Ranidae", "Rana", "Rana aurora"),
    2: ("Plantae", "Tracheophyta", "Liliopsida", "Asparagales", "Asparagaceae", "Yucca", "Yucca rupicola"),
    0: ("Animalia", "Chordata", "Amphibia", "Anura", "Ranidae", "Rana", "Rana boylii"),
    5: ("Animalia", "Arthropoda", "Insecta", "Odonata", "Libellulidae", "Sympetrum", "Sympetrum danae"),
}
IDS = sorted(SPECIES)
NAMED = [{"id": i, **dict(zip([*RANKS, "name"], path, strict=True))} for i, path in SPECIES.items()]
HIDDEN = [{"id": i, "name": str(400 + i), "supercategory": path[0]} for i, path in SPECIES.items()]
# Edges from the lowest common ancestor down to the species.
DISTANCES = [[0, 7, 6, 1], [7, 0, 7, 7], [6, 7, 0, 6], [1, 7, 6, 0]]


def write(root, year=2019, n=2, size=8):
    """Write both parts as published in a year, ``n`` images a species; return pixels and label by file name."""
    written = {}
    for part, name in {"train": f"train{year}.json", "val": f"val{year}.json"}.items():
        images, annotations = [], []
        for j in range(n * len(IDS)):
            label, file_name = j % len(IDS), f"train_val{year}/{part}/{j}.png"
            images.append({"id": 1000 - j, "width": size, "height": size, "file_name": file_name})
            annotations.append({"id": 50 + j, "image_id": 1000 - j, "category_id": IDS[label]})
            pixels = published.pixels(1, size, size, 3, seed=len(written))[0]
            (root / file_name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / file_name)
            written[file_name] = pixels, label
        categories = HIDDEN if year == 2019 else NAMED
        content = {"info": {"year": year}, "images": images, "categories": categories, "licenses": []}
        (root / name).write_text(json.dumps(content | {"annotations": annotations[::-1]}))
    if year == 2019:
        (root / "categories.json").write_text(json.dumps(NAMED))
    return written


def source(root, **options):
    return INaturalist(root, **{"resize": 8, **options})


def change(path, **sections):
    """Replace sections of an annotation file by what functions make of them."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {name: made(content.get(name)) for name, made in sections.items()}))


# --- what the files hold ---


@pytest.mark.parametrize("year", [2019, 2021])
def test_images_labels_and_taxonomy_of_either_layout(tmp_path, year):
    written = write(tmp_path, year)
    data = source(tmp_path, train=f"train{year}.json", test=f"val{year}.json").load()
    assert data.num_classes == 4
    assert data.class_names == ("Rana boylii", "Yucca rupicola", "Sympetrum danae", "Rana aurora")
    assert data.paths == tuple(SPECIES[i] for i in IDS)
    assert data.class_counts.tolist() == [2, 2, 2, 2]
    assert data.validation is None
    for part, name in ((data.train, "train"), (data.test, "val")):
        expected = [value for file_name, value in written.items() if f"/{name}/" in file_name]
        assert len(part) == len(expected) == 8
        for j, (pixels, label) in enumerate(expected):
            image, own = part[j]
            assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
            assert (image.dtype, own.dtype, int(own)) == (torch.uint8, torch.int64, label)


def test_the_tree_of_the_paths_is_the_taxonomy(tmp_path):
    write(tmp_path)
    data = source(tmp_path).load()
    tree = Tree.from_paths(data.paths)
    assert tree.class_names == data.class_names
    assert tree.distances().tolist() == tree.distances("height").tolist() == DISTANCES
    # The root, two kingdoms, three each of phylum to genus, four species.
    assert len(tree.names) == 1 + 2 + 5 * 3 + 4


def test_a_categories_file_goes_before_what_the_annotations_say(tmp_path):
    write(tmp_path, 2021)
    names = {"train": "train2021.json", "test": "val2021.json"}
    renamed = [entry | {"name": entry["name"].upper()} for entry in NAMED]
    (tmp_path / "names.json").write_text(json.dumps({"categories": [*renamed, {"id": 1, "name": "of no image"}]}))
    assert source(tmp_path, **names).load().class_names[0] == "Rana boylii"
    data = source(tmp_path, **names, categories="names.json").load()
    assert data.class_names[0] == data.paths[0][-1] == "RANA BOYLII"
    assert data.num_classes == 4


def test_categories_without_ranks_have_no_hierarchy(tmp_path):
    write(tmp_path)
    (tmp_path / "categories.json").unlink()
    data = source(tmp_path).load()
    assert data.paths is None
    assert data.class_names == ("400", "402", "405", "407")


@pytest.mark.parametrize("blank", ["", None])
def test_a_rank_that_no_category_has_is_left_out(tmp_path, blank):
    write(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps([entry | {"order": blank} for entry in NAMED]))
    assert source(tmp_path).load().paths == tuple((*SPECIES[i][:3], *SPECIES[i][4:]) for i in IDS)


def test_a_species_without_training_images_keeps_its_label(tmp_path):
    write(tmp_path, n=1)
    keep = {1000, 997}
    change(
        tmp_path / "train2019.json",
        images=lambda images: [i for i in images if i["id"] in keep],
        annotations=lambda annotations: [a for a in annotations if a["image_id"] in keep],
    )
    data = source(tmp_path).load()
    assert data.class_counts.tolist() == [1, 0, 0, 1]
    assert data.train.labels.tolist() == [0, 3]
    assert len(data.test) == 4


def test_a_share_of_each_species_is_set_aside(tmp_path):
    write(tmp_path, n=4)
    whole, data, again, other = (
        source(tmp_path, validation_fraction=fraction, seed=seed).load()
        for fraction, seed in ((0.0, 0), (0.25, 0), (0.25, 0), (0.25, 1))
    )
    assert data.class_counts.tolist() == [3, 3, 3, 3]
    assert data.validation.labels.bincount().tolist() == [1, 1, 1, 1]
    assert sorted(data.train.paths + data.validation.paths) == sorted(whole.train.paths)
    label_of = dict(zip(whole.train.paths, whole.train.labels.tolist(), strict=True))
    for part in (data.train, data.validation):
        assert [label_of[path] for path in part.paths] == part.labels.tolist()
    assert again.train.paths == data.train.paths != other.train.paths
    assert data.test.paths == whole.test.paths
    write(tmp_path, n=1)
    with pytest.raises(ArgumentError, match="leaves a part without some class"):
        source(tmp_path, validation_fraction=0.25).load()


def test_images_are_cut_to_the_size_asked_for_and_loaded_in_batches(tmp_path):
    write(tmp_path)
    gray = np.zeros((10, 20, 3), np.uint8)
    gray[:, 5:15] = 200
    Image.fromarray(gray).save(tmp_path / "train_val2019" / "train" / "0.png")
    data = source(tmp_path, resize=10).load()
    assert torch.equal(data.train[0][0], torch.full((3, 10, 10), 200, dtype=torch.uint8))
    images, labels = next(iter(make_loader(data.train, 8)))
    assert images.shape == (8, 3, 10, 10)
    assert labels.tolist() == [0, 1, 2, 3] * 2


def test_a_recipe_gets_the_taxonomy(tmp_path):
    write(tmp_path)
    recipe = recipe_of("INaturalist", root=str(tmp_path), resize=8)
    assert build(recipe, []).tree.distances().tolist() == DISTANCES


# --- options ---


@pytest.mark.parametrize("bad", [{"resize": 0}, {"validation_fraction": 1.0}, {"seed": -1}])
def test_options_out_of_range(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        source("nowhere", **bad)


def test_pillow_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"tightframe\[cli\]"):
        source(tmp_path).load()


# --- files that are not as published ---


@pytest.mark.parametrize("name", ["train2019.json", "val2019.json"])
def test_a_missing_file(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataFileError, match=f"{name} does not exist; root must be the folder with the annotation"):
        source(tmp_path).load()


def test_a_categories_file_that_was_asked_for_must_exist(tmp_path):
    write(tmp_path)
    (tmp_path / "categories.json").unlink()
    with pytest.raises(DataFileError, match=r"categories\.json does not exist"):
        source(tmp_path, categories="categories.json").load()


def test_a_file_that_cannot_be_read(tmp_path):
    write(tmp_path)
    (tmp_path / "val2019.json").unlink()
    (tmp_path / "val2019.json").mkdir()
    with pytest.raises(DataFileError, match=r"val2019\.json cannot be read \(.*unpack it again"):
        source(tmp_path).load()


@pytest.mark.parametrize("name", ["train2019.json", "val2019.json", "categories.json"])
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_half_written_file(tmp_path, name, kept):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataFileError, match=f"{name} is no JSON or is truncated .*unpack it again"):
        source(tmp_path).load()


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", b"[" * 100_000])
def test_a_file_of_another_kind(tmp_path, content):
    write(tmp_path)
    (tmp_path / "val2019.json").write_bytes(content)
    with pytest.raises(DataFileError, match=r"val2019\.json is no JSON"):
        source(tmp_path).load()


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("content", [None, [], {}, "text"])
def test_a_section_that_is_no_list_of_something(tmp_path, section, content):
    write(tmp_path)
    change(tmp_path / "val2019.json", **{section: lambda _: content})
    with pytest.raises(DataFileError, match=rf"val2019\.json: there must be a list of {section} with something in it"):
        source(tmp_path).load()


@pytest.mark.parametrize("content", [3, "text", None])
def test_a_file_that_is_no_object(tmp_path, content):
    write(tmp_path)
    (tmp_path / "train2019.json").write_text(json.dumps(content))
    with pytest.raises(DataFileError, match=rf"there must be a list of categories .*, got {type(content).__name__};"):
        source(tmp_path).load()


ENTRIES = [
    ("val2019.json", "images", "id"),
    ("val2019.json", "images", "file_name"),
    ("val2019.json", "annotations", "image_id"),
    ("val2019.json", "annotations", "category_id"),
    ("val2019.json", "categories", "id"),
]


@pytest.mark.parametrize(("name", "section", "key"), ENTRIES)
@pytest.mark.parametrize("value", [None, True, 1.5, "", []])
def test_an_entry_without_what_it_must_have(tmp_path, name, section, key, value):
    write(tmp_path)
    change(tmp_path / name, **{section: lambda entries: [entries[0], entries[1] | {key: value}, *entries[2:]]})
    with pytest.raises(DataFileError, match=rf"val2019\.json: entry 1 of {section} must have .*{key} \((int|str)\)"):
        source(tmp_path).load()


@pytest.mark.parametrize("entry", [3, {"id": 7}, {"id": 7, "name": ""}, {"name": "x"}])
def test_a_category_without_id_or_name(tmp_path, entry):
    write(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps([entry]))
    with pytest.raises(
        DataFileError, match=r"categories\.json: entry 0 of categories must have id \(int\), name \(str\), got"
    ):
        source(tmp_path).load()


@pytest.mark.parametrize("section", ["images", "categories"])
def test_an_id_that_comes_twice(tmp_path, section):
    write(tmp_path)
    change(tmp_path / "val2019.json", **{section: lambda entries: [*entries, entries[0]]})
    with pytest.raises(
        DataFileError, match=rf"val2019\.json: id \d+ comes twice among the {section}; correct the file"
    ):
        source(tmp_path).load()


# Annotations lie in the reverse order of the images.
WRONG_ANNOTATIONS = [
    (lambda a: a[:-1], r"image 1000 has no annotation \(1 of 8 images have none\)"),
    (lambda a: [*a, a[0] | {"category_id": 2}], "image 993 has two annotations"),
    (lambda a: [*a, {"image_id": 4, "category_id": 0}], "an annotation is of image 4, which is not among the images"),
    (lambda a: [a[0] | {"category_id": 1}, *a[1:]], "image 993 has category 1, which is not among the categories"),
]


@pytest.mark.parametrize(("made", "message"), WRONG_ANNOTATIONS)
@pytest.mark.parametrize("name", ["train2019.json", "val2019.json"])
def test_images_without_exactly_one_category(tmp_path, name, made, message):
    write(tmp_path)
    change(tmp_path / name, annotations=made)
    with pytest.raises(DataFileError, match=f"{name}: {message}.*; correct the file or get the published one again"):
        source(tmp_path).load()


def test_parts_of_two_releases(tmp_path):
    write(tmp_path)
    change(tmp_path / "val2019.json", categories=lambda c: [*c[1:], {"id": 9}])
    with pytest.raises(DataFileError, match=r"val2019.json: the categories must be those of .*, but 2 .*: 7, 9;"):
        source(tmp_path).load()
    change(tmp_path / "val2019.json", categories=lambda c: [{"id": 20 + i} for i in range(2)])
    with pytest.raises(DataFileError, match=r"but 6 are in one alone: 0, 2, 5, 7, 20, \.\.\.;"):
        source(tmp_path).load()


def test_a_category_that_the_categories_file_lacks(tmp_path):
    write(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps(NAMED[1:]))
    with pytest.raises(DataFileError, match=r"categories\.json: there is no category 7, which train2019\.json has"):
        source(tmp_path).load()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("value", [None, "", 3])
def test_a_rank_that_only_others_have(tmp_path, rank, value):
    write(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps([NAMED[0] | {rank: value}, *NAMED[1:]]))
    with pytest.raises(
        DataFileError,
        match=rf"categories\.json: category 7 \('Rana aurora'\) must have a name for its {rank}, .* got {value!r}; c",
    ):
        source(tmp_path).load()


def test_a_species_that_is_two_categories(tmp_path):
    write(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps([NAMED[2] | {"id": 7}, *NAMED[1:]]))
    with pytest.raises(DataFileError, match=r"categories 0 and 7 are both 'Animalia > .* > Rana > Rana boylii'"):
        source(tmp_path).load()


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist; unpack"), (b"text", "cannot be decoded")])
def test_an_image_that_is_missing_or_none_is_named_when_it_is_read(tmp_path, content, message):
    written = write(tmp_path)
    path = Path(tmp_path, next(iter(written)))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    data = source(tmp_path).load()
    assert int(data.train[1][1]) == 1
    with pytest.raises(DataFileError, match=rf"train/0\.png {message}"):
        data.train[0]
    with pytest.raises(DataFileError, match=r"train/0\.png"):
        list(make_loader(data.train, 8))


# --- folders of images with an edge list, as tieredImageNet is shipped ---


def recipe_of(name, hierarchy=None, **args):
    return Recipe(
        data=Part(name, args),
        backbone=Part("MLP", {"widths": [4]}),
        methods={"learned": Method(Part("LinearClassifier"))},
        optimizer=Part("SGD"),
        epochs=1,
        batch_size=4,
        hierarchy=hierarchy,
    )


def test_image_folders_with_an_edge_list_of_more_than_their_classes(tmp_path):
    classes = ("n02", "n01", "n04", "n03")
    published.image_folder(tmp_path, classes=classes, n=1)
    # What has no class below it is left out, with the depth that it alone had.
    edges = ["n00 animal", "animal dog", "dog n01", "dog n02", "animal cat", "cat wild", "wild n03", "n00 n04"]
    further = ["n00 artifact", "artifact tool", "tool saw", "saw ripsaw", "dog n09", "cat n08"]
    path = tmp_path / "tiered_isa.txt"
    path.write_text("\n".join([*further[:3], *edges, *further[3:]]))
    recipe = recipe_of("ImageFolder", hierarchy=str(path), root=str(tmp_path), resize=8)
    experiment = build(recipe, [])
    data, tree = experiment.data, experiment.tree
    assert data.class_names == tree.class_names == ("n01", "n02", "n03", "n04")
    # The deepest class is 4 edges down: the distance is 4 less the depth of the lowest common ancestor.
    assert tree.distances().tolist() == [[0, 2, 3, 4], [2, 0, 3, 4], [3, 3, 0, 4], [4, 4, 4, 0]]
    assert tree.distances("height").tolist() == [[0, 1, 3, 4], [1, 0, 3, 4], [3, 3, 0, 4], [4, 4, 4, 0]]
    assert {"tool", "ripsaw", "n09", "n08"}.isdisjoint(tree.names)
    path.write_text("\n".join(edge for edge in edges if "n04" not in edge))
    with pytest.raises(DataFileError, match=r"tiered_isa\.txt: .*n04"):
        build(recipe, [])
