"""Models as people write them, each with its classifier's true input, weight and bias."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.problems import draw
from tightframe import nn as tn
from tightframe.frames import barz_denzler_frame, hierarchy_aware_frame
from tightframe.hierarchy import Tree

K, D, N, BATCH = 4, 6, 46, 10
LABELS = torch.arange(N).square() % 13 % K
VECTORS = draw(N, 5, seed=1) + 1.5 * F.one_hot(LABELS, 5)
SEQUENCES = VECTORS.unsqueeze(1) * draw(3, 1, seed=2) + 0.1 * draw(N, 3, 5, seed=3)
IMAGES = VECTORS[:, :3, None, None] * draw(6, 6, seed=4) + 0.3 * draw(N, 3, 6, 6, seed=5)
TEXTS = (VECTORS @ draw(5, 7, seed=6)).abs().long().clamp(1, 9)


class Case(NamedTuple):
    """A model and what is true of it.

    Args:
        model: any module.
        features: function from inputs to what the class vectors meet, ``(…, d)``.
        weight: ``(K, d)``.
        bias: ``(K,)``, or None.
        inputs: of the N samples.
        labels: theirs.
        options: of ``measure``.
        affine: whether the output is the affine map of the features, up to a factor, a constant per row and a log.
        output: function from what the model returns to logits or probabilities.
        probabilities: whether it returns these.
        prepared: whether the classifier prepares its features, so that their tap is not its input.
    """

    model: nn.Module
    features: Any
    weight: Any
    bias: Any = None
    inputs: Any = VECTORS
    labels: Any = LABELS
    options: Any = {}  # noqa: RUF012
    affine: bool = True
    output: Any = lambda out: out
    probabilities: bool = False
    prepared: bool = False


class Net(nn.Module):
    """Modules in the order in which they are registered, and a function that runs them."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, x):
        return self.run(self, x)


def body():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, D))


def plain(run=lambda m, x: m.fc(m.body(x)), *, order=("body", "fc"), head=None, more=None, **truth):
    """Return a case of a body and ``fc``, whose true features are the body's output."""
    parts = {"body": body(), "fc": head or nn.Linear(D, K)}
    net = Net(run, **{name: parts[name] for name in order}, **(more or {}))
    weight, bias = net.fc.weight, getattr(net.fc, "bias", None)
    return Case(net, **{"features": lambda x: net.body(x), "weight": weight, "bias": bias} | truth)


# --- what stands before the classifier ---


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


def resnet():
    blocks = nn.Sequential(Block(3, 4, 1), Block(4, D, 2))
    net = Net(
        lambda m, x: m.fc(m.avgpool(m.layers(x)).flatten(1)),
        layers=blocks,
        avgpool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(D, K),
    )
    return Case(net, lambda x: net.layers(x).mean(dim=(2, 3)), net.fc.weight, net.fc.bias, IMAGES)


def squeezenet():
    head = nn.Sequential(nn.Dropout(), nn.Conv2d(D, K, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    net = Net(lambda m, x: m.classifier(m.features(x)).flatten(1), features=nn.Conv2d(3, D, 3), classifier=head)
    conv = net.classifier[1]
    nn.init.constant_(conv.bias, 0.5)
    truth = {"inputs": IMAGES, "options": {"classifier": "classifier.1"}, "affine": False}
    return Case(net, lambda x: net.features(x).mean(dim=(2, 3)), conv.weight.flatten(1), conv.bias, **truth)


def bit():
    head = nn.Sequential()
    for name, part in (("global_pool", nn.AdaptiveAvgPool2d(1)), ("fc", nn.Conv2d(D, K, 1)), ("flat", nn.Flatten())):
        head.add_module(name, part)
    net = Net(lambda m, x: m.head(m.stem(x)), stem=nn.Conv2d(3, D, 3), head=head)
    conv = net.head.fc
    return Case(net, lambda x: net.stem(x).mean(dim=(2, 3)), conv.weight.flatten(1), conv.bias, IMAGES)


def lstm():
    net = Net(lambda m, x: m.fc(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(5, D, batch_first=True), fc=nn.Linear(D, K))
    return Case(net, lambda x: net.lstm(x)[0][:, -1], net.fc.weight, net.fc.bias, SEQUENCES)


def distilled(**options):
    def tokens(m, x):
        return m.encoder(torch.cat([m.cls.expand(len(x), 2, D), m.embed(x)], dim=1))

    def run(m, x):
        found = tokens(m, x)
        one, other = m.head(found[:, 0]), m.head_dist(found[:, 1])
        return (one, other) if m.training else (one + other) / 2

    encoder = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)
    net = Net(run, embed=nn.Linear(5, D), encoder=encoder, head=nn.Linear(D, K), head_dist=nn.Linear(D, K))
    net.cls = nn.Parameter(draw(2, D))
    truth = {"inputs": SEQUENCES, "options": options, "affine": False}
    return Case(net, lambda x: tokens(net, x)[:, 0], net.head.weight, net.head.bias, **truth)


def tokens():
    labels = (TEXTS * 3 + LABELS.unsqueeze(1)) % K
    labels[TEXTS == 1] = -100
    more = {"embed": nn.Embedding(10, 5)}
    case = plain(lambda m, x: m.fc(m.body(m.embed(x))), more=more, inputs=TEXTS, labels=labels)
    return case._replace(features=lambda x: case.model.body(case.model.embed(x)), options={"ignore_index": -100})


def score():
    """Every token is scored, and the score of the last one that is no padding returned."""
    lengths = 2 + torch.arange(N) % 6
    texts = TEXTS.where(torch.arange(7) < lengths.unsqueeze(1), 0)

    def last(values, x):
        return values[torch.arange(len(x)), (x != 0).sum(dim=1) - 1]

    def hidden(m, x):
        return m.body(m.embed(x).cumsum(dim=1))

    net = Net(
        lambda m, x: last(m.score(hidden(m, x)), x),
        embed=nn.Embedding(10, 5),
        body=body(),
        score=nn.Linear(D, K, bias=False),
    )
    return Case(net, lambda x: last(hidden(net, x), x), net.score.weight, inputs=texts)


# --- the classifier itself ---


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(draw(K, D))

    def forward(self, x):
        return 10 * F.normalize(x) @ F.normalize(self.weight).T


class LoRA(nn.Module):
    def __init__(self, zero):
        super().__init__()
        self.base, self.a, self.b = nn.Linear(D, K), nn.Linear(D, 2, bias=False), nn.Linear(2, K, bias=False)
        if zero:
            nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.b(self.a(x))


def lora(zero):
    net = Net(lambda m, x: m.fc(m.body(x)), body=body(), fc=LoRA(zero))
    weight = net.fc.base.weight + 2 * net.fc.b.weight @ net.fc.a.weight
    return Case(net, lambda x: net.body(x), weight, net.fc.base.bias)


def bare_cosine():
    net = Net(lambda m, x: 10 * F.normalize(m.body(x)) @ F.normalize(m.prototypes).T, body=body())
    net.prototypes = nn.Parameter(draw(K, D))
    options = {"classifier": (net.prototypes, None), "features": "body"}
    return Case(net, lambda x: net.body(x), net.prototypes, options=options, affine=False)


def ema():
    case = plain()
    case.model.ema = copy.deepcopy(case.model)
    for parameter in case.model.ema.parameters():
        parameter.data += 0.1
    return case


def autocast():
    case = plain()
    case.model.float()

    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m(x)

    truth = {"features": lambda x: forward(case.model.body, x), "inputs": VECTORS.float(), "affine": False}
    return case._replace(**truth, options={"forward": forward})


def unit(h):
    return h / h.norm(dim=1, keepdim=True)


def nearest_etf():
    classifier = tn.NearestETFClassifier(D, K)
    classifier(VECTORS.float() @ draw(5, D).float(), LABELS)
    return classifier.eval()


TREE = Tree.from_nested({"E": ["A", "B"], "F": ["C", "D"]})
# Each with how it prepares features, and whether its output is affine in them.
OURS = {
    "LinearClassifier": (lambda: tn.LinearClassifier(D, K), None, True),
    "NormalizedLinear": (lambda: tn.NormalizedLinear(D, K), lambda m, h: unit(h), True),
    "SimplexETFClassifier": (lambda: tn.SimplexETFClassifier(D, K), lambda m, h: unit(h), True),
    "FrameClassifier": (lambda: tn.FrameClassifier(draw(K, D), normalize=False, scale=3.0), None, True),
    "NearestETFClassifier": (nearest_etf, lambda m, h: 5 * unit(h), True),
    "FrameClassifier of a hierarchy": (
        lambda: tn.FrameClassifier(hierarchy_aware_frame(TREE.distances(), D), normalize=False),
        None,
        True,
    ),
    "FrameClassifier of unit features": (
        lambda: tn.FrameClassifier(barz_denzler_frame(TREE.distances("height"), D)),
        lambda m, h: unit(h),
        True,
    ),
    "NodeClassifier": (lambda: tn.NodeClassifier(D, TREE), None, True),
    "ConditionalSoftmaxClassifier": (lambda: tn.ConditionalSoftmaxClassifier(D, TREE), None, False),
    "HierCOSClassifier": (lambda: tn.HierCOSClassifier(D, TREE), lambda m, h: (h @ m.rotation.T).abs(), False),
    "ETFLinear": (lambda: tn.ETFLinear(D, K), None, True),
}


def ours(name):
    make, prepare, affine = OURS[name]
    case = plain(head=make(), affine=affine)
    fc = case.model.fc
    return case if prepare is None else case._replace(features=lambda x: prepare(fc, case.model.body(x)), prepared=True)


def linear():
    return nn.Linear(D, K)


def equal_heads(m, x):
    h = m.body(x)
    return (m.fc(h), m.twin(h))[1]


def twin():
    case = plain(equal_heads, more={"twin": linear()})
    case.model.twin.load_state_dict(case.model.fc.state_dict())
    return case


MODELS = {
    "ResNet": resnet,
    "SqueezeNet": squeezenet,
    "BiT": bit,
    "LSTM": lstm,
    "distilled ViT": lambda: distilled(classifier="head"),
    "equal heads": twin,
    "head used on an earlier layer first": lambda: plain(lambda m, x: (m.fc(m.body(x) / 2), m.fc(m.body(x)))[1]),
    "cosine module": lambda: plain(head=Cosine(), affine=False),
    "cosine of a parameter": bare_cosine,
    "log-softmax": lambda: plain(lambda m, x: m.fc(m.body(x)).log_softmax(dim=1)),
    "softmax": lambda: plain(lambda m, x: m.fc(m.body(x)).softmax(dim=1), probabilities=True),
    "LoRA": lambda: lora(zero=False),
    "LoRA at its start": lambda: lora(zero=True),
    "EMA copy": ema,
    "auxiliary exit": lambda: plain(
        lambda m, x: (m.fc(m.body(x)), m.aux(m.body[0](x)))[0], more={"aux": nn.Linear(8, K)}
    ),
    "classifier registered first": lambda: plain(order=("fc", "body")),
    "tuple": lambda: plain(lambda m, x: (m.fc(m.body(x)), m.body(x)), output=lambda out: out[0]),
    "dict": lambda: plain(
        lambda m, x: {"hidden": m.body(x), "logits": m.fc(m.body(x))}, output=lambda out: out["logits"]
    ),
    "logits by key": lambda: plain(
        lambda m, x: {"hidden": m.body(x), "scores": m.fc(m.body(x))},
        output=lambda out: out["scores"],
        options={"logits": "scores"},
    ),
    "logits by index": lambda: plain(
        lambda m, x: (m.body(x), m.fc(m.body(x))), output=lambda out: out[1], options={"logits": 1}
    ),
    "bfloat16 autocast": autocast,
    "token labels": tokens,
    "score of the last token": score,
    **{name: lambda name=name: ours(name) for name in OURS},
}
