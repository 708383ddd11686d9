import pytest
import torch
from torch import nn

from tests.probing.material import (
    GPT,
    INPUTS,
    REDUCE,
    Block,
    Conv1D,
    Encoder,
    K,
    cnn,
    mlp,
)
from tightframe.errors import ArgumentError, ShapeError
from tightframe.nn import SimplexETFClassifier
from tightframe.probing import Probe, linear_maps, match_layers


def taken(model, layers=None, inputs=INPUTS, mask=None, **options):
    with Probe(model, layers, **options) as probe, torch.no_grad():
        probe.mask = mask
        model(inputs.clone())
        return probe.take()


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), msg=name)


# --- taps ---


@pytest.mark.parametrize("tap", ["pre", "post"])
@pytest.mark.parametrize("inplace", [False, True])
def test_taps_of_an_mlp(tap, inplace):
    model = mlp(inplace)
    assert_same(taken(model, tap=tap), model.known(INPUTS, tap))


@pytest.mark.parametrize(("tap", "pooling"), [(t, p) for t in ("pre", "post") for p in ("flatten", "mean pixels")])
def test_taps_of_a_cnn(tap, pooling):
    model = cnn()
    assert_same(taken(model, tap=tap, pooling=pooling.split()[0]), model.known(INPUTS, tap, REDUCE[pooling]))


@pytest.mark.parametrize("make", [Encoder, GPT])
@pytest.mark.parametrize(("tap", "pooling"), [(t, p) for t in ("pre", "post") for p in ("mean tokens", "cls")])
def test_taps_of_transformers(make, tap, pooling):
    model = make()
    assert_same(taken(model, tap=tap, pooling=pooling.split()[0]), model.known(INPUTS, tap, REDUCE[pooling]))


def test_the_three_taps_are_three_different_things():
    model = mlp()
    taps = {tap: taken(model, ["0", "3"], tap=tap) for tap in ("input", "pre", "post")}
    assert torch.equal(taps["input"]["0"], INPUTS)
    assert torch.equal(taps["pre"]["0"], model[0](INPUTS).detach())
    assert torch.equal(taps["post"]["0"], model[:3](INPUTS).detach())
    assert torch.equal(taps["input"]["3"], taps["post"]["0"])
    assert torch.equal(taps["post"]["3"], taps["pre"]["3"])  # of the last layer named: its output


def test_post_is_what_the_next_layer_named_receives():
    model = mlp()
    assert torch.equal(taken(model, ["0", "5"], tap="post")["0"], model[:5](INPUTS).detach())


def test_the_last_output_is_seen_before_it_is_changed_in_place():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 6), nn.ReLU(inplace=True)).eval()
    known = [(model[0](x).relu().detach(), model[2](model[0](x).relu()).detach()) for x in (INPUTS, -INPUTS)]
    with Probe(model, ["0", "2"], tap="post") as probe, torch.no_grad():
        for inputs, (hidden, last) in zip((INPUTS, -INPUTS), known, strict=True):  # the second knows which is the last
            model(inputs)
            found = probe.take()
            torch.testing.assert_close(found["0"], hidden)
            torch.testing.assert_close(found["2"], last)
            assert (last < 0).any()


@pytest.mark.parametrize("tap", ["input", "post"])
def test_what_is_changed_in_place_after_its_capture_is_refused(tap):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x).relu()
            x += self.second(x)
            return x

    model = Residual()
    with pytest.raises(ArgumentError, match="changed in place"):
        taken(model, ["first", "second"], tap=tap)
    found = taken(model, ["first", "second"], tap="pre")
    torch.testing.assert_close(found["first"], model.first(INPUTS).detach())


def test_captures_inside_inference_mode():
    model = mlp(inplace=True)
    with torch.inference_mode(), Probe(model, None, tap="pre") as probe:
        model(INPUTS)
        found = probe.take()
    assert_same(found, model.known(INPUTS, "pre"))


# --- order ---


class Backwards(nn.Module):
    """Runs its layers from the last to the first, with another order for negative sums."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        for layer in reversed(self.layers) if x.sum() > 0 else self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("tap", ["input", "pre", "post"])
def test_layers_are_in_the_order_of_execution(tap):
    model = Backwards()
    assert list(taken(model, ["layers.*"], INPUTS.abs(), tap=tap)) == ["layers.2", "layers.1", "layers.0"]
    found = taken(model, ["layers.2", "layers.*"], -INPUTS.abs(), tap=tap)
    assert list(found) == ["layers.0", "layers.1", "layers.2"]
    if tap == "post":
        torch.testing.assert_close(found["layers.0"], model.layers[0](-INPUTS.abs()).detach())
        torch.testing.assert_close(found["layers.2"], model(-INPUTS.abs()).detach())


def test_all_linear_maps_are_those_that_run():
    model = Backwards()
    with Probe(model, None, tap="post") as probe:
        for sign in (1, -1):
            model(sign * INPUTS.abs())
            assert set(probe.take()) == {"layers.0", "layers.1", "layers.2"}
        with pytest.raises(ArgumentError, match="captured nothing"):
            probe.take()


def test_no_linear_map_at_all():
    with pytest.raises(ArgumentError, match="captured nothing"):
        taken(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("tap", ["pre", "post"])
def test_a_layer_that_runs_twice_has_no_place_in_the_order(tap):
    class Shared(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.shared, self.other, self.between = nn.Linear(4, 4), nn.Linear(4, 4), between

        def forward(self, x):
            x = self.shared(x)
            return self.shared(self.other(x) if self.between else x)

    for between in (False, True):
        with pytest.raises(ArgumentError, match="'shared' ran twice"):
            taken(Shared(between), ["shared"] + ["other"] * between, tap=tap)


def test_layers_inside_each_other_have_no_next():
    model = nn.Sequential(Block(), nn.Linear(6, K))
    with pytest.raises(ArgumentError, match=r"'0\.mlp\.0' inside '0'"):
        Probe(model, ["0.mlp.*", "0", "1"], tap="post")
    with pytest.raises(ArgumentError, match="inside ''"):
        Probe(model, ["", "1"], tap="post")
    x = torch.randn(3, 4, 6)
    assert list(taken(model, ["0", "0.mlp.0"], x, tap="pre", pooling="mean")) == ["0.mlp.0", "0"]  # as they finish


# --- names ---


def test_patterns():
    model = GPT()
    assert match_layers(model, ["blocks.*"]) == ["blocks.0", "blocks.1"]
    assert match_layers(model, ["blocks.*.mlp.[02]"]) == [f"blocks.{i}.mlp.{j}" for i in (0, 1) for j in (0, 2)]
    assert match_layers(model, ["head", "blocks.?.attn_*", "he*"]) == [
        "head",
        *(f"blocks.{i}.attn_{way}" for i in (0, 1) for way in ("out", "in")),
    ]
    assert match_layers(model, []) == []


@pytest.mark.parametrize(
    ("pattern", "near"), [("blocks.*.mpl", "'blocks.0.mlp'"), ("haed", "near it are 'head'"), ("*.*.*.*.*", "it has")]
)
def test_a_pattern_that_names_nothing(pattern, near):
    with pytest.raises(ArgumentError, match="layers must name modules of the model, got") as error:
        match_layers(GPT(), ["head", pattern])
    assert near in str(error.value)
    assert repr(pattern) in str(error.value)


def test_linear_maps_of_every_kind():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.ReLU(),
        nn.Linear(2, 2),
        Conv1D(2, 2),
        nn.BatchNorm1d(2),
        mlp(),
        SimplexETFClassifier(5, K),
    )
    assert linear_maps(model) == ["0", "2", "3", "5.0", "5.3", "5.5", "6"]
    assert linear_maps(nn.Linear(2, 2)) == [""]


def test_a_map_inside_another_is_its_own_business():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.down = nn.Linear(4, 1)

        def forward(self, x):
            return super().forward(x) + self.down(x)

    assert linear_maps(nn.Sequential(Adapted(), nn.Linear(4, 2))) == ["0", "1"]


# --- what a layer may give ---


class Gives(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Around(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.inner = Gives(make)

    def forward(self, x):
        self.inner(x)


@pytest.mark.parametrize("make", [lambda x: (x, None), lambda x: [x, 2 * x]])
def test_the_first_of_several_results(make):
    assert torch.equal(taken(Around(make), ["inner"], tap="pre")["inner"], INPUTS)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda x: {"x": x}, ArgumentError, "'inner' must give a tensor at tap='pre', got dict"),
        (lambda x: None, ArgumentError, "got NoneType"),
        (lambda x: x.sum(), ShapeError, r"layer 'inner': a layer's features must have shape \(B, d\)"),
    ],
)
def test_what_is_no_tensor_of_features(make, error, text):
    with pytest.raises(error, match=text):
        taken(Around(make), ["inner"], tap="pre")


def test_a_layer_that_is_given_nothing():
    class Alone(nn.Module):
        def forward(self):
            return INPUTS

    model = Alone()
    with pytest.raises(ArgumentError, match="must give a tensor at tap='input', got NoneType"), Probe(model, [""]):
        model()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"tap": "output"}, "'input', 'pre', 'post', got 'output'"), ({"pooling": "max"}, "pooling must be one of")],
)
def test_unknown_options(options, text):
    with pytest.raises(ArgumentError, match=text):
        Probe(mlp(), ["0"], **options)


# --- pooling ---

TOKENS = torch.arange(24.0).reshape(2, 3, 4)
MAPS = torch.arange(48.0).reshape(2, 3, 2, 4)
KEEP = torch.tensor([[1, 0, 1], [0, 1, 0]])


def pooled(module, value, pooling, mask=None):
    return taken(nn.Sequential(module), ["0"], value, mask, tap="input", pooling=pooling)["0"]


def test_poolings_of_tokens():
    layer = nn.Linear(4, 2)
    assert torch.equal(pooled(layer, TOKENS, "cls"), TOKENS[:, 0])
    assert torch.equal(pooled(layer, TOKENS, "mean"), TOKENS.mean(dim=1))
    assert torch.equal(pooled(layer, TOKENS, "flatten"), TOKENS.flatten(1))
    by_hand = torch.stack([(TOKENS[0, 0] + TOKENS[0, 2]) / 2, TOKENS[1, 1]])
    for mask in (KEEP, KEEP.bool(), KEEP.float()):
        assert torch.equal(pooled(layer, TOKENS, "mask", mask), by_hand)


def test_what_the_mask_leaves_out_may_be_anything():
    spoiled = TOKENS.where(KEEP.bool().unsqueeze(2), torch.nan)
    assert torch.equal(pooled(nn.Identity(), spoiled, "mask", KEEP), pooled(nn.Identity(), TOKENS, "mask", KEEP))


def test_the_first_token_holds_no_others_in_memory():
    assert pooled(nn.Linear(4, 2), TOKENS, "cls").untyped_storage().nbytes() == 4 * 2 * 4


def test_features_are_dimension_one_of_maps_and_the_last_of_a_linear_layer():
    assert torch.equal(pooled(nn.Conv2d(3, 1, 1), MAPS, "mean"), MAPS.mean(dim=(2, 3)))
    assert torch.equal(pooled(nn.ReLU(), MAPS, "mean"), MAPS.mean(dim=(2, 3)))
    assert torch.equal(pooled(nn.Linear(4, 2), MAPS, "mean"), MAPS.mean(dim=(1, 2)))
    assert torch.equal(pooled(nn.Conv1d(3, 1, 1), TOKENS, "mean"), TOKENS.mean(dim=2))
    assert torch.equal(pooled(nn.Conv2d(3, 1, 1), MAPS, None), MAPS.flatten(1))
    assert torch.equal(pooled(nn.Conv1d(3, 1, 1), TOKENS, None), TOKENS.flatten(1))


@pytest.mark.parametrize("pooling", [None, "flatten", "mean", "cls", "mask"])
def test_vectors_need_no_pooling(pooling):
    assert torch.equal(pooled(nn.Linear(4, 2), INPUTS, pooling), INPUTS)


def test_means_are_not_rounded_to_half_precision():
    value = torch.full((1, 3, 1), 2048.0).half()
    value[0, 0] = 2050
    assert pooled(nn.Identity(), value, "mean").item() == pytest.approx(2048 + 2 / 3, rel=1e-6)
    assert pooled(nn.Identity(), value, "mask", torch.tensor([[1, 1, 0]])).item() == 2049


@pytest.mark.parametrize(
    ("module", "value", "pooling", "mask", "error", "text"),
    [
        (nn.Linear(4, 2), TOKENS, None, None, ArgumentError, "need a pooling: pass 'cls', 'mean' or 'mask'"),
        (nn.Conv2d(3, 1, 1), MAPS, "cls", None, ArgumentError, "'cls' is for tokens .*'flatten' or 'mean'"),
        (nn.Conv1d(3, 1, 1), TOKENS, "mask", KEEP, ArgumentError, "pooling='mask' is for tokens"),
        (nn.Linear(4, 2), TOKENS, "mask", None, ShapeError, r"mask of shape \(B, T\) = \(2, 3\), got None"),
        (nn.Linear(4, 2), TOKENS, "mask", KEEP[:, :2], ShapeError, r"got \(2, 2\)"),
    ],
)
def test_poolings_that_do_not_apply(module, value, pooling, mask, error, text):
    with pytest.raises(error, match=f"layer '0': .*{text}"):
        pooled(module, value, pooling, mask)
