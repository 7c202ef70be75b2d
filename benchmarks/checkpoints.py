"""What a checkpoint costs, when it is written and when it is read back.

We train chapter 08's network and one with 11 million weights, both with momentum, and write many
checkpoints. A copy is the time to write the same bytes to one file, without a hash and without
waiting for the disk.

Run it with nothing else going on: python benchmarks/checkpoints.py [--threads 1]
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

EVERY = 200   # steps from one checkpoint to the next


class Clock(Callback):
    "Measures the seconds of each step, from the start of the batch until the step is made"
    def begin_fit(self): self.seconds = []
    def begin_batch(self): self.start = time.perf_counter()
    def after_step(self): self.seconds.append(time.perf_counter() - self.start)


class Timed(CheckpointCallback):
    "Measures how long each checkpoint takes"
    def begin_fit(self):
        self.seconds = []
        super().begin_fit()

    def _save(self, *args):
        start = time.perf_counter()
        super()._save(*args)
        self.seconds.append(time.perf_counter() - start)


def train(model, data, folder:Path) -> tuple[float, float]:
    "Return the median seconds of a step, and of the checkpoint after it"
    opt = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = Runner([Clock(), Recorder(), AvgStatsCallback(accuracy), Timed(folder, every=1)])
    run.show_stats = lambda *stats: None
    run.fit(1, Learner(model, opt, F.cross_entropy, data))
    return statistics.median(run.clock.seconds), statistics.median(run.timed.seconds)


def seconds_to_copy(content:bytes, to:Path, times:int) -> float:
    "Return the median seconds to write `content` to one file"
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        to.write_bytes(content)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def seconds_to_read(folder:Path, last) -> float:
    "Return the seconds to find the checkpoint `last` in `folder` and to read all of it"
    start = time.perf_counter()
    find_checkpoint(folder)
    last.weights()
    last.state()
    last.state('callbacks.pt')
    return time.perf_counter() - start


def measure(name:str, model, data, times:int):
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'c'
        step, saved = train(model, data, folder)
        last = find_checkpoint(folder)
        content = b''.join(map(last.read, last.files))
        copied = seconds_to_copy(content, Path(tmp)/'copy', times)
        read = seconds_to_read(folder, last)
    size = sum(n for n, _ in last.files.values())
    part = saved/(EVERY*step)
    print(f'{name:24} {size/1e6:7.2f} MB: written in {saved*1e3:7.1f} ms '
          f'(a copy {copied*1e3:.1f} ms), found and read in {read*1e3:.1f} ms; '
          f'a step takes {step*1e3:.1f} ms: every {EVERY} steps, {part:.1%} of the time')
    claim(f"a checkpoint every {EVERY} steps ({name}), fraction of the steps' time", 0.02, part)


def main(times:int):
    print(f'{where()}; medians of {times}')
    batch = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    data = DataBunch([batch]*times, c=10)
    learn, _ = RECIPES['one-epoch'].learn_run(data)
    big = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 3000), nn.ReLU(),
        nn.Linear(3000, 2900), nn.ReLU(),
        nn.Linear(2900, 10),
    )
    measure("chapter 08's, one epoch", learn.model, data, times)
    measure('11 million weights', big, data, times)


if __name__ == '__main__': main(options(__doc__, times=30).times)
