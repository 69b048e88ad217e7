"""BatchNorm over the images of a step, whichever process has them.

torch's own SyncBatchNorm is for GPUs; this one needs no more than sums over the processes, so that a training means
the same in one process and in several, on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from featx.distributed.process_group import together


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias over all processes.

    Source:
        Ioffe & Szegedy, ICML 2015; the backward pass is theirs with sums over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, ...) -> the same; and mean (C,), biased variance (C,) and number of values per channel, float32."""
        zeros = torch.zeros(inputs.shape[1], device=inputs.device)  # float32, and so the statistics of bf16 are, too
        own_mean, own_var = torch.batch_norm_update_stats(inputs, zeros, torch.ones_like(zeros), 0.0)
        own = zeros.new_full((1,), inputs.numel() / inputs.shape[1])
        sums = torch.cat([own_mean * own, own])
        with together():
            dist.all_reduce(sums)
        count, mean = sums[-1:], sums[:-1] / sums[-1:]
        # About the common mean, not as a difference of large sums.
        squares = own * (own_var + (own_mean - mean).square())
        with together():
            dist.all_reduce(squares)
        var = squares / count
        outputs = F.batch_norm(inputs, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(inputs, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return outputs, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        inputs, weight, mean, var, count = ctx.saved_tensors
        factor = torch.ones_like(mean) if weight is None else weight
        scale = (var + ctx.eps).rsqrt()
        # As if the own images were all there are, but about the common mean, ...
        back, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0].to(inputs.dtype), inputs, factor, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        own = torch.stack([to_weight, to_bias])
        sums = own.clone()
        with together():
            dist.all_reduce(sums)
        # ... and what the others add: a multiple of the normalised inputs and a constant, small beside the rest.
        others = factor * scale * (own / (inputs.numel() / inputs.shape[1]) - sums / count)
        back += F.batch_norm(inputs, mean, var, others[0], others[1], False, 0.0, ctx.eps)
        return back, None if weight is None else to_weight, None if weight is None else to_bias, None


class _Shared(nn.modules.batchnorm._BatchNorm):
    """What is different in training mode."""

    # torch.compile (2.14) loses the sums over the processes, and says nothing.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return super().forward(inputs)
        self._check_input_dim(inputs)  # type: ignore[no-untyped-call]  # torch's own
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _Normalise.apply(inputs, self.weight, self.bias, self.eps)
        outputs, mean, var, count = found
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * (count / (count - 1).clamp_min(1)), share)
        return outputs


class _Shared1d(_Shared, nn.BatchNorm1d):
    pass


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


class _Shared3d(_Shared, nn.BatchNorm3d):
    pass


_SHARED: dict[type[nn.Module], type[_Shared]] = {
    nn.BatchNorm1d: _Shared1d,
    nn.BatchNorm2d: _Shared2d,
    nn.BatchNorm3d: _Shared3d,
}


def share_batch_norm(network: nn.Module) -> None:
    """Let the BatchNorms of a network see the images of all processes, in place.

    The modules stay the same objects with the same names and tensors: parts that were cut out of the network, and
    whatever else holds them, hold them still.
    """
    for module in network.modules():
        if type(module) in _SHARED:
            module.__class__ = _SHARED[type(module)]  # a subclass without state of its own
