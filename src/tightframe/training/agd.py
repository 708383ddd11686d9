"""Automatic Gradient Descent: an optimiser without a learning rate, and the weights that it starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from tightframe.errors import ArgumentError, check_positive
from tightframe.frames.layers import check_gain
from tightframe.linalg import at_least_float32, haar_orthonormal


class AGD(Optimizer):
    r"""Automatic Gradient Descent (Bernstein et al., arXiv 2304.05187), with the gain of Markou et al., NeurIPS 2024.

    With :math:`s_l = \sqrt{out/in}`, divided by the side of the kernel (the root of its number of positions), and L
    tensors :math:`p_l`, a step is

    .. math::
        p_l \leftarrow p_l - \text{gain} \cdot \frac{\eta}{L}\, s_l \frac{g_l}{\lVert g_l \rVert}, \qquad
        \eta = \log \tfrac12 \bigl(1 + \sqrt{1 + 4 G}\bigr), \qquad
        G = \frac1L \sum_l s_l \lVert g_l \rVert .

    Norms are Frobenius norms over out and in, one for each position of a kernel; in G they are added up. A matrix whose
    gradient is zero stays where it is. So does a tensor without gradient, which counts in L all the same: clearing
    gradients to None or to zeros makes no difference.

    The step is derived for weights that start as :func:`scaled_orthogonal_` draws them. There is no learning rate for a
    scheduler to change.

    Args:
        params: tensors ``(out, in, ...)``, further dimensions being those of a kernel; or groups with a gain each.
        gain: positive factor of the step.

    Raises:
        ArgumentError: if there is no tensor, one has fewer than two dimensions (a bias, the scale of a norm layer), or
            ``gain`` is not a finite number > 0.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(4, 1))
        >>> optimizer = AGD([weight], gain=1.0)
        >>> weight.grad = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
        >>> optimizer.step()  # s = 2, so G = 2 and η = log 2
        >>> weight.detach().flatten().tolist()
        [-1.386..., 0.0, 0.0, 0.0]
    """

    def __init__(self, params: ParamsT, gain: float = 10.0) -> None:
        given: list[Any] = list(params)
        if not given:
            raise ArgumentError("params must hold at least one tensor, got none; is everything frozen?")
        super().__init__(given, {"gain": gain})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tensors, whose number counts in L; errors as in the constructor."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        check_gain(added["gain"])
        for parameter in added["params"]:
            _check_matrix(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Function that computes the loss and its gradients again.

        Returns:
            What the closure returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = [(p, group["gain"]) for group in self.param_groups for p in group["params"]]
        moving = [(p, p.grad, gain, _norms(p.grad)) for p, gain in tensors if p.grad is not None]
        if not moving:
            return loss
        device = moving[0][0].device
        mean = torch.stack([_scale(p) * norms.sum().to(device) for p, _, _, norms in moving]).sum() / len(tensors)
        # The log of half of 1 + sqrt(1 + 4G), in a form that keeps its digits for small G.
        eta = torch.log1p(2 * mean / (1 + torch.sqrt(1 + 4 * mean)))
        for parameter, gradient, gain, norms in moving:
            factor = gain * _scale(parameter) / len(tensors) * eta.to(parameter.device) / norms
            parameter.sub_(gradient * torch.where(norms == 0, 0.0, factor))
        return loss


def _scale(parameter: Tensor) -> float:
    """Return s_l, the spectral norm of every position of a kernel at the start."""
    outputs, inputs, *kernel = parameter.shape
    return math.sqrt(outputs / (inputs * math.prod(kernel)))


def _norms(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(at_least_float32(gradient), dim=(0, 1), keepdim=True)


def scaled_orthogonal_(parameters: Iterable[Tensor], seed: int = 0) -> None:
    r"""Overwrite tensors with the start of Automatic Gradient Descent.

    Each position of a kernel becomes a Haar-orthonormal matrix (columns if out >= in, else rows) times the
    :math:`s_l` of :class:`AGD`.

    Args:
        parameters: tensors ``(out, in, ...)``.
        seed: the values depend on it and on the order of the tensors alone, not on dtype or device.

    Raises:
        ArgumentError: if ``seed`` is not an integer >= 0 or a tensor has fewer than two dimensions; nothing is
            overwritten then.

    Example:
        >>> weight = torch.zeros(4, 1)
        >>> scaled_orthogonal_([weight])
        >>> round(weight.norm().item(), 6)  # one column of length 1 times sqrt(4 / 1)
        2.0
    """
    check_positive("seed", seed, 0)
    tensors = list(parameters)
    for tensor in tensors:
        _check_matrix(tensor)
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        outputs, inputs, *kernel = tensor.shape
        sizes = max(outputs, inputs), min(outputs, inputs)
        tall = [haar_orthonormal(*sizes, generator) for _ in range(math.prod(kernel))]
        start = _scale(tensor) * torch.stack([q if outputs >= inputs else q.T for q in tall], dim=-1)
        with torch.no_grad():
            tensor.copy_(start.reshape(tensor.shape))


def _check_matrix(parameter: Tensor) -> None:
    if parameter.ndim < 2:
        raise ArgumentError(
            f"parameters must have shape (out, in, ...), got {tuple(parameter.shape)}; AGD has no step for biases and "
            "norm scales: build layers with bias=False and norm layers with affine=False"
        )
