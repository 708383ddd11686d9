"""Vision transformers of timm, whose extra needs an environment of its own."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from tightframe.surgery import etf_transformer_, parameter_report, truncate

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)
try:
    import torchvision  # noqa: F401
except RuntimeError:  # one from PyPI does not bring its operators to a CPU build of torch; timm needs their names alone
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
timm = pytest.importorskip("timm")

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}
    return timm.models.vision_transformer.VisionTransformer(**sizes)


def test_feed_forward_layers_are_found():
    model = vit()
    locks = etf_transformer_(model)
    assert [lock.name for lock in locks] == [f"blocks.{i}.mlp.fc{j}" for i in range(3) for j in (1, 2)]
    assert {lock.shape for lock in locks} == {(64, 16), (16, 64)}


def test_trains_saves_and_comes_back(tmp_path):
    model = vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    locks = etf_transformer_(model, optimizer=optimizer)
    before = {lock.name: model.get_submodule(lock.name).weight.detach().clone() for lock in locks}
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in before.items())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = vit()
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    torch.testing.assert_close(again.eval()(IMAGES), model.eval()(IMAGES))
    assert not any(lock.distance for lock in etf_transformer_(again))


def test_truncated_after_a_block():
    model = vit().eval()
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 3))  # four patches and the class token
    truncated = truncate(model, "blocks.0", classifier, IMAGES, tap="pre")
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(IMAGES)
    torch.testing.assert_close(truncated(IMAGES), classifier(seen[0]))
    blocks = sum(parameter_report(model.blocks[i]).trainable for i in (1, 2))
    assert parameter_report(truncated.trunk).trainable <= parameter_report(model).trainable - blocks
