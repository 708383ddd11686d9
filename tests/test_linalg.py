from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tightframe.errors import ArgumentError, DeviceError
from tightframe.linalg import (
    at_least_float32,
    haar_orthonormal,
    helmert_basis,
    helmert_coordinates,
    helmert_product,
    helmert_rows,
    outside_autocast,
    reciprocal_norm,
)


def test_helmert_basis_of_three():
    a, b = math.sqrt(2 / 3), math.sqrt(1 / 6)
    wanted = [[a, 0], [-b, math.sqrt(1 / 2)], [-b, -math.sqrt(1 / 2)]]
    torch.testing.assert_close(helmert_basis(3), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 257])
def test_helmert_basis_is_orthonormal_and_sums_to_zero(n):
    Q = helmert_basis(n)
    assert Q.shape == (n, n - 1)
    torch.testing.assert_close(Q.T @ Q, torch.eye(n - 1, dtype=torch.float64), rtol=0, atol=1e-13)
    projector = torch.eye(n, dtype=torch.float64) - 1 / n
    torch.testing.assert_close(Q @ Q.T, projector, rtol=0, atol=1e-13)


def test_helmert_basis_dtype_and_bad_size():
    assert helmert_basis(3, dtype=torch.float32).dtype == torch.float32
    assert helmert_basis(3, device="meta").device.type == "meta"
    with pytest.raises(ArgumentError, match="n must be an integer >= 1, got 0"):
        helmert_basis(0)


def test_helmert_rows_are_rows_of_the_basis():
    index = torch.tensor([4, 0, 4, 2])
    assert torch.equal(helmert_rows(index, 5), helmert_basis(5)[index])


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_helmert_product_is_the_product(n):
    x = torch.randn(2, 3, n - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(helmert_product(x), x @ helmert_basis(n).T, rtol=0, atol=1e-13)


def test_helmert_product_has_the_right_gradient():
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(helmert_product, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_helmert_coordinates_are_the_product_with_the_basis(n, dtype):
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = x.clone()
    found = helmert_coordinates(x)
    assert found.dtype == dtype
    atol = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, (x.double() @ helmert_basis(n)).to(dtype), rtol=0, atol=atol)
    torch.testing.assert_close(helmert_product(found), x - x.mean(dim=-1, keepdim=True), rtol=0, atol=atol)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("n", [2, 3, 7, 10, 51])
@pytest.mark.parametrize("value", [0.1, -1e5 / 3, 1e300])
def test_helmert_coordinates_of_equal_entries_are_exactly_zero(n, value):
    # Their mean need not be: (0.1 + 0.1 + 0.1) / 3 > 0.1 in float64.
    assert torch.equal(helmert_coordinates(torch.full((n,), value, dtype=torch.float64)), torch.zeros(n - 1).double())


def test_helmert_coordinates_do_not_see_an_offset():
    x = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(64).round() / 64
    torch.testing.assert_close(helmert_coordinates(x + 2.0**40), helmert_coordinates(x), rtol=0, atol=1e-13)


def test_helmert_coordinates_have_the_right_gradient():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(helmert_coordinates, x)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 5), (9, 2)])
def test_haar_columns_are_orthonormal_float64_on_the_cpu(rows, cols):
    with torch.device("meta"):
        Q = haar_orthonormal(rows, cols, torch.Generator("cpu").manual_seed(0))
    assert Q.dtype == torch.float64
    assert Q.shape == (rows, cols)
    identity = torch.eye(cols, dtype=torch.float64)
    torch.testing.assert_close(Q.T @ Q, identity, rtol=0, atol=1e-14)


def test_haar_has_both_signs_and_both_determinants():
    # Unsigned QR factors would have one sign in the corner and one determinant at every draw.
    generator = torch.Generator().manual_seed(0)
    draws = [haar_orthonormal(3, 3, generator) for _ in range(400)]
    corner = torch.stack([Q[0, 0] for Q in draws])
    assert abs(float((corner > 0).double().mean()) - 0.5) < 0.1
    assert float(corner.square().mean()) == pytest.approx(1 / 3, abs=0.06)
    assert abs(sum(float(torch.linalg.det(Q)) > 0 for Q in draws) / 400 - 0.5) < 0.1


@pytest.mark.parametrize(
    ("sizes", "device", "error", "message"),
    [
        ((2, 3), "cpu", ArgumentError, r"cols must be at most rows = 2.*got 3"),
        ((0, 0), "cpu", ArgumentError, "rows must be"),
        ((1, 0), "cpu", ArgumentError, "cols must be"),
        ((2, 2), "cuda", DeviceError, "generator must be on the CPU, got cuda"),
    ],
)
def test_haar_refuses_bad_arguments(sizes, device, error, message):
    with pytest.raises(error, match=message):
        haar_orthonormal(*sizes, SimpleNamespace(device=torch.device(device)))


def test_reciprocal_norm_at_zero_and_elsewhere():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-18, 0.0]], requires_grad=True)
    result = reciprocal_norm(x)
    assert result.shape == (3, 1)
    assert result[:2].tolist() == [[pytest.approx(0.2)], [0.0]]
    assert result[2].item() == pytest.approx(1e18)
    (x * result)[:2].sum().backward()
    assert x.grad[1].tolist() == [0.0, 0.0]
    assert torch.isfinite(x.grad).all()


def test_unit_vectors_have_the_right_gradient():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: x * reciprocal_norm(x), x)


def test_at_least_float32():
    wanted = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.int64: torch.int64}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64):
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == wanted.get(dtype, dtype)


def test_outside_autocast():
    x = torch.eye(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with outside_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        with outside_autocast(torch.device("meta")):
            assert (x @ x).dtype == torch.bfloat16
