"Augmentation, averaged weights and recipes on shapes, devices and mishaps that chapter 08 does not show; and nobody looks at the test set."
import copy
import json
import math
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.norms import RunningBatchNorm
from minifastai.augment import affine, AugmentCallback, predict, random_affine, shift_views, TTA
from minifastai.resnet import res_layer, ResBlock
from minifastai.recipes import AverageWeightsCallback, Recipe, RECIPES

root = Path(__file__).parent.parent


def sampled(x, angle=0., scale=1., shear=0., dx=0., dy=0.):
    "The same map pixel by pixel, in double precision: for each new pixel, where it comes from"
    c, h, w = x.shape
    out, t = torch.empty_like(x), math.radians(angle)
    turn = torch.tensor([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]], dtype=torch.float64)     # y counts down
    back = torch.linalg.inv(turn*scale @ torch.tensor([[1., -shear], [0., 1.]], dtype=torch.float64))
    for i in range(h):
        for j in range(w):
            q = torch.tensor([j + 0.5 - w/2 - dx, i + 0.5 - h/2 - dy], dtype=torch.float64)
            px, py = ((back @ q) + torch.tensor([w/2 - 0.5, h/2 - 0.5], dtype=torch.float64)).tolist()
            px, py = min(max(px, 0), w - 1), min(max(py, 0), h - 1)
            x0, y0 = int(px), int(py); x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1); fx, fy = px - x0, py - y0
            out[:, i, j] = (1-fy)*((1-fx)*x[:, y0, x0] + fx*x[:, y0, x1]) + fy*((1-fx)*x[:, y1, x0] + fx*x[:, y1, x1])
    return out


@pytest.mark.parametrize('shape', [(1, 8, 8), (3, 9, 5), (2, 4, 11)])
def test_affine_is_the_map_that_it_says(shape):
    torch.manual_seed(0)
    x = torch.randn(4, *shape, dtype=torch.float64)
    how = dict(angle=[17., -80., 0., 200.], scale=[1.3, 0.7, 1., 1.1], shear=[0.2, -0.4, 1., 0.], dx=[1.5, 0., -2., 0.3], dy=[-0.5, 2., 0., 0.7])
    ours = affine(x, **{k: torch.tensor(v, dtype=torch.float64) for k, v in how.items()})
    for i in range(4): torch.testing.assert_close(ours[i], sampled(x[i], **{k: v[i] for k, v in how.items()}))


def test_random_affine_stays_within_its_limits_and_repeats_itself():
    x = torch.zeros(500, 1, 21, 21); x[:, :, 10, 10] = 1
    moved = random_affine(x, degrees=0., scale=0., shear=0., shift=3., generator=torch.Generator().manual_seed(1))
    rows, cols = moved.sum(3).squeeze(1), moved.sum(2).squeeze(1)
    centre = torch.stack([(v*torch.arange(21.)).sum(1)/v.sum(1) - 10 for v in (rows, cols)])
    assert centre.abs().max() <= 3 + 1e-3 and centre.min() < -2.5 and centre.max() > 2.5 and centre.mean(1).abs().max() < 0.4
    assert torch.equal(moved, random_affine(x, 0., 0., 0., 3., torch.Generator().manual_seed(1)))
    torch.testing.assert_close(random_affine(x, 0., 0., 0., 0.), x)
    assert len(random_affine(x[:0])) == 0


def test_views_and_recipes_can_be_copied_and_sent():
    pickle.loads(pickle.dumps(RECIPES['eight-epochs']))
    for view in pickle.loads(pickle.dumps(shift_views())): assert view(torch.zeros(2, 1, 4, 4)).shape == (2, 1, 4, 4)
    with pytest.raises(FrozenInstanceError): RECIPES['one-epoch'].lr = 1.
    with pytest.raises(TypeError): RECIPES['mine'] = None


def test_several_looks_validate_as_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x, y = torch.randn(40, 1, 6, 6), torch.randint(3, (40,))
    several = TTA(model, shift_views())
    run = Runner([AvgStatsCallback(accuracy)]); run.show_stats = lambda *stats: None
    run.fit(1, Learner(several, optim.SGD(several.parameters(), lr=0.), F.cross_entropy, DataBunch([(x, y)], [(x[:30], y[:30]), (x[30:], y[30:])])))
    p = torch.stack([model(v(x)).softmax(1) for v in shift_views()]).mean(0)
    assert run.avg_stats.valid_stats.avg_stats == pytest.approx([F.nll_loss(p.log(), y).item(), (p.argmax(1) == y).float().mean().item()], abs=1e-5)


def test_predict_puts_modes_back_after_an_error():
    class Fails(nn.Module):
        def forward(self, x): raise RuntimeError('on purpose')
    model = nn.Sequential(nn.Dropout(), Fails()); model[0].eval()
    with pytest.raises(RuntimeError, match='on purpose'): predict(model, torch.zeros(2, 3))
    assert [m.training for m in model.modules()] == [True, False, True]


def test_augmenting_leaves_validation_alone_and_needs_a_function():
    with pytest.raises(TypeError, match='takes a function'): AugmentCallback(None)


def learner(model=None, n=6):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(n)]
    return Learner(model, optim.SGD(model.parameters(), lr=0.5), F.cross_entropy, DataBunch(batches, batches[:2]))


class Stop(Callback):
    def __init__(self, event, error): self.name = 'stop'; setattr(self, event, lambda: self._raise(error))
    def _raise(self, error):
        if not self.in_train or self.n_iter == 3: raise error


@pytest.mark.parametrize('event, error', [('after_batch', KeyboardInterrupt()), ('after_pred', ValueError('on purpose')), ('begin_validate', ValueError('on purpose')), ('after_loss', ValueError('on purpose'))])
def test_averages_are_left_in_the_model_however_the_fit_ends(event, error):
    learn, averaging = learner(), AverageWeightsCallback(0.5)
    with pytest.raises(type(error)): Runner([averaging, Stop(event, error)]).fit(2, learn)
    assert averaging.averaged.n_averaged > 0
    raw = averaging.averaged.module
    assert not torch.equal(raw[0].weight, learn.model[0].weight)
    again = copy.deepcopy(learn.model)        # ours is the average: by hand, from the same steps
    learn2, steps = learner(), []
    class Keep(Callback):
        _order = 1
        def after_step(self): steps.append({k: v.clone() for k, v in self.model.state_dict().items()})
    with pytest.raises(type(error)): Runner([Keep(), Stop(event, error)]).fit(2, learn2)
    mean = steps[0]
    for s in steps[1:]: mean = {k: 0.5*mean[k] + 0.5*s[k] if v.is_floating_point() else mean[k] for k, v in s.items()}
    for k, v in again.state_dict().items():
        if v.is_floating_point(): torch.testing.assert_close(v, mean[k])


def test_averaging_before_any_step_changes_nothing():
    learn = learner(); before = copy.deepcopy(learn.model.state_dict())
    Runner([AverageWeightsCallback()]).fit(0, learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_averaging_with_a_running_norm():
    learn = learner(nn.Sequential(nn.Linear(3, 4), RunningBatchNorm(4), nn.Linear(4, 2)))
    Runner([AverageWeightsCallback(0.5)]).fit(1, learn)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


@pytest.mark.parametrize('norm', ['batch', 'running', 'layer', 'instance', 'group', 'none'])
def test_layers_with_any_norm_and_size(norm):
    layer = res_layer(2, 4, norm=norm, n=2)
    for h, w in ((8, 8), (7, 5), (2, 3)): assert layer(torch.randn(3, 2, h, w)).shape == (3, 4, math.ceil(h/2), math.ceil(w/2))
    assert ResBlock(4, 1, norm=norm)(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_a_recipe_changes_one_thing_at_a_time():
    data = DataBunch([(torch.randn(4, 3, 16, 16), torch.randint(5, (4,)))]*4, None, 5)
    base = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4, 8))
    for change in (dict(crop=3), dict(augment=random_affine), dict(average=0.9), dict(warm_up=None), dict(channels_last=False), dict(momentum=0.), dict(layer=lambda ni, nf, ks=3: nn.Conv2d(ni, nf, ks, 2, ks//2))):
        learn, run = replace(base, **change).learn_run(data, [type('Mine', (Callback,), {})])
        run.fit(1, learn)
        assert replace(base, **change).predict(learn.model, torch.randn(3, 3, 16, 16)).shape == (3, 5)
        assert isinstance(run.mine, Callback)


def test_cropping_leaves_out_the_border_and_nothing_else():
    model = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4, 8), crop=2).learn_run(DataBunch([(torch.zeros(4, 1, 12, 12), torch.zeros(4))], None, 5))[0].model.eval()
    x = torch.randn(1, 1, 12, 12, requires_grad=True)
    model(x).sum().backward()
    seen = x.grad[0, 0] != 0
    assert not seen[:2].any() and not seen[-2:].any() and not seen[:, :2].any() and not seen[:, -2:].any() and seen[2:-2, 2:-2].float().mean() > 0.5


@pytest.mark.parametrize('change, message', [
    (dict(epochs=0), 'epochs has to be at least 1, not 0'), (dict(bs=-1), 'bs has to be at least 1'), (dict(lr=0.), 'lr has to be above 0'), (dict(lr=float('nan')), 'lr has to be above 0, not nan'), (dict(crop=-1), 'crop has to be'),
    (dict(momentum=1.), 'momentum has to be at least 0 and below 1'), (dict(weight_decay=-1e-4), 'weight_decay has to be'), (dict(warm_up=1.5), 'warm_up has to be from 0 to 1, or None'), (dict(smoothing=2.), 'smoothing has to be from 0 to 1')])
def test_a_recipe_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=re.escape(message)): replace(RECIPES['one-epoch'], **change)


def test_a_crop_that_leaves_nothing():
    data = DataBunch([(torch.randn(4, 1, 6, 8), torch.randint(5, (4,)))], None, 5)
    learn, run = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4,), crop=3).learn_run(data)
    with pytest.raises(ValueError, match='leaves out 3 pixels at each border, so it needs larger images than 6x8'): run.fit(1, learn)
    with pytest.raises(ValueError, match='images of shape'): learn.model(torch.randn(4, 48))
    assert copy.deepcopy(learn.model)(torch.randn(2, 1, 9, 8)).shape == (2, 5)


@pytest.mark.parametrize('how, message', [(dict(scale=0.), 'scale has to be above 0'), (dict(scale=-1.), 'scale has to be above 0'), (dict(scale=float('nan')), 'scale has to be above 0')])
def test_maps_that_cannot_be(how, message):
    with pytest.raises(ValueError, match=message): affine(torch.randn(2, 1, 4, 4), **how)
    with pytest.raises(ValueError, match='scale has to be at least 0'): random_affine(torch.randn(2, 1, 4, 4), scale=-0.1)


def test_nobody_looks_at_the_test_set_before_the_end():
    "Its function may be called in chapter 08's section about it alone; no module, benchmark or command calls it"
    calls = []
    for nb in (root/'nbs').glob('**/*.ipynb'):
        if '.ipynb_checkpoints' in str(nb): continue
        cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
        headings = [''.join(c['source']) if c['cell_type'] == 'markdown' else '' for c in cells]
        for i, c in enumerate(cells):
            source = ''.join(c['source'])
            if c['cell_type'] == 'code' and 'get_test_data(' in source.replace('def get_test_data(', '').replace("call {'get_test_data'", ''):
                if 'test_fail(lambda: get_test_data' in source: continue    # chapter 00: what it refuses
                calls.append((nb.stem, any('## The test set' in h for h in headings[:i])))
            assert 't10k' not in source or nb.stem == '00_data', nb
    assert all(c == ('08_beat_98', True) for c in calls if c[0] != '00_data'), calls
    for path in [*(root/'minifastai').glob('*.py'), *(root/'benchmarks').glob('*.py')]:
        assert 'get_test_data(' not in path.read_text(encoding='utf-8').replace('def get_test_data(', '').replace("get_test_data('mnist')", ''), path
