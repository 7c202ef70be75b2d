"Augmentation, averaged weights and recipes, on shapes and mishaps that chapter 08 does not show."
import ast
import copy
import json
import math
import pickle
import re
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import exported_is_the_same, make_callback, quiet_runner, tiny_learner
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.batches import predict
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.metrics import accuracy, AvgStatsCallback
from minifastai.norms import RunningBatchNorm
from minifastai.recorder import Recorder
from minifastai.augment import affine, AugmentCallback, random_affine, shift_tfms, TTA
from minifastai.resnet import res_layer, ResBlock
from minifastai.recipes import AverageWeightsCallback, Crop, Recipe, RECIPES

root = Path(__file__).parent.parent


# Affine maps

def matrix(*rows): return torch.tensor(rows, dtype=torch.float64)


def origin(shape, angle=0., scale=1., shear=0., dx=0., dy=0.):
    "A function: where in an image the pixel at row `i`, column `j` of its affine map comes from"
    _, h, w = shape
    t = math.radians(angle)
    turn = matrix([math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)])     # y counts down
    back = torch.linalg.inv(turn*scale @ matrix([1., -shear], [0., 1.]))

    def of(i, j):
        px, py = back @ matrix(j + 0.5 - w/2 - dx, i + 0.5 - h/2 - dy)
        px = px.item() + w/2 - 0.5
        py = py.item() + h/2 - 0.5
        return min(max(px, 0), w - 1), min(max(py, 0), h - 1)

    return of


def between_pixels(x, px, py):
    "The bilinear interpolation of the image `x` at column `px`, row `py`"
    _, h, w = x.shape
    x0, y0 = int(px), int(py)
    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
    fx, fy = px - x0, py - y0
    upper = (1-fx)*x[:, y0, x0] + fx*x[:, y0, x1]
    lower = (1-fx)*x[:, y1, x0] + fx*x[:, y1, x1]
    return (1-fy)*upper + fy*lower


def sampled(x, **how):
    "The same affine map pixel by pixel, in double precision"
    _, h, w = x.shape
    out = torch.empty_like(x)
    comes_from = origin(x.shape, **how)
    for i in range(h):
        for j in range(w): out[:, i, j] = between_pixels(x, *comes_from(i, j))
    return out


@pytest.mark.parametrize('shape', [(1, 8, 8), (3, 9, 5), (2, 4, 11)])
def test_affine_is_the_map_that_it_says(shape):
    torch.manual_seed(0)
    x = torch.randn(4, *shape, dtype=torch.float64)
    how = dict(
        angle=[17., -80., 0., 200.],
        scale=[1.3, 0.7, 1., 1.1],
        shear=[0.2, -0.4, 1., 0.],
        dx=[1.5, 0., -2., 0.3],
        dy=[-0.5, 2., 0., 0.7],
    )
    ours = affine(x, **{k: torch.tensor(v, dtype=torch.float64) for k, v in how.items()})
    for i in range(4):
        theirs = sampled(x[i], **{k: v[i] for k, v in how.items()})
        torch.testing.assert_close(ours[i], theirs)


def centres(x):
    "Rows and columns, counted from the middle, of the centres of mass of square images"
    rows, cols = x.sum(3).squeeze(1), x.sum(2).squeeze(1)
    at = torch.arange(float(x.shape[-1]))
    return torch.stack([(v*at).sum(1)/v.sum(1) - x.shape[-1]//2 for v in (rows, cols)])


def test_random_affine_stays_within_its_limits_and_repeats_itself():
    x = torch.zeros(500, 1, 21, 21)
    x[:, :, 10, 10] = 1
    g = torch.Generator().manual_seed(1)
    moved = random_affine(x, degrees=0., scale=0., shear=0., shift=3., generator=g)
    centre = centres(moved)
    assert centre.abs().max() <= 3 + 1e-3
    assert centre.min() < -2.5
    assert centre.max() > 2.5
    assert centre.mean(1).abs().max() < 0.4
    again = random_affine(x, degrees=0., scale=0., shear=0., shift=3.,
                          generator=torch.Generator().manual_seed(1))
    assert torch.equal(moved, again)
    torch.testing.assert_close(random_affine(x, degrees=0., scale=0., shear=0., shift=0.), x)
    assert len(random_affine(x[:0])) == 0


@pytest.mark.parametrize('how, message', [
    (dict(scale=0.), 'scale has to be above 0'),
    (dict(scale=-1.), 'scale has to be above 0'),
    (dict(scale=float('nan')), 'scale has to be above 0'),
])
def test_maps_that_cannot_be(how, message):
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message): affine(x, **how)
    with pytest.raises(ValueError, match='scale has to be at least 0'): random_affine(x, scale=-0.1)


# Augmentation views

def test_views_and_recipes_can_be_copied_and_sent():
    pickle.loads(pickle.dumps(RECIPES['eight-epochs']))
    for view in pickle.loads(pickle.dumps(shift_tfms())):
        assert view(torch.zeros(2, 1, 4, 4)).shape == (2, 1, 4, 4)
    with pytest.raises(FrozenInstanceError): RECIPES['one-epoch'].lr = 1.
    with pytest.raises(TypeError): RECIPES['mine'] = None


def test_several_looks_validate_as_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x, y = torch.randn(40, 1, 6, 6), torch.randint(3, (40,))
    data = DataBunch([(x, y)], [(x[:30], y[:30]), (x[30:], y[30:])])
    several = TTA(model, shift_tfms())
    opt = optim.SGD(several.parameters(), lr=0.)
    run = Runner([AvgStatsCallback(accuracy)])
    run.show_stats = lambda *stats: None
    run.fit(1, Learner(several, opt, F.cross_entropy, data))

    p = torch.stack([model(view(x)).softmax(1) for view in shift_tfms()]).mean(0)
    loss = F.nll_loss(p.log(), y).item()
    right = (p.argmax(1) == y).float().mean().item()
    assert run.avg_stats.valid_stats.avg_stats == pytest.approx([loss, right], abs=1e-5)


def test_predict_puts_modes_back_after_an_error():
    class Fails(nn.Module):
        def forward(self, x): raise RuntimeError('on purpose')
    model = nn.Sequential(nn.Dropout(), Fails())
    model[0].eval()
    with pytest.raises(RuntimeError, match='on purpose'): predict(model, torch.zeros(2, 3))
    assert [m.training for m in model.modules()] == [True, False, True]


def test_augmenting_leaves_validation_alone_and_needs_a_function():
    with pytest.raises(TypeError, match='takes a function'): AugmentCallback(None)


# Averaged weights

def learner(model=None, n=6):
    "A small network, or `model`, on `n` random batches, two of which validate it"
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(n)]
    opt = optim.SGD(model.parameters(), lr=0.5)
    return Learner(model, opt, F.cross_entropy, DataBunch(batches, batches[:2]))


class Stop(Callback):
    "Raises `error` at `event`: in training after three steps, in validation at once"
    def __init__(self, event, error):
        self.name = 'stop'
        self.error = error
        setattr(self, event, self._raise)

    def _raise(self):
        if not self.in_train or self.n_iter == 3: raise self.error


class Keep(Callback):
    "Keeps a copy of the model's state after each step"
    _order = 1
    def __init__(self): self.states = []

    def after_step(self):
        self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})


def averaged(states, decay):
    "The exponential moving average of floating point tensors, by hand"
    mean = dict(states[0])
    for state in states[1:]:
        for k, v in state.items():
            if v.is_floating_point(): mean[k] = decay*mean[k] + (1 - decay)*v
    return mean


@pytest.mark.parametrize('event, error', [
    ('after_batch', KeyboardInterrupt()),
    ('after_pred', ValueError('on purpose')),
    ('begin_validate', ValueError('on purpose')),
    ('after_loss', ValueError('on purpose')),
])
def test_averages_are_left_in_the_model_however_the_fit_ends(event, error):
    learn, averaging = learner(), AverageWeightsCallback(0.5)
    with pytest.raises(type(error)): Runner([averaging, Stop(event, error)]).fit(2, learn)
    # the training weights, which have changed places with the averages
    raw = averaging.average['0.weight']
    assert not torch.equal(raw, learn.model[0].weight)

    keep = Keep()   # the same steps once more
    with pytest.raises(type(error)): Runner([keep, Stop(event, error)]).fit(2, learner())
    mean = averaged(keep.states, 0.5)
    for k, v in learn.model.state_dict().items():
        if v.is_floating_point(): torch.testing.assert_close(v, mean[k])


def test_averaging_before_any_step_changes_nothing():
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    Runner([AverageWeightsCallback()]).fit(0, learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_averaging_with_a_running_norm():
    learn = learner(nn.Sequential(nn.Linear(3, 4), RunningBatchNorm(4), nn.Linear(4, 2)))
    Runner([AverageWeightsCallback(0.5)]).fit(1, learn)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


def quiet_fit(learn, *cbs, epochs=2):
    run = quiet_runner([AvgStatsCallback(), *cbs])
    run.fit(epochs, learn)
    return torch.cat([t.flatten() for t in learn.model.state_dict().values()])


def validating(event, other=None):
    "A callback that validates on the side at `event` of each training batch"
    def validate(self):
        if self.in_train: self.run.validate(other)
    return make_callback(_order=10, **{event: validate})


@pytest.mark.parametrize('event', [
    'begin_batch', 'after_pred', 'after_loss', 'after_backward', 'begin_step', 'after_step',
    'after_batch',
])
def test_a_batch_goes_on_with_its_own_weights_after_a_validation(event):
    without = quiet_fit(learner(), AverageWeightsCallback(0.5))
    with_it = quiet_fit(learner(), AverageWeightsCallback(0.5), validating(event))
    assert torch.equal(without, with_it)


def test_averages_are_never_put_into_another_model():
    other = learner(nn.Linear(3, 2))
    before = copy.deepcopy(other.model.state_dict())
    without = quiet_fit(learner(), AverageWeightsCallback(0.5))
    aside = validating('after_batch', other)
    assert torch.equal(without, quiet_fit(learner(), AverageWeightsCallback(0.5), aside))
    assert all(torch.equal(v, before[k]) for k, v in other.model.state_dict().items())


def test_validating_before_any_fit():
    assert quiet_runner([AvgStatsCallback(), AverageWeightsCallback()]).validate(learner())


class Odd(nn.Module):
    "Has complex weights, and buffers that can't be written to or have no mean"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2, dtype=torch.cfloat))
        self.register_buffer('expanded', torch.zeros(1, 2).expand(5, 2))
        self.register_buffer('sparse', torch.eye(3).to_sparse())
        self.register_buffer('coarse', torch.ones(2, dtype=torch.bfloat16))

    def forward(self, x): return (x.to(torch.cfloat) @ self.w).abs() + x.sum(1, keepdim=True)


def test_complex_weights_are_averaged_and_odd_buffers_left_alone():
    learn, weights = learner(Odd()), []
    class Note(Callback):
        def after_step(self): weights.append(self.model.w.detach().clone())
    quiet_runner([AvgStatsCallback(), AverageWeightsCallback(0.5), Note()]).fit(1, learn)
    mean = weights[0]
    for w in weights[1:]: mean = 0.5*mean + 0.5*w
    torch.testing.assert_close(learn.model.w.detach(), mean)


def test_a_module_that_is_added_and_one_that_grows():
    def epoch_one(self):
        if self.epoch != 1: return
        self.model.insert(0, nn.Linear(3, 3))
        self.model[2] = nn.BatchNorm1d(4)
        self.opt.add_param_group(dict(params=self.model[0].parameters()))
    grows = make_callback(begin_epoch=epoch_one)
    learn, averaging = learner(), AverageWeightsCallback(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quiet_fit(learn, averaging, grows)
    for k, t in learn.model.named_parameters(): assert averaging.average[k].shape == t.shape


def test_averaging_needs_a_module():
    w = torch.zeros(3, 2, requires_grad=True)
    data = DataBunch([(torch.ones(4, 3), torch.zeros(4).long())])
    learn = Learner(lambda x: x @ w, optim.SGD([w], lr=0.1), F.cross_entropy, data)
    with pytest.raises(TypeError, match='forward of an nn.Module'):
        Runner(AverageWeightsCallback()).fit(1, learn)


# Recipes

@pytest.mark.parametrize('norm', ['batch', 'running', 'layer', 'instance', 'group', 'none'])
def test_layers_with_any_norm_and_size(norm):
    layer = res_layer(2, 4, norm=norm, n=2)
    for h, w in ((8, 8), (7, 5), (2, 3)):
        assert layer(torch.randn(3, 2, h, w)).shape == (3, 4, math.ceil(h/2), math.ceil(w/2))
    assert ResBlock(4, 1, norm=norm)(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


class Mine(Callback):
    "A callback of one's own"


@pytest.mark.parametrize('change', [
    dict(crop=3),
    dict(augment=random_affine),
    dict(average=0.9),
    dict(warm_up=None),
    dict(channels_last=False),
    dict(momentum=0.),
    dict(layer=lambda ni, nf, ks=3: nn.Conv2d(ni, nf, ks, 2, ks//2)),
], ids=lambda change: ''.join(change))
def test_a_recipe_changes_one_thing_at_a_time(change):
    data = DataBunch([(torch.randn(4, 3, 16, 16), torch.randint(5, (4,)))]*4, None, 5)
    recipe = replace(Recipe(epochs=1, bs=4, lr=0.1, nfs=(4, 8)), **change)
    learn, run = recipe.learn_run(data, [Mine])
    run.fit(1, learn)
    assert recipe.predict(learn.model, torch.randn(3, 3, 16, 16)).shape == (3, 5)
    assert isinstance(run.mine, Callback)


def test_cropping_leaves_out_the_border_and_nothing_else():
    data = DataBunch([(torch.zeros(4, 1, 12, 12), torch.zeros(4))], None, 5)
    learn, _ = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4, 8), crop=2).learn_run(data)
    x = torch.randn(1, 1, 12, 12, requires_grad=True)
    learn.model.eval()(x).sum().backward()
    seen = x.grad[0, 0] != 0
    for border in (seen[:2], seen[-2:], seen[:, :2], seen[:, -2:]): assert not border.any()
    assert seen[2:-2, 2:-2].float().mean() > 0.5


def test_a_crop_can_be_seen():
    data = DataBunch([(torch.zeros(4, 1, 12, 12), torch.zeros(4))], None, 5)
    model = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4, 8), crop=2).learn_run(data)[0].model
    assert repr(model[0]) == 'Crop(2)'
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model[:1](torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 1, 1))
    # as it was when the layer was nn.ZeroPad2d
    assert next(iter(model.state_dict())) == '1.0.0.weight'
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match='Crop: pixels'): Crop(wrong)


@pytest.mark.parametrize('tta', [False, True])
@pytest.mark.parametrize('name', RECIPES)
def test_recipes_can_be_exported(name, tta):
    recipe = replace(RECIPES[name], nfs=(4, 8))
    data = DataBunch([(torch.zeros(4, 1, 28, 28), torch.zeros(4))], None, 10)
    model = recipe.learn_run(data)[0].model
    if tta: model = TTA(model, recipe.tta_tfms[:6])
    exported_is_the_same(model, (1, 28, 28))


@pytest.mark.parametrize('change, message', [
    (dict(epochs=0), 'epochs has to be at least 1, not 0'),
    (dict(bs=-1), 'bs has to be at least 1'),
    (dict(lr=0.), 'lr has to be above 0'),
    (dict(lr=float('nan')), 'lr has to be above 0, not nan'),
    (dict(crop=-1), 'crop has to be'),
    (dict(momentum=1.), 'momentum has to be at least 0 and below 1'),
    (dict(weight_decay=-1e-4), 'weight_decay has to be'),
    (dict(warm_up=1.5), 'warm_up has to be from 0 to 1, or None'),
    (dict(div=0.), 'div has to be at least 1, not 0.0'),
    (dict(div_final=0.5), 'div_final has to be at least 1'),
    (dict(smoothing=2.), 'smoothing has to be from 0 to 1'),
])
def test_a_recipe_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(RECIPES['one-epoch'], **change)


def test_a_crop_that_leaves_nothing():
    data = DataBunch([(torch.randn(4, 1, 6, 8), torch.randint(5, (4,)))], None, 5)
    learn, run = Recipe(epochs=1, bs=4, lr=0.1, nfs=(4,), crop=3).learn_run(data)
    says = 'cuts off 3 pixels at each border, so it needs larger images than 6x8'
    with pytest.raises(ValueError, match=says): run.fit(1, learn)
    with pytest.raises(ValueError, match='images of shape'): learn.model(torch.randn(4, 48))
    assert copy.deepcopy(learn.model)(torch.randn(2, 1, 9, 8)).shape == (2, 5)


def test_the_lessons_recipe_is_the_one_cycle_run_of_chapter_07():
    "Rates from 0.6 to 2.0 for 30% of the steps, then down to 0.1; norms after plain ReLUs"
    recipe = RECIPES['lesson']
    data = DataBunch([(torch.randn(4, 1, 28, 28), torch.randint(10, (4,)))]*10, None, 10)
    learn, run = recipe.learn_run(data, Recorder)
    schedule = run.param_scheduler.sched_funcs
    for position, lr in ((0., 0.6), (0.15, 1.3), (0.3, 2.), (0.65, 1.05), (1., 0.1)):
        assert schedule(position) == pytest.approx(lr)
    assert [type(m).__name__ for m in learn.model[0]] == ['Conv2d', 'GeneralRelu', 'BatchNorm2d']
    assert [layer[0].out_channels for layer in learn.model[:5]] == [8, 16, 32, 64, 64]
    assert torch.equal(learn.model[0][1](torch.tensor([-1., 9.])), torch.tensor([0., 9.]))
    group, = learn.opt.param_groups
    assert (group['momentum'], group['weight_decay'], recipe.epochs, recipe.bs) == (0, 0, 8, 512)


@pytest.mark.parametrize(('name', 'loop', 'n'),
                         [('rungs', 'steps.items()', 14), ('alone', 'others.items()', 16)])
def test_a_table_that_is_drawn_is_the_one_that_was_measured(name, loop, n):
    "Chapter 08 copies stored outputs into cells, so that drawing them needs no training"
    cells = json.loads((root/'nbs'/'08_beat_98.ipynb').read_text(encoding='utf-8'))['cells']
    copied, = (s for c in cells if f'\n{name} = {{' in (s := ''.join(c['source'])))
    measured, = (c for c in cells if loop in ''.join(c['source']))
    stored = ''.join(measured['outputs'][0]['text'])
    rows = re.findall(r"'(.+)': +\(([\d.]+), ([\d.]+), ([\d.]+)\)", copied)
    assert len(rows) == len(stored.splitlines()) == n
    for name, *numbers in rows: assert f'{name:34} {{}} ({{}} to {{}})'.format(*numbers) in stored


# The test set

def uses_the_test_set(source) -> bool:
    "Does a piece of code call `get_test_data`, or pass it on? To import or define it is no use"
    python = re.sub(r'^[!%].*', 'pass', source, flags=re.M)   # without the shell's lines
    nodes = list(ast.walk(ast.parse(python)))
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    return 'get_test_data' in names | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_no_notebook_looks_at_the_test_set_before_the_end():
    "Chapter 08 does so after the heading of the section about it; chapter 00 defines the function"
    uses = []
    for nb in (root/'nbs').glob('**/*.ipynb'):
        if '.ipynb_checkpoints' in str(nb) or nb.stem == '00_data': continue
        at_the_end = False
        for cell in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            assert 't10k' not in source, nb
            if cell['cell_type'] == 'markdown': at_the_end |= '## The test set' in source
            elif uses_the_test_set(source): uses.append((nb.stem, at_the_end))
    assert set(uses) == {('08_beat_98', True)}


@pytest.mark.parametrize('folder', ['minifastai', 'benchmarks'])
def test_no_module_looks_at_the_test_set(folder):
    "No command either, as commands are functions of a module"
    paths = list((root/folder).glob('*.py'))
    assert paths
    for path in paths: assert not uses_the_test_set(path.read_text(encoding='utf-8')), path


def test_validation_leaves_the_weights_that_are_averaged_alone():
    "Training goes on from the weights themselves, not from their average"
    def trained(validate):
        torch.manual_seed(0)
        learn = tiny_learner()
        if not validate: learn.data = DataBunch(learn.data.train_dl, None)
        Runner(AverageWeightsCallback(0.5)).fit(3, learn)
        return learn.model.weight
    assert torch.equal(trained(validate=True), trained(validate=False))
