"""What the data cost in an epoch: files opened each time, DataLoader workers, decoded once.

The network is the course's for photographs, at 128x128 pixels in batches of 64. The pictures are
Imagenette's, or without it as many JPEG files of 160x160 pixels cut from two photographs. We time
the data path alone and the training step alone, because on the CPU they take turns. Workers run
beside the training, so the time without it is the most that they can cost.

Run it with nothing else going on: python benchmarks/data_path.py
"""
import tempfile
import time
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from common import claim, options, spread, where
from PIL import Image

from minifastai.datasets import find_data, get_patches
from minifastai.data import get_dls
from minifastai.data_block import (
    CategoryProcessor, course_splitter, get_imagenette, ImageList, label_by_func, make_rgb,
    norm_imagenette, parent_labeler, ResizeFixed, SplitData, to_byte_tensor, to_float_tensor)
from minifastai.init import get_learn_run
from minifastai.norms import conv_layer

BS = 64


def write_patches(folder, n):
    "Write JPEG files in two classes, named like Imagenette's"
    x, y, x_valid, y_valid = get_patches(160, n)
    for part, xs, ys in (('train', x, y), ('val', x_valid, y_valid)):
        for i, (pixels, label) in enumerate(zip(xs, ys.tolist())):
            path = Path(folder)/str(label)/f'ILSVRC2012_{part}_{i:05}.JPEG'
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, quality=85)


def pictures(folder, n):
    "Return labelled pictures of 128x128, about `n` of them for training"
    if find_data('imagenette'):
        sd = get_imagenette(128, download=False)
        every = max(len(sd.train)//n, 1)
        sd = SplitData(*(p.x.new(p.x.items[::every]) for p in (sd.train, sd.valid)))
    else:
        write_patches(folder, n)
        tfms = [make_rgb, ResizeFixed(128), to_byte_tensor, to_float_tensor]
        sd = SplitData.split_by_func(ImageList.from_files(folder, tfms=tfms), course_splitter)
    return label_by_func(sd, parent_labeler, proc_y=CategoryProcessor())


def seconds(dl):
    "Time a pass over a loader, per item"
    start = time.perf_counter()
    n = sum(len(yb) for _, yb in dl)
    return (time.perf_counter() - start)/n


def step_seconds(data, n_batches):
    "Time training steps on batches that are there already, per item"
    learn, _ = get_learn_run([64, 64, 128, 256], data, 0.1, conv_layer)
    batches = [(norm_imagenette(xb), yb) for (xb, yb), _ in zip(data.train_dl, range(n_batches))]
    times = []
    for xb, yb in batches:
        start = time.perf_counter()
        F.cross_entropy(learn.model(xb), yb).backward()
        learn.opt.step()
        learn.opt.zero_grad()
        times.append((time.perf_counter() - start)/len(yb))
    return times[1:]   # the first step sets things up


def main():
    args = options(__doc__, rounds=5, n=1280, batches=8, workers=2)
    print(where('pillow'))
    with tempfile.TemporaryDirectory() as folder:
        ll = pictures(folder, args.n)
        start = time.perf_counter()
        once = ll.decoded()
        print(f'{len(ll.train):,} pictures of 128x128 for training; decoding all '
              f'{len(ll.train) + len(ll.valid):,} took {time.perf_counter() - start:.1f} s')
        steps = step_seconds(once.to_databunch(BS), args.batches)
        step = sorted(steps)[len(steps)//2]
        print(f'{"a training step":32} {spread([t*1e3 for t in steps], ".2f")} ms an item')
        ways = {
            'files, no workers': partial(get_dls, ll.train, ll.valid, BS),
            f'files, {args.workers} workers': partial(
                get_dls, ll.train, ll.valid, BS, num_workers=args.workers),
            'decoded once': partial(get_dls, once.train, once.valid, BS),
        }
        for name, dls in ways.items():
            times = [seconds(dls()[0]) for _ in range(args.rounds)]
            shares = [t/(t + step) for t in times]
            print(f'{name:32} {spread([t*1e3 for t in times])} ms an item, '
                  f'{spread(shares, ".1%")} of an epoch')
    claim('data, decoded once, as a fraction of an epoch', 0.05, sorted(shares)[len(shares)//2])


if __name__ == '__main__': main()
