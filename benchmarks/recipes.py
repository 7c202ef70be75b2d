"""What chapter 08's recipes reach on MNIST's validation split, over several seeds, and how long they train.

Seconds are those of the training batches; validation and the views of each image come on top, once, at the end. On a GPU, a first run of the recipe warms up, and the time to 99% is taken as well.
Run it with nothing else going on: python benchmarks/recipes.py [--seeds 5] [--eight 0]
"""
import statistics
import time

import torch
from common import claim, options, where

from minifastai.datasets import get_data
from minifastai.data import DataBunch, Dataset, get_dls, normalize_to
from minifastai.callbacks import Callback
from minifastai.device import default_device
from minifastai.recipes import RECIPES


class TrainingTime(Callback):
    "Seconds spent in training batches"
    _order = -10
    seconds = 0.

    def _now(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter()

    def begin_epoch(self): self.start = self._now()
    def begin_validate(self): self.seconds += self._now() - self.start


def main(seeds:int, first:int, one:int, eight:int):
    device = default_device()
    x_train, y_train, x_valid, y_valid = get_data('mnist', download=False)
    x_train, x_valid = (x.view(-1, 1, 28, 28).to(device) for x in normalize_to(x_train, x_valid))
    y_train, y_valid = y_train.to(device), y_valid.to(device)
    print(where())
    for name, wanted, target in (('one-epoch', one, 0.993), ('eight-epochs', eight, 0.9965)):
        if not wanted: continue
        recipe, plain, viewed, seconds = RECIPES[name], [], [], []
        for seed in range(first - (device.type == 'cuda'), first + seeds):
            torch.manual_seed(seed)
            data = DataBunch(*get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), recipe.bs), c=10)
            learn, run = recipe.learn_run(data, [clock := TrainingTime()])
            run.fit(recipe.epochs, learn)
            right = [(recipe.predict(learn.model, x_valid, look).argmax(1) == y_valid.cpu()).float().mean().item() for look in ('once', 'views')]
            if seed < first: continue
            plain.append(right[0]); viewed.append(right[1]); seconds.append(clock.seconds)
            print(f'{name:13} seed {seed}: {right[0]:.4f}, several views {right[1]:.4f}, {clock.seconds:.1f} s', flush=True)
        print(f'{name:13} mean of {seeds}: {statistics.mean(plain):.4f}, several views {statistics.mean(viewed):.4f} (lowest {min(viewed):.4f}, highest {max(viewed):.4f}); median {statistics.median(seconds):.1f} s')
        claim(f'{name}: accuracy on the validation set by several looks, mean of {seeds}', target, statistics.mean(viewed), '>=')
        if name == 'one-epoch' and device.type == 'cpu': claim('one-epoch: seconds of training', 15, statistics.median(seconds))


if __name__ == '__main__':
    args = options(__doc__, seeds=5, first=100, one=1, eight=1)
    main(args.seeds, args.first, args.one, args.eight)
