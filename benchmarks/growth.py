"""How the cost of a step grows with width, with callbacks, and with hooked layers.

For the model's width, we compare our loop with a loop by hand. For callbacks that listen to every
event of a step, and for layers whose activations are measured, we print what each one adds. All
runs have one thread, and we compare runs that come right after each other.

Run it with nothing else going on: python benchmarks/growth.py
"""
import statistics

import torch
import torch.nn.functional as F
from common import Batches, by_hand, options, ratios, spread, where
from steps import Idle
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.learner import Learner, Runner
from minifastai.activations import ActivationStats


def mlp(width:int, layers:int=1):
    inner = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers - 1)]
    return nn.Sequential(nn.Linear(784, width), *inner, nn.ReLU(), nn.Linear(width, 10))


def loop(model, batches):
    opt = optim.SGD(model.parameters(), lr=0.01)
    return lambda: by_hand(model, opt, batches, books=False)


def runner(model, batches, cbs=()):
    opt = optim.SGD(model.parameters(), lr=0.01)
    learn = Learner(model, opt, F.cross_entropy, DataBunch(batches, c=10))
    run = Runner(list(cbs))
    return lambda: run.fit(1, learn)


def turns(makers, batches, rounds) -> list[list[float]]:
    "Return the seconds of a step for each, round by round"
    loaders = [Batches(batches) for _ in makers]
    fits = [make(loader) for make, loader in zip(makers, loaders)]
    found = []
    for i in range(rounds + 1):
        for fit in fits: fit()
        if i: found.append([loader.per_step for loader in loaders])
    return list(zip(*found))


def per_second(seconds:list[float]) -> str: return f'{1/statistics.median(seconds):10.0f}'


def added(more:list[float], less:list[float], n:int, form:str) -> str:
    "Return the microseconds that each of `n` things adds"
    return spread([1e6*(a - b)/n for a, b in zip(more, less)], form)


def with_width(batches, rounds):
    print('hidden units    steps/s   by hand   time, times that by hand')
    for width in (10, 50, 200, 1000, 4000):
        makers = [lambda d: runner(mlp(width), d), lambda d: loop(mlp(width), d)]
        a, b = turns(makers, batches, rounds)
        print(f'{width:12} {per_second(a)}{per_second(b)}   {spread(ratios(a, b))}')


def with_callbacks(batches, rounds):
    print('callbacks       steps/s   us that each adds')
    for n in (1, 3, 10, 30, 100):
        idle = [Idle(i) for i in range(n)]
        makers = [lambda d: runner(mlp(50), d, idle), lambda d: runner(mlp(50), d)]
        a, b = turns(makers, batches, rounds)
        print(f'{n:12} {per_second(a)}   {added(a, b, n, ".2f")}')


def with_hooked_layers(batches, rounds):
    print('hooked layers   steps/s   us that each adds')
    for n in (1, 3, 10, 30, 100, 200):
        few = batches[:max(20, len(batches)//n)]
        model = mlp(50, n)
        stats = ActivationStats(list(model.children())[:n])
        makers = [lambda d: runner(model, d, [stats]), lambda d: runner(mlp(50, n), d)]
        a, b = turns(makers, few, rounds)
        print(f'{n:12} {per_second(a)}   {added(a, b, n, ".1f")}')


def main(rounds:int, steps:int):
    torch.manual_seed(0)
    batches = [(torch.randn(64, 784), torch.randint(10, (64,))) for _ in range(steps)]
    print(where())
    for growth in (with_width, with_callbacks, with_hooked_layers): growth(batches, rounds)


if __name__ == '__main__':
    args = options(__doc__, threads=1, rounds=5, steps=100)
    main(args.rounds, args.steps)
