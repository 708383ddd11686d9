from __future__ import annotations

import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import DataLoader

from tightframe.data import FeatureFile, FeatureFiles, write_features
from tightframe.data._shards import NpzShard
from tightframe.errors import (
    ArgumentError,
    DataFileError,
    DtypeError,
    EmptyDataError,
    LabelError,
    NonFiniteError,
    OutputError,
    ShapeError,
)

SUFFIXES = (".npz", ".safetensors", ".parquet")
N, DIM = 100, 5
FEATURES = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
LABELS = np.arange(N, dtype=np.int64) % 7


def dump(path, **arrays):
    """Write arrays with each format's own library; an array of arrays becomes a ragged parquet column."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    else:
        pq.write_table(
            pa.table({name: array.tolist() if array.ndim > 1 else array for name, array in arrays.items()}), path
        )
    return path


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f"layer{request.param}"


def read(file, batch_size=30):
    features, labels = zip(*file.batches(batch_size), strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def check_contents(file, features=FEATURES, labels=LABELS):
    for seen_features, seen_labels in (read(file), [part.numpy() for part in file.load()]):
        np.testing.assert_array_equal(seen_features, features)
        np.testing.assert_array_equal(seen_labels, labels)
        assert seen_features.dtype == features.dtype
        assert seen_labels.dtype == np.int64
    dataset = file.dataset()
    assert len(dataset) == len(features)
    for index in (0, len(features) // 2, len(features) - 1):
        feature, label = dataset[index]
        assert (feature.dtype, label.dtype) == (torch.float32, torch.int64)
        assert feature.tolist() == features[index].astype(np.float32).tolist()
        assert int(label) == labels[index]


def test_written_features_are_read_back(path):
    assert write_features(path, torch.tensor(FEATURES), torch.tensor(LABELS)) == path
    file = FeatureFile(path)
    assert (file.dim, len(file), file.num_classes) == (DIM, N, 7)
    assert str(path) in repr(file)
    check_contents(file)


def test_batches_have_the_asked_size_but_for_the_last(path):
    write_features(path, torch.tensor(FEATURES), torch.tensor(LABELS))
    assert [tuple(features.shape) for features, _ in FeatureFile(path).batches(30)] == [(30, 5)] * 3 + [(10, 5)]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("labels_dtype", [np.uint8, np.int32, np.uint16])
def test_other_dtypes_and_keys(path, dtype, labels_dtype):
    features = FEATURES.astype(dtype)
    if path.suffix == ".parquet":
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), DIM)
        pq.write_table(pa.table({"h": column, "y": LABELS.astype(labels_dtype)}), path)
    else:
        dump(path, h=features, y=LABELS.astype(labels_dtype), other=np.zeros(3))
    check_contents(FeatureFile(path, features_key="h", labels_key="y"), features)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_any_layout(tmp_path, save, order):
    path = tmp_path / "layer.npz"
    save(path, before=np.zeros(11), features=np.asarray(FEATURES, order=order), labels=LABELS)
    check_contents(FeatureFile(path))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), DIM)])
def test_parquet_of_any_list_type_and_row_group(tmp_path, kind):
    path = tmp_path / "layer.parquet"
    table = pa.table({"features": pa.array(FEATURES.tolist(), kind), "labels": LABELS})
    pq.write_table(table, path, row_group_size=17)
    check_contents(FeatureFile(path))


def test_bfloat16_lives_in_safetensors_alone(tmp_path):
    features = torch.tensor(FEATURES).bfloat16()
    file = FeatureFile(write_features(tmp_path / "a.safetensors", features, torch.tensor(LABELS)))
    assert torch.equal(file.load()[0], features)
    assert next(file.batches(3))[0].dtype == torch.bfloat16
    for suffix in (".npz", ".parquet"):
        with pytest.raises(DtypeError, match=rf"in a {suffix} file, got torch.bfloat16"):
            write_features(tmp_path / f"a{suffix}", features, torch.tensor(LABELS))


def test_shards_follow_each_other_by_name_or_in_the_order_given(path):
    directory = path.parent / "shards"
    directory.mkdir()
    (directory / "manifest.json").write_text("{}")
    cuts = [slice(0, 40), slice(40, 90), slice(90, None)]
    paths = [
        dump(directory / f"part-{i}{path.suffix}", features=FEATURES[cut].astype(np.float32), labels=LABELS[cut])
        for i, cut in enumerate(cuts)
    ]
    file = FeatureFile(directory)
    dtype = np.float64 if path.suffix == ".parquet" else np.float32
    assert (len(file), file.num_classes) == (N, 7)
    check_contents(file, FEATURES.astype(dtype))
    backwards = FeatureFile(paths[::-1])
    np.testing.assert_array_equal(read(backwards)[1], np.concatenate([LABELS[cut] for cut in cuts[::-1]]))
    assert [len(labels) for _, labels in file.batches(32)] == [32, 8, 32, 18, 10]


def test_shards_of_two_dtypes_load_as_the_wider(tmp_path):
    dump(tmp_path / "a.npz", features=FEATURES.astype(np.float16), labels=LABELS)
    dump(tmp_path / "b.npz", features=FEATURES.astype(np.float64), labels=LABELS)
    features, labels = FeatureFile(tmp_path).load()
    assert features.dtype == torch.float64
    np.testing.assert_array_equal(features[N:].numpy(), FEATURES.astype(np.float64))
    assert len(labels) == 2 * N


def test_features_may_be_changed_in_place_without_changing_the_file(path):
    write_features(path, torch.tensor(FEATURES), torch.tensor(LABELS))
    file = FeatureFile(path)
    for features, _ in file.batches(10):
        features.zero_()
    file.dataset()[3][0].zero_()
    check_contents(file)


def test_big_files_are_mapped_and_sent_to_workers_by_name(path):
    features = torch.arange(50_000.0).reshape(1000, 50)
    write_features(path, features, torch.zeros(1000, dtype=torch.int64))
    dataset = FeatureFile(path).dataset()
    sent = pickle.dumps(dataset)
    assert torch.equal(pickle.loads(sent)[999][0], features[999])
    mapped = path.suffix != ".parquet"
    assert (len(sent) < features.nbytes / 2) == mapped
    if sys.platform == "linux" and mapped:
        assert str(path) in Path("/proc/self/maps").read_text()


def test_compressed_npz_is_loaded(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", features=np.zeros((1000, 50), np.float32), labels=np.zeros(1000, int))
    dataset = FeatureFile(tmp_path / "a.npz").dataset()
    assert len(pickle.dumps(dataset)) > 1000 * 50 * 4


# Bad files.


def test_a_missing_file_is_named(path):
    with pytest.raises(DataFileError, match=rf"{path.name} does not exist"):
        FeatureFile(path)
    with pytest.raises(DataFileError, match=rf"{path.name} does not exist"):
        FeatureFile([path])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(path, keep):
    write_features(path, torch.tensor(FEATURES), torch.tensor(LABELS))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataFileError, match=rf"{path.name} is truncated, damaged or no {path.suffix} file"):
        FeatureFile(path)


def test_a_file_of_another_format_is_named(path):
    path.write_bytes(b"h,y\n" * 1000)
    with pytest.raises(DataFileError, match=rf"{path.name} is truncated, damaged or no {path.suffix} file"):
        FeatureFile(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_inside_npz_is_found_by_its_checksum(tmp_path, save):
    path = tmp_path / "layer.npz"
    save(path, labels=np.zeros(20_000, np.int64), features=np.random.default_rng(0).normal(size=(20_000, 5)))
    data = bytearray(path.read_bytes())
    data[-5000:-4990] = b"0123456789"
    path.write_bytes(data)
    file = FeatureFile(path)
    batches = file.batches(1000)
    assert len(next(batches)[0]) == 1000
    with pytest.raises(DataFileError, match=r"layer\.npz is truncated, damaged"):
        list(batches)
    with pytest.raises(DataFileError, match=r"layer\.npz is truncated, damaged"):
        file.load()
    with pytest.raises(DataFileError, match=r"layer\.npz is truncated, damaged"):
        file.dataset()


def test_damage_inside_parquet_is_found_when_it_is_reached(tmp_path):
    path = tmp_path / "layer.parquet"
    features = np.random.default_rng(0).integers(0, 3, size=(20_000, 5)).astype(np.float32)
    table = pa.table({"labels": np.zeros(20_000, np.int64), "features": features.tolist()})
    pq.write_table(table, path, row_group_size=1000, compression="gzip")
    data = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(10).column(1).data_page_offset
    data[page + 100 : page + 200] = bytes(100)
    path.write_bytes(data)
    batches = FeatureFile(path).batches(1000)
    assert [len(next(batches)[0]) for _ in range(10)] == [1000] * 10
    with pytest.raises(DataFileError, match=r"layer\.parquet is truncated, damaged"):
        list(batches)


def npz_member(array, change):
    """The bytes of an npy member after ``change`` of its data."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return change(buffer.getvalue())


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"more", lambda data: b"junk" + data])
def test_an_npz_member_that_is_not_what_its_header_says(tmp_path, change):
    with zipfile.ZipFile(tmp_path / "layer.npz", "w") as archive:
        archive.writestr("features.npy", npz_member(FEATURES, change))
        archive.writestr("labels.npy", npz_member(LABELS, bytes))
    with pytest.raises(DataFileError, match=r"layer\.npz is truncated, damaged"):
        list(FeatureFile(tmp_path / "layer.npz").batches(30))


@pytest.mark.parametrize("name", ["layer.pt", "layer", "layer.NPZ"])
def test_a_wrong_suffix_is_refused_on_both_ways(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataFileError, match=rf"{name} must end in one of .npz, .safetensors, .parquet"):
        FeatureFile(tmp_path / name)
    with pytest.raises(DataFileError, match=rf"{name} must end in one of"):
        write_features(tmp_path / name, torch.tensor(FEATURES), torch.tensor(LABELS))


def test_a_missing_key_lists_those_that_exist(path):
    dump(path, h=FEATURES, y=LABELS)
    with pytest.raises(DataFileError, match=rf"{path.name} has no 'features'; pass features_key=, one of \['h', 'y'\]"):
        FeatureFile(path)
    with pytest.raises(DataFileError, match=rf"{path.name} has no 'labels'; pass labels_key=, one of \['h', 'y'\]"):
        FeatureFile(path, features_key="h")


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (FEATURES.astype(np.int64), LABELS, DtypeError, "features must be one of float16, .* got int64"),
        (FEATURES, LABELS.astype(np.float32), DtypeError, "labels must be one of int8, .* got float32"),
        (FEATURES, LABELS.astype(bool), DtypeError, "labels must be one of int8, .* got bool"),
        (FEATURES[:, 0], LABELS, ShapeError, r"features must have shape \(N, d\), got \(100,\)"),
        (FEATURES, np.stack([LABELS, LABELS], 1), ShapeError, r"labels must have shape \(N,\), got \(100, 2\)"),
        (FEATURES[:0], LABELS[:0], EmptyDataError, "is empty"),
    ],
)
def test_headers_that_do_not_fit(path, features, labels, error, message):
    dump(path, features=features, labels=labels)
    if features.ndim == 2 and not len(features) and path.suffix == ".parquet":
        column = pa.array([], pa.list_(pa.float32()))
        pq.write_table(pa.table({"features": column, "labels": labels}), path)
    with pytest.raises(error, match=rf"{path.name}.*{message}"):
        FeatureFile(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_lengths_that_differ(tmp_path, suffix):
    dump(tmp_path / f"layer{suffix}", features=FEATURES, labels=LABELS[:-1])
    with pytest.raises(DataFileError, match=rf"layer{suffix} has 100 features but 99 labels"):
        FeatureFile(tmp_path / f"layer{suffix}")


def test_npz_of_the_other_byte_order_or_of_objects_is_refused(tmp_path):
    other = "<" if sys.byteorder == "big" else ">"
    np.savez(tmp_path / "a.npz", features=FEATURES.astype(f"{other}f4"), labels=LABELS)
    with pytest.raises(DtypeError, match=r"a\.npz.*other byte order"):
        FeatureFile(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", features=FEATURES, labels=LABELS.astype(object))
    with pytest.raises(DtypeError, match=r"b\.npz.*got object"):
        FeatureFile(tmp_path / "b.npz")


def test_parquet_lists_of_other_lengths_and_nulls(tmp_path):
    path = tmp_path / "layer.parquet"
    for rows in ([[1.0, 2.0], [3.0]], [[1.0, 2.0], None]):
        pq.write_table(pa.table({"features": rows, "labels": [0, 1]}), path)
        with pytest.raises(DataFileError, match=r"layer\.parquet: features must all be lists of d = 2 numbers"):
            FeatureFile(path).load()
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0, None]], "labels": [0, 1]}), path)
    with pytest.raises(NonFiniteError, match=r"layer\.parquet"):
        FeatureFile(path).load()
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0, 4.0]], "labels": [0, None]}), path)
    with pytest.raises(DataFileError, match=r"layer\.parquet: 1 labels are null"):
        FeatureFile(path).load()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_found_in_the_batch_that_holds_it(path, value):
    features = FEATURES.copy()
    features[70, 2] = value
    dump(path, features=features, labels=LABELS)
    batches = FeatureFile(path).batches(30)
    assert [len(next(batches)[0]) for _ in range(2)] == [30, 30]
    with pytest.raises(NonFiniteError, match=rf"features in .*{path.name} must be finite, got 1 NaN or infinite"):
        next(batches)
    with pytest.raises(NonFiniteError, match=path.name):
        FeatureFile(path).dataset()


def test_negative_labels_are_found_by_every_pass(path):
    labels = LABELS.copy()
    labels[[5, 6]] = -100
    dump(path, features=FEATURES, labels=labels)
    file = FeatureFile(path)
    for reading in (lambda: file.num_classes, lambda: next(file.batches(10)), file.load, file.dataset):
        with pytest.raises(LabelError, match=rf"{path.name}: labels must .*, got -100 in row 5 \(2 of 100 outside\)"):
            reading()


def test_shards_must_agree(tmp_path):
    dump(tmp_path / "a.npz", features=FEATURES, labels=LABELS)
    dump(tmp_path / "b.npz", features=FEATURES[:, :3], labels=LABELS)
    with pytest.raises(DataFileError, match=r"b\.npz has width d = 3 but .*a\.npz has 5"):
        FeatureFile(tmp_path)
    dump(tmp_path / "c.safetensors", features=FEATURES, labels=LABELS)
    with pytest.raises(DataFileError, match=r"shards must be of one format"):
        FeatureFile([tmp_path / "a.npz", tmp_path / "c.safetensors"])


def test_no_file_at_all(tmp_path):
    with pytest.raises(DataFileError, match=rf"{tmp_path.name} is a directory without a file ending in"):
        FeatureFile(tmp_path)
    with pytest.raises(ArgumentError, match="path must name at least one file"):
        FeatureFile([])


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_batch_size_is_checked_before_the_first_batch(tmp_path, batch_size):
    file = FeatureFile(dump(tmp_path / "a.npz", features=FEATURES, labels=LABELS))
    with pytest.raises(ArgumentError, match="batch_size"):
        file.batches(batch_size)


# Writing.


@pytest.mark.parametrize(
    ("features", "labels", "error"),
    [
        (torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), DtypeError),
        (torch.ones(3, 2, dtype=torch.float8_e4m3fn), torch.zeros(3, dtype=torch.int64), DtypeError),
        (torch.ones(3, 2), torch.zeros(3), DtypeError),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), ShapeError),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), ShapeError),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), EmptyDataError),
        (torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.int64), NonFiniteError),
        (torch.ones(3, 2), torch.tensor([0, 1, -1]), LabelError),
    ],
)
def test_what_cannot_be_read_back_is_not_written(path, features, labels, error):
    with pytest.raises(error):
        write_features(path, features, labels)
    assert list(path.parent.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_features(tmp_path / "layer.npz", torch.tensor(FEATURES), torch.tensor(LABELS))

    def fail(path, features, labels):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(NpzShard, "write", fail)
    with pytest.raises(OutputError, match="disk full"):
        write_features(path, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    check_contents(FeatureFile(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_gradient_and_strides_do_not_matter_for_writing(path):
    features = torch.tensor(FEATURES.T.copy(), requires_grad=True).T
    write_features(path, features, torch.tensor(LABELS, dtype=torch.uint8))
    check_contents(FeatureFile(path))


# As a data source.


def test_feature_files_are_a_data_source(path):
    train, test, validation = (path.with_stem(name) for name in ("train", "test", "validation"))
    write_features(train, torch.tensor(FEATURES[:60]), torch.tensor(LABELS[:60]))
    write_features(validation, torch.tensor(FEATURES[60:80]), torch.tensor(LABELS[60:80]))
    write_features(test, torch.tensor(FEATURES[80:]), torch.full((20,), 8))
    data = FeatureFiles(str(train), FeatureFile(test), validation).load()
    assert data.num_classes == 9
    assert data.class_names == tuple("012345678")
    assert data.class_counts.tolist() == [9, 9, 9, 9, 8, 8, 8, 0, 0]
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 20)
    features, labels = next(iter(DataLoader(data.train, batch_size=60)))
    np.testing.assert_array_equal(features.numpy(), FEATURES[:60])
    np.testing.assert_array_equal(labels.numpy(), LABELS[:60])
    assert FeatureFiles(train, test, num_classes=20).load().class_counts.shape == (20,)
    assert FeatureFiles(train, test).load().validation is None


def test_feature_files_refuse_parts_that_do_not_fit(tmp_path):
    train = dump(tmp_path / "train.npz", features=FEATURES, labels=LABELS)
    narrow = dump(tmp_path / "narrow.npz", features=FEATURES[:, :2], labels=LABELS)
    with pytest.raises(ArgumentError, match="num_classes"):
        FeatureFiles(train, train, num_classes=0)
    with pytest.raises(LabelError, match=r"train .*train\.npz.* has label 6 but labels must lie in 0\.\.4"):
        FeatureFiles(train, train, num_classes=5).load()
    with pytest.raises(DataFileError, match=r"test .*narrow\.npz.*d=2.* must have the same width d"):
        FeatureFiles(train, narrow).load()


def test_describing_feature_files_opens_nothing(tmp_path):
    source = FeatureFiles(tmp_path / "train.npz", tmp_path / "test.npz")
    with pytest.raises(DataFileError, match=r"train\.npz does not exist"):
        source.load()


# Files that claim what they do not hold.


def test_parquet_that_claims_other_rows(tmp_path):
    path = tmp_path / "layer.parquet"
    features, labels = np.ones((1000, 3), np.float32), np.zeros(1000, np.int64)
    pq.write_table(pa.table({"features": features.tolist(), "labels": labels}), path)
    content = path.read_bytes()
    rows = b"\x16\xd0\x0f"  # 1000 as a field of the footer
    places = [i for i in range(len(content)) if content.startswith(rows, i)]
    assert len(places) >= 2
    refused = 0
    for claimed in (b"\x16\xf0\x0f", b"\x16\xd0\x0e", b"\x16\xcf\x0f", b"\x16\xd0\x7f"):  # 1016, 936, -1000, 8168
        for place in places:
            path.write_bytes(content[:place] + claimed + content[place + 3 :])
            try:
                found = FeatureFile(path).load()
            except DataFileError:
                refused += 1
            else:
                np.testing.assert_array_equal(found[0], features)
                np.testing.assert_array_equal(found[1], labels)
    assert refused


def npy(shape, dtype, data):
    """An npy member of a header that need not be true."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


@pytest.mark.parametrize("shape", [(2**40, 3), (100, 2**40), (2**62, 2**62), (-100, -3), (99, 3), (1000, 3)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_that_claims_another_shape(tmp_path, shape, compression):
    path = tmp_path / "layer.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("features.npy", npy(shape, "<f4", bytes(1200)))
        archive.writestr("labels.npy", npy(shape[:1], "<i8", bytes(800)))
    with pytest.raises(DataFileError, match=r"layer\.npz is truncated, damaged .* of shape"):
        FeatureFile(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice(tmp_path):
    column = pa.array(FEATURES.tolist())
    pq.write_table(
        pa.Table.from_arrays([column, column, pa.array(LABELS)], ["features", "features", "labels"]),
        tmp_path / "a.parquet",
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in (("features", FEATURES), ("labels", LABELS), ("features", FEATURES)):
            archive.writestr(f"{name}.npy", npz_member(array, bytes))
    for suffix in (".parquet", ".npz"):
        with pytest.raises(DataFileError, match=rf"a{suffix} has 2 of the name 'features'; leave one"):
            FeatureFile(tmp_path / f"a{suffix}")


def test_lists_of_parquet_alone_hold_features(tmp_path):
    words = pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"features": words, "labels": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DtypeError, match=r"features must be one of .*, got dictionary"):
        FeatureFile(tmp_path / "a.parquet")


@pytest.mark.parametrize(("label", "dtype"), [(2**40, np.int64), (2**31, np.int64), (2**63 + 5, np.uint64)])
def test_a_label_beyond_any_class(path, label, dtype):
    labels = LABELS.astype(dtype)
    labels[70] = label
    dump(path, features=FEATURES, labels=labels)
    for read_labels in (FeatureFile(path).load, FeatureFiles(path, path).load, FeatureFiles(path, path, None, 8).load):
        with pytest.raises(
            LabelError, match=rf"{path.name}: labels must lie in 0\.\.2147483647, got \d+ in row 70 \(1 of"
        ):
            read_labels()
    with pytest.raises(ArgumentError, match="num_classes must be finite and at most 2147483648"):
        FeatureFiles(path, path, num_classes=2**31 + 1)


def test_a_label_far_beyond_the_samples_needs_num_classes(path):
    labels = LABELS.copy()
    labels[70] = 100_000
    dump(path, features=FEATURES, labels=labels)
    with pytest.raises(
        LabelError, match=r"label 100000 but labels must lie in 0\.\.65535 \(200 samples in all and no num"
    ):
        FeatureFiles(path, path).load()
    assert FeatureFiles(path, path, num_classes=100_001).load().class_counts[100_000] == 1
