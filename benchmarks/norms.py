"""What the norms cost: a step of each against a step of PyTorch's.

We time forward and backward passes of `RunningBatchNorm` against `nn.BatchNorm2d`. For comparison,
we also time the same arithmetic with gradients by autograd, a `torch.autograd.Function` without any
arithmetic, and each of our norms from scratch against PyTorch's. The two layers of a pair take
turns step by step, so that both see the same machine. Each time is a median. It includes gradients
for inputs and parameters, which are cleared before each step.

Run it with nothing else going on: python benchmarks/norms.py [--threads 1]
"""
import statistics
import time
from functools import partial

import torch
from common import claim, options, where
from torch import nn

from minifastai.device import default_device
from minifastai.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm

SHAPES = [
    (512, 8, 14, 14),
    (512, 64, 4, 4),
    (32, 16, 7, 7),
    (2, 16, 7, 7),
    (64, 64, 32, 32),
]
WARM_UP = 20   # steps


class Plain(RunningBatchNorm):
    "The same statistics, with all gradients by autograd"
    def _normalize(self, x, mults, adds):
        n = x.numel()//self.nf
        mom = 1 - (1-self.mom)/(max(len(x)-1, 1))**0.5
        self.count = (1-mom)*self.count + mom*n
        k = mom*n/self.count
        u, b = torch.var_mean(x, (0, 2, 3), correction=0)
        v = (1-k)*self.vars + k*u + k*(1-k)*(b - self.means)**2
        m = (1-k)*self.means + k*b
        with torch.no_grad():
            self.means.copy_(m)
            self.vars.copy_(v)
        view = lambda t: t.view(-1, 1, 1)
        return (x - view(m))/view(v + self.eps).sqrt()*view(mults) + view(adds)


class _JustBatchNorm(torch.autograd.Function):
    "Only PyTorch's batch norm kernels, to see what calling them from Python costs"
    @staticmethod
    def forward(ctx, x, mults, adds, means, vars):
        y, *stats = torch.native_batch_norm(x, mults, adds, means, vars, True, 0.1, 1e-5)
        ctx.save_for_backward(x, mults, *stats)
        return y

    @staticmethod
    def backward(ctx, g):
        x, mults, mean, invstd = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            g, x, mults, None, None, mean, invstd, True, 1e-5, (True, True, True))
        return *grads, None, None


class Bare(RunningBatchNorm):
    "A norm whose Function does no arithmetic: no norm with a Function can cost less"
    def _normalize(self, x, mults, adds):
        return _JustBatchNorm.apply(x, mults, adds, self.means, self.vars)


def n_steps(n:int) -> int:
    "Return how many steps to time on `n` numbers"
    if n > 10**6: return 60
    return 300 if n > 10**5 else 2000


def wait(x):
    "Wait for the GPU if `x` is on one; otherwise cheap, because it is timed too"
    if x.is_cuda: torch.cuda.synchronize()


def seconds(layer, x, g) -> float:
    "Return the seconds of a forward and backward pass"
    for p in (x, *layer.parameters()): p.grad = None
    wait(x)
    start = time.perf_counter()
    layer(x).backward(g)
    wait(x)
    return time.perf_counter() - start


def clock(layers:list, shape:tuple, device) -> list[float]:
    "Return the median seconds of a forward and backward pass, for each layer"
    x = torch.randn(shape, device=device, requires_grad=True)
    g = torch.randn(shape, device=device)
    rounds = [[seconds(layer, x, g) for layer in layers]
              for _ in range(WARM_UP + n_steps(x.numel()))]
    return [statistics.median(s) for s in zip(*rounds[WARM_UP:])]


PAIRS = {
    'running': (RunningBatchNorm, nn.BatchNorm2d),
    'by autograd': (Plain, nn.BatchNorm2d),
    'bare Function': (Bare, nn.BatchNorm2d),
    'BatchNorm': (BatchNorm, nn.BatchNorm2d),
    'LayerNorm': (LayerNorm, partial(nn.GroupNorm, 1)),
    'InstanceNorm': (InstanceNorm, partial(nn.InstanceNorm2d, affine=True)),
    'GroupNorm': (partial(GroupNorm, 4), partial(nn.GroupNorm, 4)),
}


def main():
    device = default_device()
    print(f"{where()}; forward and backward, times those of nn.BatchNorm2d, "
          "or of PyTorch's layer of that kind")
    print(f"{'':14}{'nn.BatchNorm2d':>16}" + ''.join(f'{name:>15}' for name in PAIRS))
    for shape in SHAPES:
        times = {}
        for name, pair in PAIRS.items():
            times[name] = clock([make(shape[1]).to(device) for make in pair], shape, device)
        running, batch_norm = times['running']
        size = 'x'.join(map(str, shape))
        columns = ''.join(f'{ours/theirs:14.2f}x' for ours, theirs in times.values())
        print(f"{size:14}{batch_norm*1e6:13.0f} us" + columns, flush=True)
        name = f'a step of the running norm at {size}, times nn.BatchNorm2d'
        claim(name, 1.3, running/batch_norm)


if __name__ == '__main__':
    options(__doc__)
    main()
