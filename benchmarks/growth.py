"""How the cost of a step grows: with the model's width, with the number of callbacks, with the number of hooked layers.

Ours against a loop by hand for the width; for callbacks that listen to every event of a step, and layers whose activations are measured, what each one adds. One thread; neighbours in time are compared.
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
    return nn.Sequential(nn.Linear(784, width), *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers - 1)), nn.ReLU(), nn.Linear(width, 10))


def loop(model, batches):
    opt = optim.SGD(model.parameters(), lr=0.01)
    return lambda: by_hand(model, opt, batches, books=False)


def runner(model, batches, cbs=()):
    learn, run = Learner(model, optim.SGD(model.parameters(), lr=0.01), F.cross_entropy, DataBunch(batches, c=10)), Runner(list(cbs))
    return lambda: run.fit(1, learn)


def turns(makers, batches, rounds) -> list[list[float]]:
    "Seconds a step of each, round by round"
    loaders = [Batches(batches) for _ in makers]
    fits = [make(loader) for make, loader in zip(makers, loaders)]
    found = []
    for i in range(rounds + 1):
        for fit in fits: fit()
        if i: found.append([loader.per_step for loader in loaders])
    return list(zip(*found))


def main(rounds:int, steps:int):
    torch.manual_seed(0)
    batches = [(torch.randn(64, 784), torch.randint(10, (64,))) for _ in range(steps)]
    print(where())
    print('hidden units    steps/s   by hand   time, times that by hand')
    for width in (10, 50, 200, 1000, 4000):
        a, b = turns([lambda d, w=width: runner(mlp(w), d), lambda d, w=width: loop(mlp(w), d)], batches, rounds)
        print(f'{width:12} {1/statistics.median(a):10.0f}{1/statistics.median(b):10.0f}   {spread(ratios(a, b))}')
    print('callbacks       steps/s   us that each adds')
    for n in (1, 3, 10, 30, 100):
        a, b = turns([lambda d, n=n: runner(mlp(50), d, [Idle(i) for i in range(n)]), lambda d: runner(mlp(50), d)], batches, rounds)
        print(f'{n:12} {1/statistics.median(a):10.0f}   {spread([1e6*(s - t)/n for s, t in zip(a, b)], ".2f")}')
    print('hooked layers   steps/s   us that each adds')
    for n in (1, 3, 10, 30, 100, 200):
        few = batches[:max(20, steps//n)]
        model = mlp(50, n)
        a, b = turns([lambda d: runner(model, d, [ActivationStats(list(model.children())[:n])]), lambda d, n=n: runner(mlp(50, n), d)], few, rounds)
        print(f'{n:12} {1/statistics.median(a):10.0f}   {spread([1e6*(s - t)/n for s, t in zip(a, b)], ".1f")}')


if __name__ == '__main__':
    args = options(__doc__, threads=1, rounds=5, steps=100)
    main(args.rounds, args.steps)
