"""What a step costs: our optimizers against PyTorch's, for several sets of parameters.

We time `step` of SGD, SGD with momentum and L2, Adam and AdamW against the same optimizer of
PyTorch with `foreach=True`. For comparison, we also time PyTorch's loop over the parameters, which
is its default on a CPU. The optimizers of a row take turns step by step, each first as often as any
other. Ratios are of medians. LARS and LAMB, which PyTorch doesn't have, are compared with its Adam.

Run it with nothing else going on: python benchmarks/optimizer_step.py [--threads 1]
"""
import statistics
import time
from functools import partial

import torch
from common import claim, options, synchronize, where
from torch import optim

from minifastai.device import default_device
from minifastai.optimizers import (
    adam_opt, AverageGrad, l2_reg, lamb, lars, momentum_step, sgd_opt, StatefulOptimizer)

BLOCK = [(16, 16, 3, 3), (16,), (16,)]
PARAMETERS = {   # shapes, and how many steps to time
    'many small': (BLOCK*30, 400),
    'the network of chapter 10': (
        [(nf, ni, 3, 3) for ni, nf in ((3, 16), (16, 32), (32, 64), (64, 32), (32, 64), (64, 128),
                                       (128, 256))]
        + [(n,) for n in (16, 32, 64, 32, 64, 128, 256) for _ in range(2)] + [(10, 256), (10,)],
        400),
    'few large': ([(1024, 1024)]*4, 60),
}
l2_momentum = partial(StatefulOptimizer, steppers=[l2_reg, momentum_step], stats=AverageGrad())
like_ours = dict(betas=(0.9, 0.99), eps=1e-5)
PAIRS = {
    'SGD': (sgd_opt, optim.SGD),
    'momentum, L2': (partial(l2_momentum, wd=1e-4),
                     partial(optim.SGD, momentum=0.9, weight_decay=1e-4)),
    'Adam': (adam_opt(), partial(optim.Adam, **like_ours)),
    'AdamW': (adam_opt(wd=0.01), partial(optim.AdamW, weight_decay=0.01, **like_ours)),
    'LARS': (partial(lars, wd=1e-4), partial(optim.Adam, **like_ours)),
    'LAMB': (partial(lamb, wd=0.01), partial(optim.Adam, **like_ours)),
}
CLAIMED = ('SGD', 'momentum, L2', 'Adam', 'AdamW')


def parameters(shapes) -> list:
    "Make parameters with gradients"
    ps = [torch.randn(shape, device=default_device()).requires_grad_() for shape in shapes]
    for p in ps: p.grad = torch.randn_like(p)
    return ps


def seconds(opt) -> float:
    "Return the seconds of a step"
    synchronize()
    start = time.perf_counter()
    opt.step()
    synchronize()
    return time.perf_counter() - start


def clock(makers, shapes, n) -> list[float]:
    "Return the median seconds of a step, for each optimizer"
    opts = [make(parameters(shapes), lr=1e-4) for make in makers]
    times = [[] for _ in opts]
    for i in range(n + 10):
        for k in range(len(opts)):
            k = (k + i)%len(opts)
            t = seconds(opts[k])
            if i >= 10: times[k].append(t)
    return [statistics.median(t) for t in times]


def main():
    print(f"{where()}; a step, times that of PyTorch's optimizer")
    for what, (shapes, n) in PARAMETERS.items():
        print(f"{what}: {len(shapes)} parameters")
        print(f"{'':14}{'ours':>11}{'/ foreach':>11}{'/ loop':>9}")
        for name, (ours, theirs) in PAIRS.items():
            makers = ours, partial(theirs, foreach=True), partial(theirs, foreach=False)
            mine, foreach, loop = clock(makers, shapes, n)
            print(f'{name:14}{mine*1e6:8.0f} us{mine/foreach:10.2f}x{mine/loop:8.2f}x', flush=True)
            if name not in CLAIMED: continue
            claim(f"a step of {name}, {what}, times PyTorch's foreach", 1.1, mine/foreach)


if __name__ == '__main__':
    options(__doc__)
    main()
