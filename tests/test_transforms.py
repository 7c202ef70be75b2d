"Transforms against Pillow, on shapes and numbers that chapter 12 does not show."
import contextlib
import copy
import math
import operator
import pickle
import random
import warnings
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from helpers import quiet_runner
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback
from minifastai.learner import Learner
from minifastai.augment import affine, AugmentCallback, random_affine
from minifastai.checkpoint import CheckpointCallback
from minifastai.transforms import (
    apply_maps, BatchTransforms, CenterCrop, crop_resize, find_coeffs, GeneralCrop, MappedBatch,
    np_to_float, perspective, PilRandomDihedral, PilRandomFlip, PilTiltRandomCrop, PilTransform,
    random_dihedral, random_flip, random_lighting, random_perspective, random_resized_crop,
    RandomErasing, RandomResizedCrop, warp)

BILINEAR = PIL.Image.Resampling.BILINEAR
SQUARE = (0, 0), (0, 1), (1, 1), (1, 0)


def pixels(n=4, h=60, w=80, c=3, seed=0):
    "Bytes with detail at several sizes"
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, h//10 + 1, w//10 + 1, generator=g)
    smooth = F.interpolate(coarse, (h, w), mode='bicubic')
    return ((smooth + 0.1*torch.randn(n, c, h, w, generator=g)).clamp(0, 1)*255).byte()


def pictures(x): return [PIL.Image.fromarray(o.permute(1, 2, 0).numpy()) for o in x]


def tensor(picture): return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


crop = partial(random_resized_crop, size=(24, 30))
BATCH = dict(
    flip=random_flip,
    dihedral=random_dihedral,
    crop=crop,
    affine=random_affine,
    perspective=random_perspective,
    lighting=partial(random_lighting, saturation=0.3),
    erasing=RandomErasing(p=1.),
    noise=RandomErasing(p=1., value=None),
    chain=BatchTransforms(crop, random_flip, random_affine, random_perspective),
    everything=BatchTransforms(random_lighting, crop, random_flip, random_affine, RandomErasing()),
)
each_tfm = pytest.mark.parametrize('tfm', BATCH.values(), ids=BATCH)


# On pictures

def draws(tfm, picture, n=2000):
    tfm.rng = random.Random(0)
    seen = [tfm(picture).tobytes() for _ in range(n)]
    return [seen.count(s)/n for s in sorted(set(seen))]


def test_flips_and_symmetries_are_as_often_as_they_say():
    picture = pictures(pixels(1, 8, 8))[0]
    assert sorted(draws(PilRandomFlip(0.8), picture)) == pytest.approx([0.2, 0.8], abs=0.03)
    often = sorted(draws(PilRandomDihedral(), picture))
    assert often == pytest.approx([0.75/8]*7 + [1 - 0.75*7/8], abs=0.03)
    assert draws(PilRandomFlip(0), picture) == draws(PilRandomDihedral(0), picture) == [1.]


def test_pictures_of_all_modes_and_nothing_else():
    for mode in ('L', 'RGB', 'RGBA', 'CMYK', 'P', '1', 'I', 'F'):
        picture = PIL.Image.new(mode, (50, 40))
        for tfm in (PilRandomFlip(1), PilRandomDihedral(1), CenterCrop(8), RandomResizedCrop(8)):
            res = tfm(picture)
            assert res.mode == mode
            if isinstance(tfm, GeneralCrop): assert res.size == (8, 8)
    for tfm in (PilRandomFlip(), GeneralCrop(8), RandomResizedCrop(8), PilTiltRandomCrop(8)):
        for wrong in (torch.zeros(3, 9, 9), np.zeros((9, 9))):
            with pytest.raises(TypeError, match='takes a PIL picture, not a'): tfm(wrong)


def test_transforms_of_pictures_can_go_to_a_worker_and_say_their_settings():
    for tfm in (PilRandomFlip(), PilRandomDihedral(), CenterCrop(8), RandomResizedCrop((8, 9)),
                PilTiltRandomCrop(8, 6, magnitude=0.1)):
        assert isinstance(tfm, PilTransform)
        assert tfm._order == 11
        assert tfm.random is not isinstance(tfm, CenterCrop)
        assert repr(pickle.loads(pickle.dumps(tfm))) == repr(tfm)
    assert 'p=0.5' in repr(PilRandomFlip())


@pytest.mark.parametrize('size', [(500, 100), (100, 500), (1, 1000), (1000, 1), (1, 1), (7, 5)])
@pytest.mark.parametrize('scale', [(0.08, 1.), (0.35, 1.), (1e-4, 1e-3)])
def test_random_crops_of_extreme_pictures_are_boxes_in_them(size, scale):
    tfm = RandomResizedCrop(16, scale=scale)
    tfm.rng = random.Random(0)
    w, h = size
    for _ in range(300):
        left, top, right, bottom = tfm.get_corners(w, h, w, h)
        assert 0 <= left < right <= w
        assert 0 <= top < bottom <= h
    x = random_resized_crop(torch.zeros(50, 1, h, w), 16, scale=scale)
    assert x.shape == (50, 1, 16, 16)


def areas_and_shapes(boxes, h, w):
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides.prod(1)/(h*w), sides[:, 0]/sides[:, 1]


def test_the_area_is_drawn_anew_at_each_try():
    "In a picture of 500x100 most tries fail. The boxes that fit are still of the size wanted."
    tfm = RandomResizedCrop(16, scale=(0.1, 1.))
    tfm.rng = random.Random(0)
    drawn = torch.tensor([tfm.get_corners(500, 100, 0, 0) for _ in range(4000)], dtype=torch.float)
    area, _ = areas_and_shapes(drawn, 100, 500)
    assert area.min() > 0.098
    # among all areas and shapes, drawn evenly, those that fit
    g = seeded()
    areas = 0.1 + 0.9*torch.rand(400_000, generator=g)
    shapes = torch.exp(math.log(4/3)*(2*torch.rand(400_000, generator=g) - 1))
    w, h = (torch.sqrt(areas*50_000*o).round() for o in (shapes, 1/shapes))
    fits = (w <= 500) & (h <= 100)
    none_of_ten = (1 - fits.float().mean())**10
    middle = (drawn == torch.tensor([183., 0, 316, 100])).all(1)
    assert middle.float().mean() == pytest.approx(none_of_ten.item(), abs=0.03)
    assert area[~middle].mean() == pytest.approx((w*h/50_000)[fits].mean().item(), rel=0.02)


def test_boxes_of_a_batch_are_as_those_of_pictures():
    scale, (h, w) = (0.2, 1.), (100, 160)
    tfm = RandomResizedCrop(16, scale=scale)
    tfm.rng = random.Random(0)
    one_by_one = torch.tensor([tfm.get_corners(w, h, 0, 0) for _ in range(8000)]).float()
    x = MappedBatch(torch.zeros(8000, 1, h, w))
    maps = random_resized_crop(x, 16, scale=scale, generator=seeded()).maps
    size = torch.tensor([w, h])
    sides, middles = maps[:, [0, 1], [0, 1]]*size, (maps[:, :, 2] + 1)/2*size
    at_once = torch.cat([middles - sides/2, middles + sides/2], 1)
    torch.testing.assert_close(at_once, at_once.round(), atol=1e-3, rtol=0)
    q = torch.tensor([.05, .25, .5, .75, .95])
    for a, b in zip(areas_and_shapes(one_by_one, h, w), areas_and_shapes(at_once, h, w)):
        torch.testing.assert_close(a.quantile(q), b.quantile(q), atol=0.03, rtol=0)
    for i in (0, 1):
        torch.testing.assert_close(one_by_one[:, i].quantile(q), at_once[:, i].quantile(q),
                                   atol=3., rtol=0)


def test_a_crop_is_made_to_fit_and_keeps_its_shape():
    picture = pictures(pixels(1, 60, 80))[0]
    for tfm in (PilTiltRandomCrop(16, 200, magnitude=0.2), GeneralCrop(16, 200)):
        assert tfm(picture).size == (16, 16)
    whole = PilTiltRandomCrop((80, 60), (160, 120))(picture)
    assert np.abs(np.array(whole).astype(int) - np.array(picture)).max() <= 1


def test_tilts_stay_in_the_picture():
    "White stays white: nothing black comes in from outside."
    white = PIL.Image.new('L', (90, 70), 255)
    tfm = PilTiltRandomCrop(32, 40, magnitude=0.24)
    tfm.rng = random.Random(0)
    for _ in range(100): assert np.array(tfm(white)).min() == 255
    # no room, no tilt
    square = pictures(pixels(1, 64, 64))[0]
    assert PilTiltRandomCrop(64, magnitude=0.2)(square).tobytes() == square.tobytes()


def test_a_warp_averages_when_it_shrinks():
    stripes = PIL.Image.fromarray((np.indices((400, 400)).sum(0) % 2*255).astype(np.uint8))
    corners = (10, 20), (0, 390), (390, 400), (380, 5)
    small = np.array(warp(stripes, (50, 50), corners)).astype(float)
    assert small.std() < 4
    assert np.array(warp(stripes, (50, 50), corners, resample=0)).std() > 100


def test_what_cannot_be():
    for make, message in (
            (lambda: GeneralCrop(0), 'at least 1'), (lambda: GeneralCrop((1, 2, 3)), 'one number'),
            (lambda: RandomResizedCrop(8, scale=(0.5, 0.1)), 'two fractions'),
            (lambda: RandomResizedCrop(8, scale=(0., 1.)), 'two fractions'),
            (lambda: RandomResizedCrop(8, ratio=(4/3, 3/4)), 'width/height'),
            (lambda: find_coeffs(((0, 0), (0, 1), (0, 2), (5, 5)), SQUARE), 'one line'),
            (lambda: BatchTransforms(), 'functions of a batch'),
            (lambda: BatchTransforms(random_flip, None), 'functions of a batch'),
            (lambda: RandomErasing(scale=(0.1, 2.)), 'two fractions')):
        with pytest.raises(ValueError, match=message): make()


# The lesson's own lines

def test_lines_of_the_lesson(tmp_path):
    for i, picture in enumerate(pictures(pixels(6, 200, 320))):
        folder = tmp_path/'train'/'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder/f'{i}.png')
    lines = '''
from minifastai.all import *
make_rgb._order=0
tfms = [make_rgb, ResizeFixed(128), to_byte_tensor, to_float_tensor]
def get_il(tfms): return ImageList.from_files(path, tfms=tfms)
il = get_il(tfms)
show_image(il[0])
img = PIL.Image.open(il.items[0])
img.resize((128,128), resample=PIL.Image.BILINEAR)
il1 = get_il(tfms)
il1.items = [il1.items[0]]*16
il1.tfms.append(PilRandomFlip(0.8))
dl = torch.utils.data.DataLoader(il1, 8)
x = next(iter(dl))
seen.append(x)
del(il1.tfms[-1])
il1.tfms.append(PilRandomDihedral())
seen.append(next(iter(dl)))
il1.tfms = [make_rgb, CenterCrop(128), to_byte_tensor, to_float_tensor]
seen.append(next(iter(dl)))
il1.tfms = [make_rgb, RandomResizedCrop(128), to_byte_tensor, to_float_tensor]
seen.append(next(iter(dl)))
targ = ((0,0),(0,128),(128,128),(128,0))
src  = ((90,60),(30,180),(310,180),(250,60))
c = find_coeffs(src, targ)
resample = PIL.Image.BILINEAR
img.transform((128,128), PIL.Image.PERSPECTIVE, list(c), resample=resample)
warp(img, (64,64), src, resample=PIL.Image.BICUBIC)
warp(img, (64,64), src, resample=PIL.Image.NEAREST)
il1.tfms = [make_rgb, PilTiltRandomCrop(128, 200, magnitude=0.2), to_byte_tensor, to_float_tensor]
seen.append(next(iter(dl)))
il1.tfms = [make_rgb, PilTiltRandomCrop(128, magnitude=0.2), PilRandomFlip(), np_to_float]
seen.append(next(iter(dl)))
show_batch(seen[-1])
order = [o._order for o in sorted(il1.tfms, key=operator.attrgetter('_order'))]
'''
    scope = dict(path=tmp_path, operator=operator, seen=[])
    exec(lines, scope)
    for x in scope['seen']:
        assert x.shape == (8, 3, 128, 128)
        assert x.dtype == torch.float32
        assert 0 <= x.min() < x.max() <= 1
    assert scope['order'] == [0, 11, 11, 30]


# Against Pillow

@pytest.mark.parametrize('size', [(16, 16), (31, 50), (60, 80), (90, 100)])
@pytest.mark.parametrize('last', [False, True])
def test_boxes_are_resized_as_by_pillow(size, last):
    x = pixels(6)
    if last: x = x.contiguous(memory_format=torch.channels_last)
    boxes = [[0, 0, 80, 60], [3, 5, 78, 60], [10, 20, 41, 29], [0, 0, 1, 60], [79, 59, 80, 60],
             [20, 10, 36, 26]]
    ours = crop_resize(x, boxes, size)
    theirs = torch.stack([tensor(p.crop(tuple(b)).resize(size[::-1], BILINEAR))
                          for p, b in zip(pictures(x), boxes)])
    assert (ours.int() - theirs.int()).abs().max() <= 2
    as_floats = crop_resize(x.float()/255, torch.tensor(boxes), size)
    assert (as_floats*255 - theirs).abs().max() <= 2
    # and so are ours on pictures, with the same box
    class Box(GeneralCrop):
        def get_corners(self, *_): return self.box
    for p, box, y in zip(pictures(x), boxes, theirs):
        tfm = Box(size[::-1])
        tfm.box = box
        assert torch.equal(tensor(tfm(p)), y)


def for_pillow(m, here, size):
    "A map in Pillow's coordinates: pixels, with 1 as the last coefficient"
    (h, w), (new_h, new_w) = here, size
    m = m.double()
    if len(m) == 2: m = torch.cat([m, torch.tensor([[0., 0, 1]], dtype=torch.float64)])
    out = torch.tensor([[w/2, 0, w/2], [0, h/2, h/2], [0, 0, 1]], dtype=torch.float64)
    into = torch.tensor([[2/new_w, 0, -1], [0, 2/new_h, -1], [0, 0, 1]], dtype=torch.float64)
    c = (out @ m @ into).flatten()
    return (c/c[-1])[:8].tolist()


@pytest.mark.parametrize('size', [None, (50, 90)])
@pytest.mark.parametrize('tilted', [False, True])
def test_maps_are_those_of_pillow(size, tilted):
    x = pixels(12, 60, 80)
    m = random_flip(random_affine(MappedBatch(x), degrees=20., shear=0.2, generator=seeded()),
                    generator=seeded(1))
    if tilted: m = random_perspective(m, 0.2, generator=seeded(2))
    size = size or m.size
    ours = apply_maps(x, m.maps, size, antialias=False)
    method = PIL.Image.Transform.PERSPECTIVE
    theirs = torch.stack([tensor(p.transform(size[::-1], method, for_pillow(o, (60, 80), size),
                                             BILINEAR)) for p, o in zip(pictures(x), m.maps)])
    ones = torch.ones(12, 1, 60, 80)
    inside = apply_maps(ones, m.maps, size, padding_mode='zeros', antialias=False) > 0.9999
    assert inside.float().mean() > 0.5
    assert ((ours.int() - theirs.int()).abs()*inside).max() <= 2


def test_a_perspective_takes_corners_to_corners():
    x = pixels(3, 60, 80)
    corners = torch.tensor([[[0., 0], [0, 60], [80, 60], [80, 0]],
                            [[10, 5], [2, 55], [75, 60], [60, 10]],
                            [[80, 0], [80, 60], [0, 60], [0, 0]]])
    ours = perspective(x, corners)
    assert (ours[0].int() - x[0].int()).abs().max() <= 1
    assert (ours[2].int() - x[2].flip(2).int()).abs().max() <= 1
    theirs = tensor(warp(pictures(x)[1], (80, 60), corners[1].tolist()))
    assert (ours[1].int() - theirs.int()).abs()[:, 1:-1, 1:-1].max() <= 2
    assert torch.equal(perspective(x, corners[1])[1], ours[1])
    with pytest.raises(ValueError, match='four corners'): perspective(x, corners[:2])
    with pytest.raises(ValueError, match='one line'):
        perspective(x, [[0., 0], [1, 1], [2, 2], [9, 0]])


@pytest.mark.parametrize('size', [12, 20, 30, 45, 55])
def test_what_shrinks_is_averaged_nearly_as_by_pillow(size):
    x = pixels(4, 60, 60)
    whole = torch.eye(2, 3).repeat(4, 1, 1)
    theirs = torch.stack([tensor(p.resize((size, size), BILINEAR)) for p in pictures(x)]).float()
    ours, plain = (apply_maps(x.float(), whole, size, antialias=a) for a in (True, False))
    error, without = ((o - theirs).abs().mean().item() for o in (ours, plain))
    assert error < without + 0.1
    assert error < 4
    if size <= 30: assert error < without/3


def test_only_images_that_shrink_are_blurred():
    x = pixels(3).float()
    maps = torch.eye(2, 3).repeat(3, 1, 1)
    maps[1, :, :2] *= 2   # twice as small
    ours, plain = (apply_maps(x, maps, antialias=a) for a in (True, False))
    assert torch.equal(ours[::2], plain[::2])
    torch.testing.assert_close(ours[0], x[0], atol=1e-3, rtol=0)
    assert (ours[1] - plain[1]).abs().mean() > 2


# Chains

def test_a_chain_is_the_product_of_its_maps():
    x = pixels(5).double()
    tfms = [partial(random_resized_crop, size=(40, 50), generator=seeded(1)),
            partial(random_flip, generator=seeded(2)),
            partial(random_affine, generator=seeded(3)),
            partial(random_perspective, generator=seeded(4)),
            partial(affine, angle=10.)]
    mapped = MappedBatch(x)
    for tfm in tfms: mapped = tfm(mapped)
    assert mapped.shape == (5, 3, 40, 50)
    assert mapped.maps.dtype == torch.float64
    # where does a point of the result come from? one map after the other, from the last one on
    for i in range(1, 5): tfms[i-1].keywords['generator'].manual_seed(i)
    points = torch.tensor([[0.3, -0.2, 1.], [0., 0, 1], [-0.9, 0.8, 1]], dtype=torch.float64)
    sizes = [(60, 80)] + [(40, 50)]*4
    parts = [tfm(MappedBatch(x[..., :h, :w])).maps for tfm, (h, w) in zip(tfms, sizes)]
    for i in range(5):
        p = points.T
        for m in reversed(parts):
            p = m[i] @ p
            if len(p) == 2: p = torch.cat([p, torch.ones(1, 3, dtype=torch.float64)])
            p = p/p[2]
        q = mapped.maps[i] @ points.T
        torch.testing.assert_close(q[:2]/q[2], p[:2])


def test_a_chain_reads_once():
    x = pixels(2, 60, 60)
    there_and_back = BatchTransforms(*[partial(affine, angle=a) for a in (25., -25.)]*6)
    assert (there_and_back(x).int() - x.int()).abs().max() <= 1
    step_by_step = x
    for tfm in there_and_back.tfms: step_by_step = tfm(step_by_step)
    assert (step_by_step.int() - x.int()).abs()[..., 20:40, 20:40].float().mean() > 3


def test_crops_and_flips_in_a_chain_are_exact():
    x = pixels(8)
    chain = BatchTransforms(partial(crop, generator=seeded(1)),
                            partial(random_flip, generator=seeded(2)))
    expected = random_flip(crop(x, generator=seeded(1)), generator=seeded(2))
    assert torch.equal(chain(x), expected)


def test_functions_of_ones_own_go_between_maps():
    x = pixels(4)
    seen = []
    def note(x):
        seen.append(x)
        return x + 1
    res = BatchTransforms(random_flip, note, partial(affine, angle=0.), lambda x: x)(x)
    assert seen[0].shape == x.shape
    assert res.dtype == torch.uint8
    assert repr(BatchTransforms(random_flip, note)) == 'BatchTransforms(random_flip, note)'


# Every image, every type, every shape

@each_tfm
def test_each_image_gets_numbers_of_its_own(tfm):
    torch.manual_seed(0)
    x = pixels(1).expand(64, -1, -1, -1)
    n = len(tfm(x).flatten(1).unique(dim=0))
    expected = {random_flip: 2, random_dihedral: 4}.get(tfm, 63)
    assert n >= expected


@each_tfm
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float64, torch.float32, torch.float16,
                                   torch.bfloat16])
def test_types_and_memory_formats_are_kept(tfm, dtype):
    x = pixels(9)
    as_floats = x.float()/255
    torch.manual_seed(3)
    expected = tfm(as_floats)
    x = x if dtype == torch.uint8 else as_floats.to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        before = x.contiguous(memory_format=layout)
        kept = before.clone()
        torch.manual_seed(3)
        res = tfm(before)
        assert res.dtype == dtype
        assert res.shape == expected.shape
        assert res.is_contiguous(memory_format=layout)
        assert torch.equal(before, kept)
        if tfm in (BATCH['noise'], BATCH['lighting'], BATCH['everything']): continue
        # float64 draws other numbers for `random_affine`
        if dtype == torch.float64 and tfm in (random_affine, BATCH['chain']): continue
        unit = 255. if dtype == torch.uint8 else 1.
        tolerance = {torch.uint8: 0.006, torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
        torch.testing.assert_close(res.float()/unit, expected, atol=tolerance, rtol=0)


@each_tfm
@pytest.mark.parametrize('shape', [(1, 3, 60, 80), (1, 1, 40, 40), (3, 4, 17, 90), (2, 3, 1, 9)])
def test_one_image_grey_images_and_odd_shapes(tfm, shape):
    x = pixels(shape[0], *shape[2:], c=shape[1])
    for y in (tfm(x), tfm(x.float())):
        assert y.shape[:2] == shape[:2]
        assert torch.isfinite(y.float()).all()


@each_tfm
def test_wrong_batches_are_rejected_before_a_number_is_drawn(tfm):
    if tfm is random_affine: pytest.skip('chapter 08 returns an empty batch as it is')
    state = torch.get_rng_state()
    for wrong, message in ((torch.zeros(0, 3, 8, 8), 'the batch is empty'),
                           (torch.zeros(3, 8, 8), r'\(N, C, H, W\), not a tensor of shape'),
                           (torch.zeros(2, 3, 8, 8, dtype=torch.int64), 'floats or bytes'),
                           ([1, 2], r'\(N, C, H, W\), not an object of type list')):
        with pytest.raises(ValueError, match=message): tfm(wrong)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_that_cannot_be_are_named():
    x = pixels(2)
    for call, message in (
            (lambda: random_resized_crop(x, 8, scale=(0, 1)), 'random_resized_crop: scale'),
            (lambda: random_resized_crop(x, 0), 'at least 1'),
            (lambda: random_perspective(x, 0.25), 'magnitude is from 0 to 0.25'),
            (lambda: PilTiltRandomCrop(8, magnitude=-0.1), 'magnitude is from 0 to 0.25'),
            (lambda: random_lighting(x, contrast=-1.), 'at least 0'),
            (lambda: crop_resize(x, [[0, 0, 9, 9]], 8), r'boxes \(2, 4\)'),
            (lambda: crop_resize(x, [0, 0, 9.5, 9], 8), 'in whole pixels'),
            (lambda: crop_resize(x, [9, 0, 9, 9], 8), 'in whole pixels'),
            (lambda: crop_resize(x, [0, 0, 80, 61], 8), '80 wide and 60 high'),
            (lambda: apply_maps(x, torch.eye(2, 3)), 'a matrix for each of 2 images'),
            (lambda: apply_maps(x, torch.zeros(2, 3, 2)), 'a matrix for each of 2 images')):
        with pytest.raises(ValueError, match=message): call()


def test_gradients_of_images_and_maps():
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    maps = (torch.eye(3, dtype=torch.float64) + 0.1*torch.randn(2, 3, 3, dtype=torch.float64,
                                                                generator=seeded()))
    maps = maps.requires_grad_()
    smaller = partial(apply_maps, size=(5, 6), antialias=False)
    assert torch.autograd.gradcheck(smaller, (x, maps))
    assert torch.autograd.gradcheck(lambda x: apply_maps(x, maps.detach(), (3, 3)), x)


# Light and holes

def test_lighting_stays_within_its_limits():
    x = torch.rand(500, 3, 6, 6)
    mean = x.mean((1, 2, 3))
    brighter = random_lighting(x, brightness=0.3, contrast=0.)
    shift = brighter.mean((1, 2, 3)) - mean
    assert -0.3 <= shift.min() < -0.27
    assert 0.27 < shift.max() <= 0.3
    torch.testing.assert_close(brighter - x, shift.view(-1, 1, 1, 1).expand_as(x))
    stronger = random_lighting(x, brightness=0., contrast=1.)
    factor = stronger.std((1, 2, 3))/x.std((1, 2, 3))
    assert 0.5 - 1e-4 <= factor.min() < 0.55
    assert 1.9 < factor.max() <= 2 + 1e-4
    torch.testing.assert_close(stronger.mean((1, 2, 3)), mean)
    grey = torch.rand(20, 1, 6, 6).expand(-1, 3, -1, -1)
    more_colour = random_lighting(grey, brightness=0., contrast=0., saturation=1.)
    torch.testing.assert_close(more_colour, grey)


def test_holes_are_boxes_of_the_size_wanted():
    x = torch.ones(400, 2, 50, 70)
    for image in RandomErasing(1., scale=(0.1, 0.3), value=(0., -1.), generator=seeded())(x):
        hole = image[0] == 0
        assert torch.equal(hole, image[1] == -1)
        rows, cols = hole.nonzero().unbind(1)
        h, w = (int(o.max() - o.min()) + 1 for o in (rows, cols))
        assert h*w == hole.sum()
        assert 0.09 < h*w/3500 < 0.31
        assert 0.27 < w/h < 3.7
    noise = RandomErasing(1., value=None, generator=seeded())(100*x)
    drawn = noise[noise != 100]
    assert drawn.mean().abs() < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert torch.equal(RandomErasing(0.)(x), x)


# In a run

class Keep(Callback):
    "Keeps all batches that the model saw"
    _order = AugmentCallback._order + 1
    def __init__(self, stop=math.inf):
        self.seen = []
        self.stop = stop

    def after_batch(self):
        self.seen.append((self.in_train, self.xb.clone(), self.yb.clone()))
        if len(self.seen) >= self.stop: raise KeyboardInterrupt


def learner(seed=0):
    torch.manual_seed(seed)
    x, y = pixels(24, 20, 20).float()/255, torch.arange(24) % 3
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4, 3))
    data = DataBunch(list(zip(x[:18].split(6), y[:18].split(6))), [(x[18:], y[18:])], 3)
    return Learner(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, data)


def test_only_training_inputs_are_changed():
    learn, keep = learner(), Keep()
    tfm = BatchTransforms(partial(random_resized_crop, size=16), random_flip, RandomErasing(1.))
    quiet_runner([keep, AugmentCallback(tfm)]).fit(2, learn)
    batches = [*learn.data.train_dl, *learn.data.valid_dl]*2
    for (x, y), (in_train, xb, yb) in zip(batches, keep.seen, strict=True):
        assert torch.equal(y, yb)
        assert torch.equal(x, xb) is not in_train
        assert xb.shape[2:] == ((16, 16) if in_train else (20, 20))


@pytest.mark.parametrize('own', [True, False])
def test_a_run_that_is_resumed_draws_the_same_numbers(tmp_path, own):
    def fit(seed=5, stop=math.inf, **kwargs):
        g = dict(generator=seeded(7)) if own else {}
        tfm = BatchTransforms(partial(crop, **g), partial(random_affine, **g),
                              RandomErasing(1., **g))
        learn, keep = learner(), Keep(stop)
        cbs = [keep, AugmentCallback(tfm)]
        if kwargs: cbs.append(CheckpointCallback(tmp_path, every=1, **kwargs))
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'keep is no longer')
            with contextlib.suppress(KeyboardInterrupt): quiet_runner(cbs).fit(4, learn)
        return [x for in_train, x, _ in keep.seen if in_train], learn.model.state_dict()
    whole, weights = fit()
    first, _ = fit(stop=7, keep=2)
    rest, resumed = fit(seed=99, resume=True)
    assert len(whole) == 12
    assert 12 - len(rest) <= len(first) < 12
    first = first[:12 - len(rest)]
    for a, b in zip(whole, first + rest, strict=True): assert torch.equal(a, b)
    for k in weights: assert torch.equal(weights[k], resumed[k])


def test_the_same_seed_gives_the_same_batch():
    x = pixels(6)
    for name, tfm in BATCH.items():
        torch.manual_seed(1)
        first = tfm(x)
        torch.manual_seed(1)
        assert torch.equal(first, tfm(x)), name
        assert torch.equal(copy.deepcopy(tfm)(x[:1]).new_zeros(1), x.new_zeros(1))


def test_floats_of_pictures():
    for mode in ('RGB', 'L', 'RGBA'):
        picture = pictures(pixels(1))[0].convert(mode)
        x = np_to_float(picture)
        assert x.shape == (len(mode), 60, 80)
        assert x.is_contiguous()
        assert torch.equal(x, torch.from_numpy(np.array(picture)).view(60, 80, -1)
                           .permute(2, 0, 1).float()/255)


def test_corners_far_from_the_origin():
    small = ((0, 0), (0, 128), (128, 128), (128, 0))
    for at in (0, 300, 3000, 30_000):
        box = [(at + x*100/128, at + y*100/128) for x, y in small]
        a, b, c, d, e, f, g, h = find_coeffs(box, small)
        assert abs(a*64 + b*64 + c - (at + 50)) < 1e-6*(at + 1) and abs(g) + abs(h) < 1e-9
        flat = [*box[:3], (at + 50, at + 50)]
        with pytest.raises(ValueError, match='on one line'): find_coeffs(flat, small)
    im = PIL.Image.new('RGB', (4000, 3000))
    for seed in range(10):
        random.seed(seed)
        torch.manual_seed(seed)
        assert PilTiltRandomCrop(128, 1000, magnitude=0.1)(im).size == (128, 128)
