"""What the nearest ETF does on a CUDA device: the same as on the CPU."""

import copy

import pytest
import torch

from tightframe.frames import nearest_simplex_etf, simplex_etf
from tightframe.nn import NearestETFClassifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

K, d = 20, 64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weakest", [1.0, 1e-6])  # the Gram matrix, and the singular value decomposition
def test_frame_and_gradient_are_those_of_the_cpu(weakest):
    scale = torch.logspace(0, torch.tensor(weakest).log10().item(), K, dtype=torch.float64)[:, None]
    results = []
    for device in ("cpu", "cuda"):
        means = (draw(3, K, d) * scale).to(device).requires_grad_()
        nearest = nearest_simplex_etf(means, previous=simplex_etf(K, d, device=device), proximal=0.1)
        nearest.frame.backward(draw(3, K, d, seed=1).to(device))
        results.append(
            [x.detach().cpu() for x in (nearest.frame, nearest.alignment, nearest.smallest_singular_value, means.grad)]
        )
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cpu, cuda, rtol=1e-5, atol=1e-7 * cpu.abs().max().item())


def test_undetermined_directions_are_those_of_the_cpu():
    means = draw(K, d)
    means[K // 2 :] = 0
    cpu, cuda = nearest_simplex_etf(means), nearest_simplex_etf(means.cuda())
    assert cpu.rank == cuda.rank == K // 2
    torch.testing.assert_close(cpu.frame @ means.T, (cuda.frame.cpu()) @ means.T)


@pytest.mark.parametrize("gradient", ["none", "exact"])
def test_training_steps_are_those_of_the_cpu(gradient):
    cpu = NearestETFClassifier(d, K, gradient=gradient, proximal=0.1, dtype=torch.float64)
    cuda = copy.deepcopy(cpu).cuda()
    for step in range(3):
        labels = torch.arange(4 * K) % K
        grads = []
        for classifier, device in ((cpu, "cpu"), (cuda, "cuda")):
            features = draw(4 * K, d, seed=step).to(device).requires_grad_()
            torch.nn.functional.cross_entropy(classifier(features, labels.to(device)), labels.to(device)).backward()
            grads.append(features.grad.cpu())
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)
    for name, value in cpu.state_dict().items():
        torch.testing.assert_close(value, cuda.state_dict()[name].cpu())


def test_bad_features_raise_and_change_nothing():
    classifier = NearestETFClassifier(d, K).cuda()
    before = copy.deepcopy(classifier.state_dict())
    features = torch.full((4, d), torch.nan, device="cuda")
    with pytest.raises(ValueError, match="finite"):
        classifier(features, torch.arange(4, device="cuda"))
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_half_precision_under_autocast():
    classifier = NearestETFClassifier(d, K).cuda()
    with torch.autocast("cuda", torch.float16):
        logits = classifier(draw(4 * K, d).half().cuda(), torch.arange(4 * K, device="cuda") % K)
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()
    assert classifier.tracker.class_means.dtype == torch.float64
