"Telemetry on models that the course does not have; it leaves nothing behind and changes nothing."
import copy
import gc
import pickle
import random
import tracemalloc
from collections import UserDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import Raiser, tiny_learner
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.init import GeneralRelu
from minifastai.hooks import children, Hook, Hooks, ListContainer, summary
from minifastai.activations import (
    ActivationStats, append_stats, get_hist, get_min, plot_activations, plot_dead, plot_hists,
    plot_stats)
from minifastai.terminate import first_not_finite, TerminateOnNaNCallback


class Block(nn.Module):
    "A residual block, as others write it"
    def __init__(self, ni, nf, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(ni, nf, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(nf)
        self.conv2 = nn.Conv2d(nf, nf, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(nf)
        self.relu = nn.ReLU(inplace=True)
        if stride > 1:
            conv = nn.Conv2d(ni, nf, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(nf))
        else: self.shortcut = nn.Identity()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8, 8, 1), Block(8, 16, 2)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks: x = b(x)
        return self.head(x.mean((2, 3)))


def resnet_learner(n=4, seed=0):
    "A `ResNet` on `n` random batches to train on, and two to validate on"
    torch.manual_seed(seed)
    batches = [(torch.randn(6, 3, 12, 12), torch.randint(5, (6,))) for _ in range(n + 2)]
    model = ResNet()
    opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Learner(model, opt, F.cross_entropy, DataBunch(batches[:n], batches[n:], 5))


def n_hooks(model):
    "The number of hooks, of any kind, on the modules of `model`"
    kinds = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks'
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


def same_state(model, state):
    "Is each parameter and buffer of `model` what the copy `state` has?"
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def recorded(x, layer=None, **kwargs):
    "A hook after `append_stats` has seen the output `x` of `layer` once"
    layer = layer or nn.Identity()
    hook = Hook(nn.Identity(), append_stats)
    append_stats(hook, layer, None, x, **kwargs)
    return hook


@pytest.fixture
def figures():
    "Closes the figures that a test has drawn"
    yield
    import matplotlib.pyplot as plt
    plt.close('all')


# Statistics

def test_statistics_of_a_residual_network_are_those_of_its_training_batches():
    "Each number equals a plain computation from outputs that were kept whole"
    learn = resnet_learner()
    names = ['stem', 'blocks.0.conv1', 'blocks.0.conv2', 'blocks.1.conv1', 'blocks.1.conv2',
             'blocks.1.shortcut.0']
    kept = {name: [] for name in names}

    def keep(module, inputs, output, name):
        if module.training: kept[name].append(output.detach().clone())

    modules = dict(learn.model.named_modules())
    for name in names: modules[name].register_forward_hook(partial(keep, name=name))
    stats = ActivationStats(nn.Conv2d)
    Runner(stats).fit(2, learn)

    assert [h.name.split()[0] for h in stats.hooks] == names
    for h, outs in zip(stats.hooks, kept.values()):
        assert len(outs) == len(h.dead) == 8
        means, stds = h.stats
        for i, out in enumerate(outs):
            assert torch.allclose(means[i], out.mean(), atol=1e-6)
            assert torch.allclose(stds[i], out.std(), rtol=1e-5)
            assert torch.allclose(h.dead[i], (out.abs() <= 1e-3).float().mean(), atol=1e-6)
            assert torch.equal(h.hists[i][1:-1], out.flatten().histc(68, -7, 10))
            assert h.hists[i].sum() == out.numel()
        assert get_min(h).shape == (8,)
        assert get_hist(h).shape == (70, 8)


def test_any_choice_of_layers(figures):
    learn = resnet_learner(1)
    model = learn.model
    for layers, n in (
        (None, 4),
        (nn.BatchNorm2d, 5),
        ((nn.Conv2d, nn.Linear), 7),
        ('blocks.*.relu', 2),
        ('head', 1),
        (lambda name, m: isinstance(m, Block), 2),
        ([model.stem], 1),
        (model.head, 1),
    ):
        stats = ActivationStats(layers)
        Runner(stats).fit(1, learn)
        assert len(stats.hooks) == n
        assert all(len(h.dead) == 1 for h in stats.hooks)   # also for a ReLU that is used twice
        assert stats.plot().shape == (n, 3)
    for layers in ('nothing', [], nn.Conv3d, lambda name, m: False, [nn.Linear(1, 1)]):
        with pytest.raises(ValueError, match='layer'): Runner(ActivationStats(layers)).fit(1, learn)
    assert n_hooks(model) == 0


def test_validation_batches_are_left_out():
    learn = resnet_learner(4)
    with Hooks(learn.model, append_stats) as hooks: Runner().fit(2, learn)
    stats = ActivationStats()
    Runner(stats).fit(2, learn)
    # the four training batches of each epoch, and not the two of each validation
    assert len(hooks[0].dead) == len(stats.hooks[0].dead) == 8
    assert stats.hooks[0].steps == list(range(8))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(1,), (2, 3), (3, 4, 5, 6), (7, 200_003)])
def test_types_and_shapes(dtype, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    h = recorded(x, nn.ReLU())
    means, stds = h.stats
    assert torch.allclose(means[0], x.float().mean(), atol=1e-4)
    if x.numel() > 1: assert torch.allclose(stds[0], x.float().std(), rtol=1e-3)
    assert abs(h.hists[0].sum().item()*h.scales[0]/x.numel() - 1) < 1e-4
    assert torch.allclose(h.dead[0], (x.float().abs() <= 1e-3).float().mean())


def test_a_histogram_from_a_sample_is_that_of_the_whole():
    "Even if rows, channels or pixels differ, because the sample has some of each"
    torch.manual_seed(0)
    channels, columns = torch.arange(8.)[:, None, None], torch.arange(14.)
    x = torch.randn(512, 8, 14, 14) + channels - 4 + columns/10
    h = recorded(x)
    sample = h.hists[0]*h.scales[0]/x.numel()
    whole = x.flatten().histc(68, -7, 10)/x.numel()
    assert (sample[1:-1] - whole).abs().max() < 0.01
    assert (sample[-1] - (x > 10).float().mean()).abs() < 0.005


def test_nan_and_infinite_activations_do_not_stop_the_training():
    h = recorded(torch.tensor([1., torch.nan, torch.inf]))
    assert h.stats[0][0].isnan()
    assert get_min(h).isnan().all()


def test_options_and_plateaus():
    class Leaky(nn.LeakyReLU):
        plateau = -1.
    nested = nn.Sequential(nn.Identity(), nn.Sequential(Leaky()))
    h = recorded(torch.tensor([-1., -0.9995, 0., 5.]), nested)
    assert h.plateau == -1
    assert h.dead[0] == 0.5
    x = torch.tensor([-1., -0.99, 0., 5.])
    h = recorded(x, Leaky(), bins=4, lo=0., hi=4., plateau=5., tol=0.)
    assert h.dead[0] == 0.25
    assert h.hists[0].tolist() == [2, 1, 0, 0, 0, 1]


def test_activations_at_a_maximum_are_counted(figures):
    x = torch.tensor([-1., 0., 2., 5.9, 6., 7.])
    act = GeneralRelu(0.1, 0.4, 2.)
    h = recorded(act(x), nn.Sequential(nn.Identity(), act))
    assert h.saturated[0] == 0.5
    assert h.dead[0] == pytest.approx(1/6)   # the 0, at the plateau of -0.4
    assert recorded(x, nn.ReLU()).saturated == []
    labels = [[line.get_label() for line in ax.lines] for ax in plot_dead([h])]
    assert labels == [['at -0.4', 'at 2']]


def test_gradients_are_those_of_the_outputs(figures):
    "Each number equals a plain computation from gradients that were kept whole"
    learn = resnet_learner()
    kept = {name: [] for name in ('stem', 'blocks.1.relu', 'head')}

    def keep(module, inputs, output, grads):
        if not module.training: return
        at = len(grads)
        grads.append(None)
        def store(grad): grads[at] = grad.clone()
        output.register_hook(store)

    modules = dict(learn.model.named_modules())
    for name, grads in kept.items():
        modules[name].register_forward_hook(partial(keep, grads=grads))
    stats = ActivationStats([modules[name] for name in kept], grads=True, every=2)
    Runner(stats).fit(2, learn)
    for h, grads in zip(stats.hooks, kept.values()):
        # a ReLU is called twice in a batch, and the first call counts
        first = grads[::len(grads)//8]
        assert list(h.grads) == h.steps == [0, 2, 4, 6]
        for step, value in h.grads.items():
            assert torch.allclose(value, first[step].pow(2).mean().sqrt(), rtol=1e-4)
    assert len(plot_stats(stats)) == 3

    learn.model.requires_grad_(False)
    learn.model.head.requires_grad_(True)
    Runner(stats).fit(1, learn)
    assert [len(h.grads) for h in stats.hooks] == [0, 0, 2]
    assert len(plot_stats(stats)) == 3


# Nothing is changed, nothing is left behind

def test_training_with_telemetry_is_bit_identical():
    trained = []
    for cbs in ([], [ActivationStats()], [ActivationStats(grads=True)]):
        learn = resnet_learner()
        Runner(cbs).fit(2, learn)
        trained.append([*learn.model.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*trained))


@pytest.mark.parametrize('exc', [ValueError('oops'), KeyboardInterrupt(), CancelTrainException()])
@pytest.mark.parametrize('event', [
    'begin_fit',
    'after_pred',
    'after_backward',
    'begin_validate',
    'after_epoch',
])
def test_no_hook_is_left_behind(event, exc):
    learn = resnet_learner()
    try: Runner([ActivationStats('blocks.*'), Raiser(event, exc, order=5)]).fit(2, learn)
    except (ValueError, KeyboardInterrupt): pass
    assert n_hooks(learn.model) == 0
    try:
        with Hooks(learn.model, append_stats): Runner(Raiser(event, exc)).fit(1, learn)
    except (ValueError, KeyboardInterrupt): pass
    assert n_hooks(learn.model) == 0


def test_memory_is_flat_after_a_thousand_attachments():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(2, 4)

    def attach(n):
        for _ in range(n):
            with Hooks(model, append_stats): model(x)
        gc.collect()

    def used(): return tracemalloc.get_traced_memory()[0], len(gc.get_objects())

    attach(20)
    gc.collect()
    tracemalloc.start()
    attach(20)
    bytes_before, objects_before = used()
    attach(1000)
    bytes_after, objects_after = used()
    tracemalloc.stop()
    # one object that stays behind each time would be 1,000 objects and at least 50,000 bytes
    assert bytes_after - bytes_before < 40_000
    assert objects_after - objects_before < 500
    assert n_hooks(model) == 0


def test_nothing_waits_for_the_device(monkeypatch):
    "None of the ways to read a number from a tensor is taken during training"
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(2, 4)
    reads = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__',
             'nonzero')
    def fail(*args, **kwargs): pytest.fail('a synchronisation')
    with Hooks(model, append_stats) as hooks:
        for name in reads: monkeypatch.setattr(torch.Tensor, name, fail)
        model(x)
        monkeypatch.undo()
    assert len(hooks[1].dead) == 1


# Compiled models

def compiled_model(how):
    "A small model that is compiled as `how` says, by the quickest of backends"
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 3)))
    if how == 'a layer': model[2] = torch.compile(model[2], backend='eager')
    if how == 'in place': model.compile(backend='eager')
    return torch.compile(model, backend='eager') if how == 'the model' else model


COMPILED = pytest.mark.parametrize('how', ['the model', 'in place', 'a layer'])


@COMPILED
def test_a_model_that_was_compiled_before_is_watched(how):
    model = compiled_model(how)
    learn = tiny_learner(model=model)
    Runner().fit(1, learn)
    stats = ActivationStats(nn.Linear)
    Runner(stats).fit(1, learn)
    assert [h.name for h in stats.hooks] == [
        '0 Linear', '2._orig_mod.0 Linear' if how == 'a layer' else '2.0 Linear']
    assert [len(h.dead) for h in stats.hooks] == [3, 3]

    seen = []
    with Hooks(model.modules(), lambda hook, *args: seen.append(hook)) as hooks:
        Runner().fit(1, learn)
    inner = [h for h in hooks if 'Optimized' not in h.name]
    assert all(seen.count(h) == 5 for h in inner)   # three batches, and two of validation
    n = len(seen)
    Runner().fit(1, learn)
    assert len(seen) == n


@COMPILED
def test_the_statistics_are_those_of_the_model_as_it_was_written(how):
    def means(how):
        torch.manual_seed(0)
        stats = ActivationStats()
        Runner(stats).fit(2, tiny_learner(model=compiled_model(how)))
        return torch.stack([torch.stack(h.stats[0]) for h in stats.hooks])
    assert torch.equal(means(how), means('not at all'))


def runs_compiled():
    "Is what `torch.compile` returns run compiled now?"
    frames = []
    def backend(graph, inputs):
        frames.append(graph)
        return graph
    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))
    return bool(frames)


def test_compiled_models_run_compiled_again_without_hooks():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert runs_compiled()
    with pytest.raises(ValueError), Hooks(model, append_stats):
        assert not runs_compiled()
        raise ValueError
    assert runs_compiled()
    with torch.compiler.set_stance('force_eager'):
        with Hook(model[0], append_stats), Hook(model[1], append_stats): pass
        assert not runs_compiled()   # as the user had it

    Hooks(model, append_stats)   # forgotten, until nobody has the model any more
    assert not runs_compiled()
    del model
    gc.collect()
    assert runs_compiled()


def test_a_model_that_calls_no_hooks_is_noticed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    traced = torch.jit.trace(model, torch.zeros(5, 4))
    stats = ActivationStats()
    with pytest.warns(UserWarning, match='scripted or traced .*Hooked: 0 .*, 1 '):
        Runner(stats).fit(1, tiny_learner(model=traced))


def test_copying_a_hooked_model():
    model = nn.Sequential(nn.Linear(3, 3))
    with Hooks(model, append_stats):
        model(torch.randn(2, 3))
        copy.deepcopy(model)(torch.randn(2, 3))
        pickle.loads(pickle.dumps(model))(torch.randn(2, 3))
    assert n_hooks(model) == 0


def test_a_hook_does_not_change_the_output():
    model = nn.Sequential(nn.Linear(3, 3))
    x = torch.randn(2, 3)
    with Hooks(model, lambda h, m, i, o: o*0) as hooks:
        assert model(x).abs().sum() > 0
        with pytest.raises(TypeError, match='holds hooks'): hooks[0] = 3
        hooks[0] = Hook(model[0], append_stats)
        assert n_hooks(model) == 1
    assert n_hooks(model) == 0


def test_a_telemetry_callback_can_be_used_again():
    stats = ActivationStats()
    learn = tiny_learner(model=nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    for _ in range(2):
        Runner(stats).fit(1, learn)
        assert len(stats.hooks[0].dead) == 3
    assert partial(append_stats, bins=3).keywords == {'bins': 3}
    assert isinstance(stats, Callback)


def test_what_cannot_be_hooked():
    for wrong in (3, [nn.ReLU(), 3], {'a': 3}):
        with pytest.raises(TypeError): Hooks(wrong, append_stats)
    with pytest.raises(TypeError): Hook(nn.ReLU(), None)
    for plot in (plot_stats, plot_hists, plot_dead, plot_activations):
        with pytest.raises(ValueError, match='no statistics'): plot(ActivationStats())


# Lists of hooks and of modules

def test_lists_against_python():
    rng = random.Random(0)
    indices = partial(torch.tensor, dtype=torch.long)
    for _ in range(300):
        items = [rng.random() for _ in range(rng.randrange(8))]
        t = ListContainer(items)
        at = []
        if items:
            at = [rng.randrange(-len(items), len(items)) for _ in range(rng.randrange(5))]
        for make in (list, tuple, indices): assert t[make(at)] == [items[i] for i in at]

        mask = [rng.random() < 0.5 for _ in items]
        masked = [item for item, keep in zip(items, mask) if keep]
        if items: assert t[torch.tensor(mask)] == t[mask] == masked
        for wrong in (mask + [True], [False]*(len(items) + 1)):
            with pytest.raises(IndexError): t[wrong]

        assert list(t) == items
        assert len(t) == len(items)
        assert t[1:3] == items[1:3]
    with pytest.raises(TypeError): ListContainer([1])['a']


def test_children():
    assert children(nn.Sequential(nn.ReLU(), nn.Tanh()))[1].__class__ is nn.Tanh
    assert children(nn.ReLU()) == []


# Figures

def test_figures_have_one_panel_a_layer(figures):
    learn = resnet_learner()
    stats = ActivationStats(nn.Conv2d, every=2)
    Runner(stats).fit(2, learn)
    assert {len(h.dead) for h in stats.hooks} == {4}
    assert len(plot_stats(stats)) == 2
    first_panel = plot_stats(stats.hooks, first=2)[0]
    assert len(first_panel.lines[0].get_xdata()) == 2
    assert len(plot_hists(stats)) == len(plot_dead(stats)) == 6
    assert plot_activations(stats).shape == (6, 3)
    assert stats.plot().shape == (6, 3)
    assert len(plot_dead(stats.hooks[:1])) == 1


@pytest.mark.parametrize('plot', [plot_stats, plot_hists, plot_dead, plot_activations])
def test_a_figure_is_a_new_one(figures, plot):
    "An earlier figure of the same cell stays as it is"
    import matplotlib.pyplot as plt
    hook = recorded(torch.randn(8))
    plt.plot([1, 2])
    earlier = plt.gcf()
    drawn = {plot([hook]).flatten()[0].figure for _ in range(2)}
    assert len(drawn | {earlier}) == 3
    assert len(earlier.axes) == len(earlier.axes[0].lines) == 1


def test_figures_of_a_deep_network(figures):
    layers = [nn.Linear(4, 4) for _ in range(30)]
    stats = ActivationStats()
    Runner(stats).fit(1, tiny_learner(model=nn.Sequential(*layers, nn.Linear(4, 3))))
    assert len(plot_dead(stats)) == 31


class GivesNothing(nn.Module):
    def forward(self, x): return None


class GivesADict(nn.Module):
    def forward(self, x): return {'x': (None, x)}


class Odd(nn.Module):
    "One layer is never called; the outputs of two others are no tensors"
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.none = GivesNothing()
        self.pair = GivesADict()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        self.none(x)
        return self.out(self.pair(x)['x'][1])


def test_silent_layers_and_odd_outputs(figures):
    stats = ActivationStats()
    Runner(stats).fit(1, tiny_learner(model=Odd()))
    assert len(stats.hooks) == 5
    assert stats.plot().shape == (3, 3)
    with pytest.raises(ValueError, match='Hooked: unused Linear, none GivesNothing'):
        plot_dead(stats.hooks[1:3])


# The summary

def test_summary_of_a_residual_network(capsys):
    model = ResNet()
    total = sum(p.numel() for p in model.parameters())
    model.head.requires_grad_(False)
    at_12_by_12 = 12*12*(3*8*9 + 8*8*9*2)
    at_6_by_6 = 6*6*(8*16*9 + 16*16*9 + 8*16)
    n = at_12_by_12 + at_6_by_6 + 16*5
    table = summary(model, torch.randn(2, 3, 12, 12))
    assert capsys.readouterr().out == ''   # it shows itself, once, where it is the last line

    rows = {row.name: row for row in table.rows}
    assert set(rows) == {name for name, _ in model.named_modules()} - {'blocks'}
    row = rows['blocks.1.conv1']
    assert (row.kind, row.shape, row.params) == ('Conv2d', (2, 16, 6, 6), 8*16*9)
    assert row.mult_adds == 6*6*8*16*9
    assert table.total is rows['']
    assert (table.total.params, table.total.mult_adds) == (total, n)
    assert table.trained == total - 16*5 - 5

    assert f'{total:,} parameters, {table.trained:,} of them trained' in str(table)
    assert f'{n:,} multiply-adds for one item' in str(table)
    assert '\n      blocks.1.conv1 Conv2d' in str(table)
    assert '(2, 16, 6, 6)' in table._repr_html_()
    assert table._repr_html_().count('<tr>') == len(table.rows) + 1


def test_a_summary_changes_nothing():
    model = ResNet()
    model.blocks[0].eval()
    xb = torch.randn(2, 3, 12, 12)
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    summary(model, xb)
    assert modes == [m.training for m in model.modules()]
    assert n_hooks(model) == 0
    assert torch.equal(rng, torch.get_rng_state())
    assert same_state(model, state)
    assert runs_compiled()


def test_a_summary_names_the_layer_that_failed():
    model = ResNet()
    says = r"Conv2d 'stem' failed on an input of shape \(2, 1, 12, 12\)"
    with pytest.raises(ValueError, match=says): summary(model, torch.randn(2, 1, 12, 12))
    assert n_hooks(model) == 0


@COMPILED
def test_summary_of_a_compiled_model(how):
    model, x = compiled_model(how), torch.zeros(2, 4)
    model(x)
    table = summary(model, x)
    assert [row.shape for row in table.rows if row.kind == 'Linear'] == [(2, 4), (2, 3)]
    assert table.total.mult_adds == 4*4 + 4*3


def test_summary_of_nested_outputs():
    table = summary(nn.LSTM(3, 4), torch.randn(5, 2, 3))
    assert table.total.shape == [(5, 2, 4), [(1, 2, 4), (1, 2, 4)]]
    assert '[(5, 2, 4), [(1, 2, 4), (1, 2, 4)]]' in str(table)


def test_summary_of_attention():
    table = summary(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8))
    projections_and_feed_forward = 5*(4*8*8 + 2*8*16)
    products_of_5_by_5_positions = 2*5*5*8
    assert table.total.mult_adds == projections_and_feed_forward + products_of_5_by_5_positions
    assert torch.backends.mha.get_fastpath_enabled()


class Takes(nn.Module):
    "Takes two inputs, or a dictionary"
    def forward(self, a, b=None): return a['a'] if isinstance(a, dict) else a + b


def test_summary_of_several_inputs():
    a, b = torch.randn(6, 3), torch.randn(6, 4)
    assert summary(nn.Bilinear(3, 4, 2), (a, b)).total.shape == (6, 2)
    for mapping in (dict, UserDict):
        inputs = mapping(input1=a, input2=b)
        assert summary(nn.Bilinear(3, 4, 2), inputs).total.shape == (6, 2)
    assert summary(Takes(), (dict(a=a),)).total.shape == (6, 3)
    assert summary(nn.Sequential(Takes()), dict(a=a)).total.shape == (6, 3)
    with pytest.raises(ValueError, match=r"on an input of shape \[\(6, 3\), \(6, 4\)\]"):
        summary(Takes(), dict(a=a, b=b))


# What is not finite

class Spoils(nn.Module):
    """Passes on what it gets, until it has trained on `after` batches.

    From then on its output, or with `backward` only its gradient, is not finite.
    """
    def __init__(self, after, value=float('nan'), backward=False):
        super().__init__()
        self.after, self.value, self.backward = after, value, backward
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls <= self.after: return x
        if not self.backward: return x + self.value
        zero = (x - x.detach()).abs().sqrt()   # with an infinite gradient
        return x*torch.where(x == x, 1., 0.).sqrt() + 0*zero


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_before_the_step_and_says_where(value):
    spoiling = nn.Sequential(nn.ReLU(), Spoils(5, value))
    model = nn.Sequential(nn.Linear(4, 8), spoiling, nn.Linear(8, 3))
    learn = tiny_learner(4, 2, model)
    guard = TerminateOnNaNCallback(layers=True)
    weights = []

    class Note(Callback):
        def after_step(self): weights.append([p.detach().clone() for p in self.model.parameters()])

    run = Runner([guard, Note()])
    says = (r'Stopped in training, epoch 1, after 5 steps, learning rate 0\.1: the loss is .*; '
            r'first not finite is the output of layer 1\.1 Spoils')
    with pytest.warns(UserWarning, match=says): run.fit(9, learn)
    assert run.n_iter == 5 == len(weights)
    assert run.terminate_on_nan is guard
    assert 'layer 1.1 Spoils' in guard.message
    for p, w in zip(model.parameters(), weights[-1]):
        assert torch.equal(p, w)
        assert p.isfinite().all()
    assert all(not m._forward_hooks for m in model.modules())

    # the next fit, of a sound model, begins without a message
    learn.model = nn.Linear(4, 3)
    learn.opt = optim.SGD(learn.model.parameters(), lr=0.1)
    run.fit(1, learn)
    assert guard.message is None


def test_gradients_that_are_not_finite():
    "The loss of that batch is finite, so it takes `gradients=True` to notice before the step"
    def fit(**kwargs):
        model = nn.Sequential(nn.Linear(4, 8), Spoils(2, backward=True), nn.Linear(8, 3))
        run = Runner([TerminateOnNaNCallback(**kwargs)])
        run.fit(1, tiny_learner(4, 1, model))
        return run.n_iter, model

    says = 'gradients are not finite, first that of 0.bias'
    with pytest.warns(UserWarning, match=says): steps, model = fit(gradients=True)
    assert steps == 2
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.warns(UserWarning, match='the loss is nan'): steps, model = fit()
    assert steps == 3


def test_a_batch_or_a_parameter_that_is_not_finite():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    x = torch.randn(6, 4)
    model(x)
    state = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    assert first_not_finite(model, x) == ''
    bad = x.clone()
    bad[4, 1] = float('-inf')
    assert first_not_finite(model, bad) == 'item 4 of the batch'
    assert torch.equal(torch.get_rng_state(), rng)
    assert same_state(model, state)

    model[1].running_var[3] = float('nan')
    assert first_not_finite(model, x) == 'the buffer 1.running_var'
    with torch.no_grad(): model[0].weight.mul_(1e38)
    for _ in range(2):   # the layer is named, and not what it spoiled in the norm after it
        assert first_not_finite(model, x*100) == 'the output of layer 0 Linear'
        model(x*100)


def test_ctrl_c_while_hooks_are_put_on_or_taken_off(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    def on(): return sum(len(m._forward_hooks) for m in model)
    register, calls = nn.Module.register_forward_hook, []
    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return register(self, *args, **kwargs)
    monkeypatch.setattr(nn.Module, 'register_forward_hook', interrupted)
    with pytest.raises(KeyboardInterrupt): Hooks(model, lambda *args: None)
    assert on() == 0
    monkeypatch.undo()

    hooks = Hooks(model, lambda *args: None)
    remove, calls = Hook.remove, []
    def once(self):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        remove(self)
    monkeypatch.setattr(Hook, 'remove', once)
    with pytest.raises(KeyboardInterrupt): hooks.remove()
    assert on() == 0
