"""What an epoch of chapter 07's network costs against the best loop that we can write by hand.

Both sides train on MNIST's 50,000 training images in batches of 512, and keep a recorder and the
mean loss and accuracy. Without MNIST we use random pixels, because the arithmetic is the same. The
loop by hand leaves the tensors where they are, indexes once for each batch, and has its weights in
channels_last. Our side has the lesson's lines, with one more line for channels_last, and once
without it. They take turns, an epoch each. We also time the data path alone.

Run it with nothing else going on: python benchmarks/epoch.py
"""
import statistics
import time
from functools import partial

import torch
from common import by_hand, claim, options, ratios, spread, synchronize, where
from torch import optim

from minifastai.datasets import get_data
from minifastai.data import DataBunch, Dataset, get_dls, normalize_to
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.recorder import Recorder
from minifastai.device import CudaCallback, default_device
from minifastai.cnn import BatchTransformXCallback, get_cnn_model, view_tfm
from minifastai.init import get_learn_run, init_cnn
from minifastai.norms import conv_layer

NFS = [8, 16, 32, 64, 64]
BS = 512


def hand(x, y):
    "Make a function that trains an epoch by hand"
    x = x.view(-1, 1, 28, 28)
    model = get_cnn_model(DataBunch([(x, y)], c=10), NFS, conv_layer, n_in=1)
    model.to(x.device, memory_format=torch.channels_last)
    init_cnn(model)
    opt = optim.SGD(model.parameters(), lr=0.1)
    return lambda: by_hand(model, opt, indexed(x, y))


def indexed(x, y):
    "Yield shuffled batches in the shortest way"
    return ((x[i], y[i]) for i in torch.randperm(len(x), device=x.device).split(BS))


def loader(x, y):
    "Our way to shuffled batches"
    train_dl, _ = get_dls(Dataset(x, y), Dataset(x[:1], y[:1]), BS)
    return train_dl


def ours(x, y, channels_last:bool):
    "Make a function that trains an epoch as the lesson does"
    cbs = [Recorder, partial(AvgStatsCallback, accuracy), CudaCallback,
           partial(BatchTransformXCallback, view_tfm(1, 28, 28))]
    learn, run = get_learn_run(NFS, DataBunch(loader(x, y), c=10), 0.1, conv_layer, cbs=cbs)
    if channels_last: learn.model.to(memory_format=torch.channels_last)
    run.show_stats = lambda *stats: None
    return lambda: run.fit(1, learn)


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    synchronize()
    return time.perf_counter() - start


def training_set():
    "Return MNIST's training images and labels, or random ones, on the fastest device"
    try:
        x, y, *_ = get_data('mnist', download=False)
        x, _ = normalize_to(x, x[:2])
    except FileNotFoundError: x, y = torch.randn(50_000, 784), torch.randint(10, (50_000,))
    return x.to(default_device()), y.to(default_device())


def epochs(x, y, rounds:int) -> dict[str, list[float]]:
    "Return the seconds of each epoch by trainer, after a warm-up round"
    fits = {
        'by hand': hand(x, y),
        'ours': ours(x, y, True),
        "ours, model left in PyTorch's order": ours(x, y, False),
    }
    times = {name: [] for name in fits}
    for i in range(rounds + 1):
        for name, fit in fits.items():
            s = seconds(fit)
            if i: times[name].append(s)
    return times


def through(batches):
    for _ in batches: pass


def data_path(x, y, epoch:list[float]):
    "Print what a pass over the batches costs, compared with plain indexing and our `epoch`"
    dl = loader(x, y)
    pairs = [(seconds(lambda: through(dl)), seconds(lambda: through(indexed(x, y))))
             for _ in range(12)]
    loading, indexing = zip(*pairs[2:])
    percent = [100*a/b for a, b in zip(loading, epoch*99)]
    print(f"data path alone: {spread([1e3*a for a in loading], '.1f')} ms an epoch; "
          f"{spread(ratios(loading, indexing))} times plain indexing; "
          f"{spread(percent, '.1f')}% of the epoch")


def main(rounds:int):
    torch.manual_seed(0)
    x, y = training_set()
    print(where())
    times = epochs(x, y, rounds)
    for name, s in times.items():
        print(f"{name:38} {spread(s, '.2f')} s an epoch; "
              f"{spread(ratios(s, times['by hand']))} times that by hand")
    median = statistics.median(ratios(times['ours'], times['by hand']))
    claim("an epoch of chapter 07's network, times that by hand", 1.05, median)
    data_path(x, y, times['ours'])


if __name__ == '__main__': main(options(__doc__, rounds=5).rounds)
