from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tightframe import errors
from tightframe.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    LabelError,
    MissingExtraError,
    NonFiniteError,
    ShapeError,
    TightframeError,
    check_choice,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_positive,
    require_extra,
)

NAN, INF = float("nan"), float("inf")

BUILTINS = {
    "ArgumentError": ValueError,
    "ShapeError": ValueError,
    "DtypeError": TypeError,
    "DeviceError": ValueError,
    "LabelError": ValueError,
    "NonFiniteError": ValueError,
    "DimensionError": ValueError,
    "EmptyDataError": ValueError,
    "DataFileError": ValueError,
    "ConfigError": ValueError,
    "FailedError": RuntimeError,
    "OutputError": RuntimeError,
    "ResumeError": RuntimeError,
    "MissingExtraError": ImportError,
}


def test_every_exception_is_caught_as_ours_and_as_the_usual_one():
    found = {n: e for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, TightframeError)}
    assert set(found) == {"TightframeError", *BUILTINS}
    for name, builtin in BUILTINS.items():
        assert issubclass(found[name], builtin)
        assert found[name].__doc__


def test_the_exceptions_do_not_import_torch():
    code = "import sys, tightframe.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- optional dependencies


def test_an_installed_module_is_returned():
    assert require_extra("json.decoder", "cli") is sys.modules["json.decoder"]


def test_a_missing_module_names_its_extra():
    with pytest.raises(
        MissingExtraError, match=r"no_such_module cannot be imported .*run: pip install 'tightframe\[hf\]'"
    ):
        require_extra("no_such_module", "hf")


@pytest.mark.parametrize("failure", ["raise RuntimeError('no operator')", "import no_such_module", "import"])
def test_whatever_a_broken_install_raises_is_turned_into_the_hint(tmp_path, monkeypatch, failure):
    (tmp_path / "half_installed.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"half_installed.*tightframe\[vision\]") as caught:
        require_extra("half_installed", "vision")
    assert caught.value.__cause__ is not None
    assert "half_installed" not in sys.modules


# ---------------------------------------------------------------- numbers and names


def test_positive():
    check_positive("n", 1)
    check_positive("n", 0, minimum=0)
    check_positive("n", 10**18, minimum=3)
    for value, minimum in ((0, 1), (-1, 0), (2, 3), (1.0, 1), (True, 1), ("1", 1), (None, 1), (NAN, 1)):
        with pytest.raises(ArgumentError, match=f"n must be an integer >= {minimum}, got"):
            check_positive("n", value, minimum)


def test_choice():
    check_choice("mode", "a", ("a", "b"))
    for value in ("c", "A", "", None, 1, ["a"]):
        with pytest.raises(ArgumentError, match="mode must be one of 'a', 'b', got"):
            check_choice("mode", value, ("a", "b"))


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_that_fit(dtype):
    for shape in ((0, 3), (1, 3), (5, 3)):
        check_features(torch.full(shape, NAN, dtype=dtype), 3)  # values are not looked at
    check_features(torch.zeros(2, 0))


def test_features_that_do_not_fit():
    for bad, seen in (
        (torch.ones(2, 3).long(), r"torch\.int64"),
        (torch.ones(2, 3).bool(), r"torch\.bool"),
        (torch.ones(2, 3) * 1j, r"torch\.complex64"),
        ([[1.0]], "list"),
        (None, "NoneType"),
    ):
        with pytest.raises(DtypeError, match=rf"rows must be a floating-point tensor, got {seen}; .*float32"):
            check_features(bad, name="rows")
    for shape in ((), (3,), (2, 3, 1)):
        with pytest.raises(ShapeError, match=r"features must have shape \(B, d\), got .*flatten"):
            check_features(torch.ones(shape))
    with pytest.raises(ShapeError, match="features must have width d = 4, got 3"):
        check_features(torch.ones(2, 3), 4)


def test_labels():
    features = torch.ones(2, 3)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        check_labels(torch.ones(2, dtype=dtype), features)
    for bad, seen in ((torch.ones(2), r"torch\.float32"), (torch.ones(2).bool(), r"torch\.bool"), ([0, 1], "list")):
        with pytest.raises(DtypeError, match=rf"y must be an integer tensor, got {seen}; .*int64.*y\.argmax\(dim=1\)"):
            check_labels(bad, features, "y")
    for shape in ((3,), (2, 1), ()):
        with pytest.raises(ShapeError, match=r"labels must have shape \(B,\) = \(2,\), got"):
            check_labels(torch.ones(shape).long(), features)
    with pytest.raises(DeviceError, match="labels are on meta and features on cpu"):
        check_labels(torch.ones(2, device="meta").long(), features)


def test_label_range():
    check_label_range(torch.tensor([0, 4, 2]), 5)
    check_label_range(torch.zeros(0).long(), 5)
    with pytest.raises(LabelError, match=r"y must lie in 0\.\.4 \(K = 5\), got 5 \(1 of 3 .*ignore_index=5"):
        check_label_range(torch.tensor([0, 5, 1]), 5, "y")
    with pytest.raises(LabelError, match=r"got -100 \(2 of 3 out of range\).*ignore_index=-100"):
        check_label_range(torch.tensor([0, -100, 7]), 5)


@pytest.mark.parametrize(
    ("dtype", "label", "num_classes"), [(torch.uint8, 240, 300), (torch.int8, 100, 241), (torch.int16, 30000, 70000)]
)
def test_label_range_where_the_type_of_the_labels_does_not_hold_the_number_of_classes(dtype, label, num_classes):
    check_label_range(torch.tensor([0, label], dtype=dtype), num_classes)
    with pytest.raises(LabelError, match=f"got {label}"):
        check_label_range(torch.tensor([0, label], dtype=dtype), label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_finite(dtype):
    largest = torch.finfo(dtype).max
    for fine in ([], [0.0, -1.0], [largest, largest], [largest, largest, -largest, -largest]):
        check_finite(torch.tensor(fine, dtype=dtype))  # also where the sum is not
    for bad, count in (([NAN], 1), ([1.0, INF], 1), ([INF, -INF, 2.0], 2), ([-INF, largest, NAN], 2)):
        with pytest.raises(NonFiniteError, match=f"x must be finite, got {count} NaN or infinite of {len(bad)} values"):
            check_finite(torch.tensor(bad, dtype=dtype), "x")
