import pytest
import torch

from tightframe.errors import LabelError, NonFiniteError
from tightframe.moments import ClassMoments

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_cuda_moments_equal_cpu_moments():
    features = torch.randn(500, 16) + 1000
    labels = torch.randint(5, (500,))
    labels[::50] = -100
    cpu, gpu = ClassMoments(5, 16, scatter=True), ClassMoments(5, 16, scatter=True, device="cuda")
    for h, y in zip(features.split(64), labels.split(64), strict=True):
        cpu.update(h, y, ignore_index=-100)
        gpu.update(h.cuda(), y.cuda(), ignore_index=-100)
    for name in ("count", "mean", "trace", "scatter"):
        torch.testing.assert_close(getattr(gpu, name).cpu(), getattr(cpu, name), rtol=1e-10, atol=1e-10)


def test_bad_samples_raise_when_read():
    moments = ClassMoments(2, 1, device="cuda")
    moments.update(torch.tensor([[1.0], [2.0]], device="cuda"), torch.tensor([0, 7], device="cuda"))
    with pytest.raises(LabelError):
        _ = moments.mean
    moments = ClassMoments(2, 1, device="cuda")
    moments.update(torch.tensor([[torch.nan], [2.0]], device="cuda"), torch.tensor([0, 1], device="cuda"))
    with pytest.raises(NonFiniteError):
        _ = moments.mean


def test_update_does_not_wait_for_the_device():
    moments = ClassMoments(10, 64, scatter=True, device="cuda")
    features, labels = torch.randn(256, 64, device="cuda"), torch.randint(10, (256,), device="cuda")
    moments.update(features, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moments.update(features, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
