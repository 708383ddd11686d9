import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional

from tests.training.models import TRAIN, VALIDATION, K, module, ordered, quiet, sgd, trainer
from tightframe.errors import ArgumentError
from tightframe.nn import DotRegressionLoss, LinearClassifier, LogitAdjustedCrossEntropy, SimplexETFClassifier
from tightframe.training import MLP, ClassifierModule, make_loader

pytestmark = quiet
INPUTS, LABELS = TRAIN.tensors
COUNTS = LABELS.bincount(minlength=K)


def loss_of(model, inputs=INPUTS, labels=LABELS):
    """The training loss of one batch outside any Trainer, which logging would need."""
    model.log = lambda *args, **kwargs: None
    return model.training_step((inputs, labels), 0)


def metrics_of(model, train=TRAIN, evaluation=(VALIDATION,), batch_size=10, **options):
    """What one epoch logs, by name."""
    fitted = trainer(max_epochs=1, **options)
    fitted.fit(model, make_loader(train, batch_size, seed=0), [ordered(part) for part in evaluation])
    return {name: value.item() for name, value in fitted.callback_metrics.items()}


def test_forward_is_classifier_after_backbone():
    model = module()
    assert torch.equal(model(INPUTS), model.classifier(model.backbone(INPUTS)))


# --- the loss of a batch ---


def test_cross_entropy():
    model = module()
    assert torch.equal(loss_of(model), functional.cross_entropy(model(INPUTS), LABELS))


def test_any_module_of_logits_and_labels():
    loss = LogitAdjustedCrossEntropy(COUNTS)
    model = module(loss=loss)
    expected = functional.cross_entropy(model(INPUTS) + (COUNTS / COUNTS.sum()).log(), LABELS)
    torch.testing.assert_close(loss_of(model), expected)


def test_a_feature_loss_sees_features_and_classifier():
    classifier = SimplexETFClassifier(5, K, seed=3)
    model = module(classifier=classifier, loss=DotRegressionLoss())
    cosines = functional.cosine_similarity(model.backbone(INPUTS), classifier.weight[LABELS])
    torch.testing.assert_close(loss_of(model), ((cosines - 1) ** 2 / 2).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, DotRegressionLoss])
def test_gradients_are_those_of_the_loss_alone(loss):
    model = module(loss=loss())
    loss_of(model).backward()
    gradients = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()
    features = model.backbone(INPUTS)
    if isinstance(model.loss, DotRegressionLoss):
        model.loss(features, LABELS, model.classifier).backward()
    else:
        model.loss(model.classifier(features), LABELS).backward()
    for gradient, p in zip(gradients, model.backbone.parameters(), strict=True):
        assert torch.equal(gradient, p.grad)


def drawn(alpha, n):
    """Share and partners as mixup draws them."""
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return share, torch.randperm(n)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_mixup_of_cross_entropy(alpha):
    model = module(mixup_alpha=alpha)
    torch.manual_seed(5)
    loss = loss_of(model)
    torch.manual_seed(5)
    share, partner = drawn(alpha, LABELS.numel())
    soft = share * functional.one_hot(LABELS, K) + (1 - share) * functional.one_hot(LABELS[partner], K)
    expected = functional.cross_entropy(model(share * INPUTS + (1 - share) * INPUTS[partner]), soft)
    assert 0.01 < share < 0.99
    torch.testing.assert_close(loss, expected)


def test_mixup_of_a_feature_loss():
    model = module(classifier=SimplexETFClassifier(5, K), loss=DotRegressionLoss(balancing="batch"), mixup_alpha=1.0)
    torch.manual_seed(5)
    loss = loss_of(model)
    torch.manual_seed(5)
    share, partner = drawn(1.0, LABELS.numel())
    features = model.backbone(share * INPUTS + (1 - share) * INPUTS[partner])
    first, second = (model.loss(features, labels, model.classifier) for labels in (LABELS, LABELS[partner]))
    torch.testing.assert_close(loss, share * first + (1 - share) * second)


def test_mixup_of_integers_is_refused():
    model = module(mixup_alpha=1.0)
    with pytest.raises(ArgumentError, match="mixup"):
        loss_of(model, torch.ones(9, 4, dtype=torch.long), LABELS[:9])


def test_mixup_alpha_must_not_be_negative():
    with pytest.raises(ArgumentError, match="mixup_alpha must be >= 0, got -1"):
        module(mixup_alpha=-1)


# --- what is logged ---


def test_metrics_of_evaluation_are_those_computed_by_hand():
    model = module(splits=["validation", "test"], lr=0.01)
    logged = metrics_of(model, evaluation=(VALIDATION, TRAIN))
    model.eval()
    for split, (inputs, labels) in {"validation": VALIDATION.tensors, "test": TRAIN.tensors}.items():
        logits = model(inputs)
        correct = logits.argmax(dim=1) == labels
        assert logged[f"{split}/accuracy"] == pytest.approx(correct.float().mean().item())
        by_class = [correct[labels == k].float().mean().item() for k in range(K)]
        assert logged[f"{split}/class_mean_accuracy"] == pytest.approx(sum(by_class) / K)
        assert logged[f"{split}/loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert logged["validation/accuracy"] != pytest.approx(logged["validation/class_mean_accuracy"], abs=1e-4)
    names = {f"{split}/{m}" for split in ("validation", "test") for m in ("accuracy", "class_mean_accuracy", "loss")}
    assert logged.keys() == names | {"train/accuracy", "train/loss"}


def test_metrics_of_training_batches_are_those_computed_by_hand():
    model = module(lr=0.0)
    logged = metrics_of(model, batch_size=12)
    logits = model(INPUTS)
    assert LABELS.numel() == 60  # five whole batches, so that none is dropped
    assert logged["train/accuracy"] == pytest.approx((logits.argmax(dim=1) == LABELS).float().mean().item())
    assert logged["train/loss"] == pytest.approx(functional.cross_entropy(logits, LABELS).item(), rel=1e-5)


def test_a_feature_loss_logs_the_same_metrics():
    model = module(classifier=SimplexETFClassifier(5, K), loss=DotRegressionLoss(), lr=0.0)
    logged = metrics_of(model, batch_size=12)
    assert logged["train/accuracy"] == pytest.approx((model(INPUTS).argmax(dim=1) == LABELS).float().mean().item())
    inputs, labels = VALIDATION.tensors
    expected = model.loss(model.backbone(inputs), labels, model.classifier).item()
    assert logged["validation/loss"] == pytest.approx(expected, rel=1e-5)


def test_under_mixup_there_is_no_training_accuracy():
    logged = metrics_of(module(mixup_alpha=1.0))
    assert "train/loss" in logged
    assert "train/accuracy" not in logged


# --- optimiser and scheduler ---


def test_only_what_requires_gradients_is_optimised():
    seen = []
    model = module()
    model._optimizer = lambda parameters: seen.extend(parameters) or sgd(0.1)(seen)
    model.backbone[0].weight.requires_grad_(False)
    model.configure_optimizers()
    assert {id(p) for p in seen} == {id(p) for p in [model.backbone[0].bias, *model.classifier.parameters()]}


def test_a_scheduler_is_built_for_all_steps_and_stepped_every_step():
    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def scheduler(optimizer, steps):
        horizon.append(steps)
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    rates, horizon = [], []
    torch.manual_seed(0)
    model = ClassifierModule(
        MLP(4, [5]), LinearClassifier(5, K), nn.CrossEntropyLoss(), sgd(0.1), scheduler, splits=["validation"]
    )
    trainer(Rates(), max_epochs=3).fit(model, make_loader(TRAIN, 10, seed=0), ordered())
    assert horizon == [18]
    assert rates == pytest.approx([0.1 * (1 - step / 18) for step in range(18)])


# --- random numbers ---


class Draws(nn.Module):
    """A backbone that notes a random number of every training step."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.drawn = []

    def forward(self, inputs):
        if self.training:
            self.drawn.append(torch.rand(()).item())
        return self.linear(inputs)


def draws(seed, start=0):
    torch.manual_seed(start)
    model = ClassifierModule(Draws(), LinearClassifier(5, K), nn.CrossEntropyLoss(), sgd(0.1), seed=seed)
    trainer(max_epochs=2).fit(model, make_loader(TRAIN, 20, seed=0), ordered())
    return model.backbone.drawn


def test_random_numbers_depend_on_seed_and_step_alone():
    first = draws(seed=1)
    assert len(set(first)) == len(first) == 6
    assert draws(seed=1, start=9) == first


def test_every_seed_has_its_own_random_numbers():
    # PyTorch's CPU generator drops all but the low 32 bits of its seed.
    assert not set(draws(seed=0)) & set(draws(seed=1))


def test_without_a_seed_the_generator_is_left_alone():
    assert draws(seed=None, start=0) == draws(seed=None, start=0)
    assert draws(seed=None, start=0) != draws(seed=None, start=9)
