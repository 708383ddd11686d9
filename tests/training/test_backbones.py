import pytest
import torch
from torch import nn

from tightframe._checks import ArgumentError
from tightframe.training import MLP, FreeFeatures, SmallCNN, TokenMean


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_mlp_layers():
    assert kinds(MLP(6, [5, 4])) == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU"]
    assert kinds(MLP(6, [5, 4], relu_last=False)) == kinds(MLP(6, [5, 4]))[:-1]
    assert kinds(MLP(6, [5], batch_norm=False)) == ["Flatten", "Linear", "ReLU"]
    assert kinds(MLP(6, [5], batch_norm=False, relu_last=False)) == ["Flatten", "Linear"]


def test_a_bias_stands_only_where_batch_norm_does_not_undo_it():
    assert MLP(6, [5])[1].bias is None
    assert MLP(6, [5], batch_norm=False)[1].bias is not None


def test_mlp_output():
    torch.manual_seed(0)
    model = MLP(6, [5, 4], batch_norm=False, relu_last=False)
    images = torch.randn(7, 1, 2, 3)
    expected = nn.functional.linear(
        (images.flatten(1) @ model[1].weight.T + model[1].bias).relu(), model[3].weight, model[3].bias
    )
    torch.testing.assert_close(model(images), expected)
    assert model.out_features == 4
    assert (model(images) < 0).any()
    assert (MLP(6, [5, 4])(images) >= 0).all()


@pytest.mark.parametrize("size", [8, 7, 1])
def test_small_cnn_output(size):
    torch.manual_seed(0)
    model = SmallCNN(2, [3, 5, 4]).eval()
    images = torch.randn(6, 2, size, size)
    maps = images
    for i in (0, 3, 6):
        maps = nn.functional.conv2d(maps, model[i].weight, stride=1 if i == 0 else 2, padding=1)
        maps = (maps / (1 + model[i + 1].eps) ** 0.5).relu()
    torch.testing.assert_close(model(images), maps.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
    assert model.out_features == 4
    assert model(images).shape == (6, 4)


def test_token_mean_embeds_the_mean_of_the_tokens():
    torch.manual_seed(0)
    model = TokenMean(10, 4, embedding=6).eval()
    tokens = torch.tensor([[1, 2, 2], [9, 0, 5]])
    projected = []
    model.project.register_forward_pre_hook(lambda module, args: projected.append(args[0]))
    assert model(tokens).shape == (2, 4)
    torch.testing.assert_close(projected[0], model.embedding.weight[tokens].mean(dim=1))
    assert model.out_features == 4


def test_token_mean_is_residual():
    torch.manual_seed(0)
    model = TokenMean(10, 4).eval()
    for block in model.blocks:
        nn.init.zeros_(block[3].weight)
        nn.init.zeros_(block[4].bias)
    tokens = torch.tensor([[1, 2, 2], [9, 0, 5]])
    torch.testing.assert_close(model(tokens), model.project(model.embedding(tokens) / 3))


def test_token_dropout_leaves_tokens_out_of_the_mean_in_training_alone():
    model = TokenMean(10, 4, embedding=3, token_dropout=0.5, dropout=0.0)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.arange(10.0).unsqueeze(1).expand(10, 3))
    projected = []
    model.project.register_forward_pre_hook(lambda module, args: projected.append(args[0][:, 0]))
    tokens = torch.tensor([[0, 9]]).repeat(400, 1)
    torch.manual_seed(0)
    model(tokens)
    assert set(projected[0].tolist()) == {0.0, 4.5, 9.0}
    assert (projected[0] == 9).sum() == pytest.approx(100, abs=30)
    model.eval()(tokens)
    assert projected[1].unique().tolist() == [4.5]


def test_a_sample_that_loses_all_its_tokens_is_finite():
    model = TokenMean(10, 4, token_dropout=1.0)
    assert model(torch.ones(8, 3, dtype=torch.long)).isfinite().all()


def test_free_features_are_looked_up_by_index_and_trained():
    model = FreeFeatures(4, 3)
    index = torch.tensor([2, 0])
    assert torch.equal(model(index), model.weight[index])
    model(index).sum().backward()
    assert model.weight.grad.tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3]
    assert model.out_features == 3
    assert [name for name, _ in model.named_parameters()] == ["weight"]


@pytest.mark.parametrize(("num_samples", "dim"), [(6, 4), (4, 6)])
def test_free_features_start_orthogonal_and_by_the_seed(num_samples, dim):
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables.append(FreeFeatures(num_samples, dim).weight.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    torch.testing.assert_close(torch.linalg.svdvals(tables[0]), torch.ones(4))


@pytest.mark.parametrize(("sizes", "name"), [((0, 4), "num_samples"), ((4, -1), "dim"), ((4, 2.5), "dim")])
def test_sizes_of_free_features_must_be_positive(sizes, name):
    with pytest.raises(ArgumentError, match=name):
        FreeFeatures(*sizes)


@pytest.mark.parametrize("make", [MLP, SmallCNN])
@pytest.mark.parametrize(
    "widths",
    [
        [0],
        [4, -1],
        [2.5],
        pytest.param([]),
    ],
)
def test_widths_must_be_positive(make, widths):
    with pytest.raises(ArgumentError, match="widths"):
        make(3, widths)
