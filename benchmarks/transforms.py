"""What transforms cost: a batch against Pillow picture by picture, and against a training step.

The usual chain is a random crop of 160 pixels to 128, a flip, and a small affine map. Pillow does
it with three operations on each picture, in one process and on one core; the batch does it with
one interpolation, on one core as well, unless you pass --threads. Both end as a batch of bytes. A
step is one of the course's small network (chapter 10) at 128 pixels, with a batch of 64.

Run it with nothing else going on: python benchmarks/transforms.py [--threads 1]
"""
import random
import statistics
import time
from functools import partial

import PIL.Image
import torch
import torch.nn.functional as F
from common import claim, options, ratios, spread, synchronize, where
from torch import optim

from minifastai.data import DataBunch
from minifastai.device import default_device
from minifastai.cnn import get_cnn_model
from minifastai.augment import random_affine
from minifastai.norms import conv_layer
from minifastai.data_block import norm_imagenette, to_byte_tensor
from minifastai.transforms import (
    BatchTransforms, PilRandomFlip, random_flip, random_lighting, random_perspective,
    random_resized_crop, RandomErasing, RandomResizedCrop)

N = 64
SCALE = 0.35, 1.
crop = partial(random_resized_crop, size=128, scale=SCALE)
CHAINS = {
    'crop, flip': BatchTransforms(crop, random_flip),
    'crop, flip, affine': BatchTransforms(crop, random_flip, random_affine),
    'crop, flip, affine, tilt': BatchTransforms(crop, random_flip, random_affine,
                                                random_perspective),
    'lighting': random_lighting,
    'erasing': RandomErasing(),
}


def photographs(n:int, size:int=160) -> torch.Tensor:
    "Smooth random pictures with some noise: bytes (n, 3, size, size)"
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(n, 3, 10, 10, generator=g), (size, size), mode='bicubic')
    noise = 0.05*torch.randn(n, 3, size, size, generator=g)
    return ((smooth + noise).clamp(0, 1)*255).byte()


def pil_affine(picture):
    "A random affine map as in `random_affine`, about the middle of the picture"
    angle, zoom = random.uniform(-0.17, 0.17), random.uniform(0.9, 1.1)
    a, b = zoom, zoom*angle
    dx, dy = (random.uniform(-2, 2) for _ in range(2))
    middle = 64 - 64*a - 64*b + dx, 64 + 64*b - 64*a + dy
    coefficients = (a, b, middle[0], -b, a, middle[1])
    return picture.transform((128, 128), PIL.Image.Transform.AFFINE, coefficients,
                             PIL.Image.Resampling.BILINEAR)


def with_pillow(pictures, affine=True) -> torch.Tensor:
    "The usual chain, picture by picture"
    pil_crop, flip = RandomResizedCrop(128, scale=SCALE), PilRandomFlip()
    done = [flip(pil_crop(o)) for o in pictures]
    if affine: done = [pil_affine(o) for o in done]
    return torch.stack([to_byte_tensor(o) for o in done])


def seconds(f) -> float:
    synchronize()
    start = time.perf_counter()
    f()
    synchronize()
    return time.perf_counter() - start


def main(rounds:int):
    device = default_device()
    x = photographs(N)
    pictures = [PIL.Image.fromarray(o.permute(1, 2, 0).numpy()) for o in x]
    xb, yb = x.to(device), torch.randint(10, (N,), device=device)
    torch.manual_seed(0)
    data = DataBunch([], None, c_in=3, c_out=10)
    model = get_cnn_model(data, [64, 64, 128, 256], conv_layer)
    model = model.to(device, memory_format=torch.channels_last)
    opt = optim.SGD(model.parameters(), lr=0.01)
    inputs = norm_imagenette(xb[..., :128, :128].float()/255)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def step():
        F.cross_entropy(model(inputs), yb).backward()
        opt.step()
        opt.zero_grad()

    tasks = {'Pillow': partial(with_pillow, pictures), 'a step': step,
             'Pillow, crop and flip': partial(with_pillow, pictures, False)}
    tasks |= {name: partial(chain, xb) for name, chain in CHAINS.items()}
    for f in tasks.values(): f()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, f in tasks.items(): times[name].append(seconds(f))
    print(f'{where("pillow")}; batches of {N} pictures, 160 to 128 pixels, {rounds} rounds')
    for name, values in times.items():
        print(f'{name:25} {spread([t/N*1e6 for t in values], ".0f")} microseconds a picture')
    faster = ratios(times['Pillow'], times['crop, flip, affine'])
    exact = ratios(times['Pillow, crop and flip'], times['crop, flip'])
    share = ratios(times['crop, flip, affine'], times['a step'])
    print(f'Pillow, times the batch: {spread(faster, ".2f")}; without the affine map '
          f'{spread(exact, ".2f")}')
    claim("Pillow's time for crop, flip and affine map, times the batch's", 10,
          statistics.median(faster), '>=')
    claim('the same on the batch, as a fraction of a training step', 0.1, statistics.median(share))


if __name__ == '__main__': main(options(__doc__, threads=1, rounds=15).rounds)
