"""The laws of every frame: a new frame's test supplies two methods and inherits the rest."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from tightframe.errors import DtypeError, LabelError, ShapeError
from tightframe.frames import Frame, is_unit_norm


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(dtype)


class FrameTestCase(ABC):
    @abstractmethod
    def make_frame(self) -> Frame:
        """Return a small frame in float64 on the CPU, the same at every call."""

    @abstractmethod
    def expected_gram(self) -> Tensor:
        """Return its Gram matrix (K, K) in float64, from a formula of its own."""

    def test_matrix_has_the_stated_size_dtype_and_device(self):
        frame = self.make_frame()
        W = frame.as_matrix()
        assert W.shape == (frame.num_classes, frame.dim)
        assert W.dtype == frame.dtype == torch.float64
        assert W.device == frame.device == torch.device("cpu")

    def test_gram_is_exact(self):
        frame = self.make_frame()
        W = frame.as_matrix()
        torch.testing.assert_close(W @ W.T, self.expected_gram(), rtol=0, atol=1e-12)
        torch.testing.assert_close(frame.gram, self.expected_gram(), rtol=0, atol=1e-12)

    def test_unit_norm_is_what_the_diagonal_of_the_gram_says(self):
        wanted = bool((self.expected_gram().diagonal() - 1).abs().max() <= 1e-12)
        assert is_unit_norm(self.make_frame(), tol=1e-12) is wanted

    def test_rows_are_rows_of_the_matrix(self):
        frame = self.make_frame()
        index = torch.tensor([frame.num_classes - 1, 0, frame.num_classes - 1])
        for dtype in (torch.int64, torch.int32, torch.uint8):
            torch.testing.assert_close(frame.rows(index.to(dtype)), frame.as_matrix()[index], rtol=0, atol=0)
        assert frame.rows(index[:0]).shape == (0, frame.dim)

    @pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
    def test_logits_are_the_product_with_the_matrix(self, batch):
        frame = self.make_frame()
        h = draw(*batch, frame.dim)
        logits = frame.logits(h)
        assert logits.shape == (*batch, frame.num_classes)
        torch.testing.assert_close(logits, h @ frame.as_matrix().T, rtol=0, atol=1e-12)

    def test_gradient_through_logits(self):
        frame = self.make_frame()
        assert torch.autograd.gradcheck(frame.logits, draw(3, frame.dim).requires_grad_())

    def test_logits_do_not_write_into_the_features(self):
        frame = self.make_frame()
        h = draw(3, frame.dim)
        before = h.clone()
        frame.logits(h).add_(1.0)
        assert torch.equal(h, before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_cast_rounds_the_same_geometry(self, dtype):
        frame = self.make_frame()
        narrow = frame.to(dtype=dtype)
        assert narrow.as_matrix().dtype == narrow.rows(torch.tensor([0])).dtype == narrow.gram.dtype == dtype
        eps = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(narrow.as_matrix().double(), frame.as_matrix(), rtol=eps, atol=1e-3 * eps)
        assert frame.as_matrix().dtype == torch.float64

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_features_are_summed_in_float32(self, dtype):
        frame = self.make_frame().to(dtype=torch.float32)
        h = draw(4, frame.dim, dtype=dtype)
        assert torch.equal(frame.logits(h), frame.logits(h.float()).to(dtype))

    def test_autocast_lowers_nothing(self):
        frame = self.make_frame().to(dtype=torch.float32)
        h = draw(4, frame.dim, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = frame.logits(h), frame.gram
        assert torch.equal(inside[0], frame.logits(h))
        assert torch.equal(inside[1], frame.gram)

    def test_other_device(self):
        frame = self.make_frame().to(device="meta")
        assert frame.device.type == frame.as_matrix().device.type == frame.gram.device.type == "meta"
        assert frame.logits(torch.empty(2, frame.dim, device="meta")).shape == (2, frame.num_classes)
        assert frame.rows(torch.zeros(2, dtype=torch.int64, device="meta")).shape == (2, frame.dim)

    def test_same_frame_at_every_construction_whatever_the_global_state(self):
        wanted = self.make_frame().as_matrix()
        torch.manual_seed(123)
        state = torch.get_rng_state()
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            assert torch.equal(self.make_frame().as_matrix(), wanted)
        finally:
            torch.set_default_dtype(default)
        assert torch.equal(torch.get_rng_state(), state)

    def test_copy_and_pickle(self):
        frame = self.make_frame()
        for other in (copy.deepcopy(frame), pickle.loads(pickle.dumps(frame))):
            assert torch.equal(other.as_matrix(), frame.as_matrix())

    def test_a_stored_matrix_is_the_matrix(self):
        frame = self.make_frame()
        assert frame.stored == (frame.as_matrix() is frame.as_matrix())

    def test_repr_names_the_sizes(self):
        frame = self.make_frame()
        assert f"num_classes={frame.num_classes}, dim={frame.dim}" in repr(frame)

    def test_refuses_features_of_another_width(self):
        frame = self.make_frame()
        with pytest.raises(ShapeError, match=rf"d = {frame.dim}\), got \(2, {frame.dim + 1}\)"):
            frame.logits(torch.zeros(2, frame.dim + 1))
        with pytest.raises(ShapeError):
            frame.logits(torch.tensor(1.0))

    def test_refuses_integer_features(self):
        frame = self.make_frame()
        with pytest.raises(DtypeError, match=r"int64.*features\.float\(\)"):
            frame.logits(torch.zeros(2, frame.dim, dtype=torch.int64))

    def test_refuses_bad_indices(self):
        frame = self.make_frame()
        with pytest.raises(DtypeError, match="float32"):
            frame.rows(torch.zeros(2))
        with pytest.raises(ShapeError, match=r"\(1, 2\)"):
            frame.rows(torch.zeros(1, 2, dtype=torch.int64))
        for bad in (-1, frame.num_classes):
            with pytest.raises(LabelError, match=f"got {bad}"):
                frame.rows(torch.tensor([0, bad]))
