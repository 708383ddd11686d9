"""ClassifierModule: backbone, classifier and loss as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tightframe.errors import ArgumentError
from tightframe.metrics import ConfusedPairs, HierarchicalMetrics
from tightframe.nn import Classifier, CosineGramLoss, FeatureLoss, NearestETFClassifier
from tightframe.runs.confusion import Confusion

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


class ClassifierModule(LightningModule):
    """A backbone and a classifier, trained by one loss.

    It logs ``loss`` and ``accuracy`` of the training batches, and ``loss``, ``accuracy`` and ``class_mean_accuracy`` of
    each evaluation split, as ``split/metric``.

    Args:
        backbone: Map from inputs to features ``(B, d)``.
        classifier: Map from features to logits ``(B, K)``.
        loss: A :class:`FeatureLoss` of ``(features, labels, classifier)``, or any module of ``(logits, labels)``.
        optimizer: Function from the trainable parameters to an optimizer.
        scheduler: Function from the optimizer and the total number of steps to a scheduler, advanced every step.
        mixup_alpha: Parameter of Beta(alpha, alpha), the share in which pairs of inputs and their losses are mixed; 0
            is off.
        splits: Names of the evaluation loaders, in their order.
        seed: Seed of the random numbers of step t, which then depend on ``(seed, t)`` alone, so that a resumed run
            repeats the uninterrupted one; None leaves PyTorch's generator alone.
        distances: Distances ``(K, K)`` between classes, to log :class:`~tightframe.metrics.HierarchicalMetrics` of each
            evaluation split too, and to keep its confusion; None for none.

    Attributes:
        confusions: Confusion of the last evaluation by split; empty without distances.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: Classifier,
        loss: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        mixup_alpha: float = 0.0,
        splits: Sequence[str] = ("validation",),
        seed: int | None = None,
        distances: Tensor | None = None,
    ) -> None:
        super().__init__()
        if mixup_alpha < 0:
            raise ArgumentError(f"mixup_alpha must be >= 0, got {mixup_alpha}")
        if mixup_alpha and isinstance(classifier, NearestETFClassifier):
            raise ArgumentError(
                f"mixup_alpha must be 0 with a NearestETFClassifier, got {mixup_alpha}: mixed features belong to the "
                "mean of no one class"
            )
        self.backbone = backbone
        self.classifier = classifier
        self.loss = loss
        self.mixup_alpha = mixup_alpha
        self.splits = list(splits)
        self.seed = seed
        self._optimizer = optimizer
        self._scheduler = scheduler
        num_classes = classifier.out_features
        self.train_loss = MeanMetric()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.evaluation = nn.ModuleList(
            MetricCollection(
                {
                    "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                    "class_mean_accuracy": MulticlassAccuracy(num_classes, average="macro"),
                    "loss": MeanMetric(),
                },
                prefix=f"{split}/",
                compute_groups=False,
            )
            for split in splits
        )
        known = distances is not None
        self.severity = nn.ModuleList(HierarchicalMetrics(cast("Tensor", distances)) for _ in splits if known)
        self.confused = nn.ModuleList(ConfusedPairs(num_classes) for _ in splits if known)
        self.confusions: dict[str, Confusion] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(B, K)``."""
        return self.classifier(self.backbone(inputs))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give the step its own random numbers."""
        if self.seed is not None:
            # PyTorch's CPU generator looks at the low 32 bits alone.
            torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        if isinstance(self.loss, CosineGramLoss):
            self.loss.set_epoch(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, mixed up if wanted."""
        inputs, labels = batch
        if not self.mixup_alpha:
            logits, loss = self.logits_and_loss(self.backbone(inputs), labels)
            self.train_accuracy.update(logits, labels)
            self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
            for name, value in self.classifier.diagnostics().items():
                self.log(f"train/{name}", value.double(), on_step=False, on_epoch=True, sync_dist=True)
        else:
            loss = self._mixup_loss(inputs, labels)
        self.train_loss.update(loss.detach(), weight=labels.numel())
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Project the classifier onto its constraint after the step."""
        self.classifier.project_()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of one split."""
        inputs, labels = batch
        logits, loss = self.logits_and_loss(self.backbone(inputs), labels)
        metrics = cast("MetricCollection", self.evaluation[dataloader_idx])
        metrics.update(preds=logits, target=labels, value=loss, weight=labels.numel())  # each takes what it knows
        self.log_dict(dict(metrics.items()), on_epoch=True, add_dataloader_idx=False)
        if self.severity:
            cast("HierarchicalMetrics", self.severity[dataloader_idx]).update(logits, labels)
            cast("ConfusedPairs", self.confused[dataloader_idx]).update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the severity of the mistakes of the evaluation, and keep its confusion."""
        for split, *modules in zip(self.splits, self.severity, self.confused, strict=False):
            metrics, confused = cast("HierarchicalMetrics", modules[0]), cast("ConfusedPairs", modules[1])
            self.log_dict({f"{split}/{name}": value for name, value in metrics.compute().items()})
            found = confused.compute()
            self.confusions[split] = Confusion(self.current_epoch + 1, found[:, :2], found[:, 2])
            metrics.reset()
            confused.reset()

    def configure_optimizers(self) -> Any:
        """Build optimizer and scheduler for the parameters that are trained."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        scheduler = self.schedule(optimizer, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return a new scheduler over a number of steps.

        Raises:
            ArgumentError: if the module has no scheduler.
        """
        if self._scheduler is None:
            raise ArgumentError(
                "scheduler must be given to make another one, got None; pass scheduler= to ClassifierModule"
            )
        return self._scheduler(optimizer, steps)

    def logits_and_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, K)`` and the loss, 0-d, of features ``(B, d)`` and labels ``(B,)``."""
        if isinstance(self.loss, FeatureLoss):
            # The logits come first: with the labels a classifier may move, and the loss is of where it is then.
            logits = self.classifier(features.detach(), labels)
            return logits, self.loss(features, labels, self.classifier)
        logits = self.classifier(features, labels)
        return logits, self.loss(logits, labels)

    def _mixup_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            raise ArgumentError(f"mixup_alpha must be 0 for inputs that cannot be mixed, got {inputs.dtype} inputs")
        share = torch.distributions.Beta(self.mixup_alpha, self.mixup_alpha).sample().item()
        partner = torch.randperm(labels.numel(), device=labels.device)
        features = self.backbone(inputs.lerp(inputs[partner], 1 - share))
        _, first = self.logits_and_loss(features, labels)
        _, second = self.logits_and_loss(features, labels[partner])
        return share * first + (1 - share) * second


def total_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of all epochs, whichever of them ``max_steps`` leaves to another call."""
    steps = int(trainer.estimated_stepping_batches)  # which makes the loaders
    if trainer.max_epochs in (None, -1):
        return steps
    return math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches) * trainer.max_epochs
