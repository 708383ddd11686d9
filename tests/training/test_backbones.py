import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError
from tightframe.surgery import etf_transformer_
from tightframe.training import MLP, FreeFeatures, SmallCNN, TokenMean, TokenTransformer


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


# --- TokenTransformer ---

WIDTH, LENGTH, WORDS = 8, 6, 11


def transformer(**changes):
    torch.manual_seed(0)
    return TokenTransformer(LENGTH, WORDS, WIDTH, **{"heads": 2, "feed_forward": 12, **changes})


def tokens(batch=5, length=LENGTH):
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


def test_token_transformer_is_the_encoder_of_pytorch_with_the_norm_first():
    model = transformer(dropout=0.0)
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for mine, theirs in (
            ("attention", "self_attn"),
            ("norm1",) * 2,
            ("norm2",) * 2,
            ("linear1",) * 2,
            ("linear2",) * 2,
        ):
            layer.get_submodule(theirs).load_state_dict(block.get_submodule(mine).state_dict())
        layers.append(layer)
    stream = model.tokens(tokens()) + model.positions
    for layer in layers:
        stream = layer(stream)
    features = model(tokens())
    torch.testing.assert_close(features, model.norm(stream).mean(dim=1))
    torch.testing.assert_close(model.eval()(tokens()), features)
    assert features.shape == (5, WIDTH)
    assert model.out_features == WIDTH
    assert model(tokens(length=4)).shape == (5, WIDTH)


def test_dropout_acts_in_training_alone():
    model = transformer(dropout=0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(model.eval()(tokens()), model(tokens()))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("feed_forward", [0, 12])
def test_token_transformer_has_the_parameters_it_should(blocks, feed_forward):
    model = transformer(blocks=blocks, feed_forward=feed_forward)
    attention = 4 * WIDTH * WIDTH + 4 * WIDTH + 2 * WIDTH
    ff = 2 * WIDTH * feed_forward + feed_forward + WIDTH + 2 * WIDTH if feed_forward else 0
    expected = (WORDS + LENGTH) * WIDTH + blocks * (attention + ff) + 2 * WIDTH
    assert sum(p.numel() for p in model.parameters()) == expected
    model(tokens()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_block_without_feed_forward_is_attention_alone():
    model = transformer(blocks=1, feed_forward=0, dropout=0.0)
    stream = model.tokens(tokens()) + model.positions
    normed = model.blocks[0].norm1(stream)
    stream = stream + model.blocks[0].attention(normed, normed, normed)[0]
    torch.testing.assert_close(model(tokens()), model.norm(stream).mean(dim=1))


@pytest.mark.parametrize(
    ("which", "layers"), [("w1", ["linear1"]), ("w2", ["linear2"]), ("both", ["linear1", "linear2"])]
)
def test_its_feed_forward_layers_are_found(which, layers):
    model = transformer()
    found = [lock.name for lock in etf_transformer_(model, which)]
    assert found == [f"blocks.{i}.{layer}" for i in (0, 1) for layer in layers]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [f"{name}.weight" for name in found]


def test_without_feed_forward_there_is_none_to_lock():
    with pytest.raises(ArgumentError, match="no feed-forward layers were found"):
        etf_transformer_(transformer(feed_forward=0))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"blocks": 0}, "blocks must be an integer >= 1"),
        ({"heads": 0}, "heads must be an integer >= 1"),
        ({"heads": 3}, "dim must be a multiple of heads, got 8 and 3"),
        ({"feed_forward": -1}, "feed_forward must be an integer >= 0"),
        ({"feed_forward": 1.5}, "feed_forward"),
    ],
)
def test_sizes_that_no_transformer_has(changes, text):
    with pytest.raises(ArgumentError, match=text):
        transformer(**changes)


@pytest.mark.parametrize(("place", "name"), [(0, "in_features"), (1, "vocabulary"), (2, "dim")])
def test_lengths_and_widths_must_be_positive(place, name):
    sizes = [LENGTH, WORDS, WIDTH]
    sizes[place] = 0
    with pytest.raises(ArgumentError, match=f"{name} must be an integer >= 1"):
        TokenTransformer(*sizes)
