"""What a checkpoint costs: chapter 08's network and one with 11 million weights, trained with momentum, written again and again and read back.

A copy is what it would take to write the same bytes to one file, without a hash and without waiting for the disk. Run it with nothing else going on: python benchmarks/checkpoints.py [--threads 1]
"""
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import claim, options, where
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.recorder import Recorder
from minifastai.recipes import RECIPES
from minifastai.checkpoint import CheckpointCallback, find_checkpoint


class Clock(Callback):
    "Seconds of each step, from the batch's begin until the gradients are used"
    def begin_fit(self): self.seconds = []
    def begin_batch(self): self.start = time.perf_counter()
    def after_step(self): self.seconds.append(time.perf_counter() - self.start)


class Timed(CheckpointCallback):
    "Notes how long each checkpoint takes"
    def begin_fit(self): self.seconds = []; super().begin_fit()
    def _save(self, *args):
        start = time.perf_counter()
        super()._save(*args)
        self.seconds.append(time.perf_counter() - start)


def main(times:int):
    print(f'{where()}; medians of {times}')
    batch = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    data = DataBunch([batch]*times, c=10)
    recipe = RECIPES['one-epoch']
    big = nn.Sequential(nn.Flatten(), nn.Linear(784, 3000), nn.ReLU(), nn.Linear(3000, 2900), nn.ReLU(), nn.Linear(2900, 10))
    for name, model in (("chapter 08's, one epoch", recipe.learn_run(data)[0].model), ('11 million weights', big)):
        with tempfile.TemporaryDirectory() as folder:
            learn = Learner(model, optim.SGD(model.parameters(), lr=0.01, momentum=0.9), F.cross_entropy, data)
            run = Runner([Clock(), Recorder(), AvgStatsCallback(accuracy), Timed(Path(folder)/'c', every=1)])
            run.show_stats = lambda *stats: None
            run.fit(1, learn)
            last = find_checkpoint(Path(folder)/'c')
            size = sum(n for n, _ in last.files.values())
            content, copies = b''.join(map(last.read, last.files)), []
            for _ in range(times):
                start = time.perf_counter()
                (Path(folder)/'copy').write_bytes(content)
                copies.append(time.perf_counter() - start)
            start = time.perf_counter()
            find_checkpoint(Path(folder)/'c'); last.weights(); last.state(); last.state('callbacks.pt')
            read = time.perf_counter() - start
        step, saved = statistics.median(run.clock.seconds), statistics.median(run.timed.seconds)
        print(f'{name:24} {size/1e6:7.2f} MB: written in {saved*1e3:7.1f} ms (a copy {statistics.median(copies)*1e3:.1f} ms), found and read in {read*1e3:.1f} ms; a step takes {step*1e3:.1f} ms: every 200 steps, {saved/(200*step):.1%} of the time')
        claim(f'a checkpoint every 200 steps ({name}), share of the steps\' time', 0.02, saved/(200*step))


if __name__ == '__main__': main(options(__doc__, times=30).times)
