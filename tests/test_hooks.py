"Telemetry on models that the course does not have; nothing is left behind; nothing is changed."
import copy
import gc
import pickle
import random
import tracemalloc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import Raiser, tiny_learner
from torch import nn, optim

from minifastai.data import DataBunch
from minifastai.callbacks import Callback, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.hooks import children, Hook, Hooks, ListContainer, summary
from minifastai.activations import (
    ActivationStats, append_stats, get_hist, get_min, plot_activations, plot_dead, plot_hists,
    plot_stats)
from minifastai.terminate import first_not_finite, TerminateOnNaNCallback


class Block(nn.Module):
    "A residual block, as others write it"
    def __init__(self, ni, nf, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ni, nf, 3, stride, 1, bias=False), nn.BatchNorm2d(nf)
        self.conv2, self.bn2 = nn.Conv2d(nf, nf, 3, 1, 1, bias=False), nn.BatchNorm2d(nf)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(ni, nf, 1, stride, bias=False), nn.BatchNorm2d(nf)) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


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
    torch.manual_seed(seed)
    batches = [(torch.randn(6, 3, 12, 12), torch.randint(5, (6,))) for _ in range(n + 2)]
    model = ResNet()
    return Learner(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), F.cross_entropy, DataBunch(batches[:n], batches[n:], 5))


def n_hooks(model): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_statistics_of_a_residual_network_are_those_of_its_training_batches():
    "Each number against a plain computation from outputs kept whole"
    learn, kept = resnet_learner(), {}
    names = ['stem', 'blocks.0.conv1', 'blocks.0.conv2', 'blocks.1.conv1', 'blocks.1.conv2', 'blocks.1.shortcut.0']
    modules = dict(learn.model.named_modules())
    for n in names: modules[n].register_forward_hook(lambda m, i, o, n=n: kept.setdefault(n, []).append(o.detach().clone()) if m.training else None)
    stats = ActivationStats(nn.Conv2d)
    Runner(stats).fit(2, learn)
    assert [h.name.split()[0] for h in stats.hooks] == names
    for h, n in zip(stats.hooks, names):
        outs = kept[n]
        assert len(outs) == len(h.dead) == 8
        for i, o in enumerate(outs):
            assert torch.allclose(h.stats[0][i], o.mean(), atol=1e-6) and torch.allclose(h.stats[1][i], o.std(), rtol=1e-5)
            assert torch.allclose(h.dead[i], (o.abs() <= 1e-3).float().mean(), atol=1e-6)
            assert torch.equal(h.stats[2][i][1:-1], o.flatten().histc(68, -7, 10)) and h.stats[2][i].sum() == o.numel()
        assert get_min(h).shape == (8,) and get_hist(h).shape == (70, 8)


def test_any_choice_of_layers():
    learn = resnet_learner(1)
    for layers, n in ((None, 4), (nn.BatchNorm2d, 5), ((nn.Conv2d, nn.Linear), 7), ('blocks.*.relu', 2), ('head', 1), (lambda name, m: isinstance(m, Block), 2), ([learn.model.stem], 1), (learn.model.head, 1)):
        stats = ActivationStats(layers)
        Runner(stats).fit(1, learn)
        assert len(stats.hooks) == n and all(len(h.dead) == 1 for h in stats.hooks)   # also of a ReLU that is used twice
        assert stats.plot().shape == (n, 3)
    for layers in ('nothing', [], nn.Conv3d, lambda name, m: False, [nn.Linear(1, 1)]):
        with pytest.raises(ValueError, match='layer'): Runner(ActivationStats(layers)).fit(1, learn)
    assert n_hooks(learn.model) == 0


def test_training_with_telemetry_is_bit_identical():
    trained = []
    for cbs in ([], [ActivationStats(), ]):
        learn = resnet_learner()
        Runner(cbs).fit(2, learn)
        trained.append([*learn.model.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*trained))


@pytest.mark.parametrize('exc', [ValueError('oops'), KeyboardInterrupt(), CancelTrainException()])
@pytest.mark.parametrize('event', ['begin_fit', 'after_pred', 'after_backward', 'begin_validate', 'after_epoch'])
def test_no_hook_is_left_behind(event, exc):
    learn, stats = resnet_learner(), ActivationStats('blocks.*')
    try: Runner([stats, Raiser(event, exc, order=5)]).fit(2, learn)
    except (ValueError, KeyboardInterrupt): pass
    assert n_hooks(learn.model) == 0
    try:
        with Hooks(learn.model, append_stats): Runner(Raiser(event, exc)).fit(1, learn)
    except (ValueError, KeyboardInterrupt): pass
    assert n_hooks(learn.model) == 0


def test_memory_is_flat_after_a_thousand_attachments():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)

    def attach(n):
        for _ in range(n):
            with Hooks(model, append_stats): model(x)
        gc.collect()

    attach(20)
    tracemalloc.start()
    attach(20)
    before, objects = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
    attach(1000)
    after, objects_after = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
    tracemalloc.stop()
    assert after - before < 20_000 and objects_after - objects < 50
    assert n_hooks(model) == 0


def test_nothing_waits_for_the_device(monkeypatch):
    "None of the ways to read a number from a tensor is taken while training"
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    with Hooks(model, append_stats) as hooks:
        for name in ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__', 'nonzero'):
            monkeypatch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail('a synchronisation'))
        model(x)
        monkeypatch.undo()
    assert len(hooks[1].dead) == 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(1,), (2, 3), (3, 4, 5, 6), (7, 200_003)])
def test_types_and_shapes(dtype, shape):
    h, x = Hook(nn.ReLU(), append_stats), torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    append_stats(h, nn.ReLU(), None, x)
    assert torch.allclose(h.stats[0][0], x.float().mean(), atol=1e-4)
    if x.numel() > 1: assert torch.allclose(h.stats[1][0], x.float().std(), rtol=1e-3)
    assert abs(h.stats[2][0].sum().item()*h.scales[0]/x.numel() - 1) < 1e-4
    assert torch.allclose(h.dead[0], (x.float().abs() <= 1e-3).float().mean())


def test_a_histogram_from_a_sample_is_that_of_the_whole():
    "Even if rows, channels or pixels differ: every one has its turn"
    x = torch.randn(512, 8, 14, 14) + torch.arange(8.)[:, None, None] - 4 + torch.arange(14.)/10
    h = Hook(nn.Identity(), append_stats)
    append_stats(h, nn.Identity(), None, x)
    whole = x.flatten().histc(68, -7, 10)/x.numel()
    assert (h.stats[2][0][1:-1]*h.scales[0]/x.numel() - whole).abs().max() < 0.01
    assert (h.stats[2][0][-1]*h.scales[0]/x.numel() - (x > 10).float().mean()).abs() < 0.005


def test_nan_and_infinite_activations_do_not_stop_the_training():
    h = Hook(nn.Identity(), append_stats)
    append_stats(h, nn.Identity(), None, torch.tensor([1., torch.nan, torch.inf]))
    assert h.stats[0][0].isnan() and get_min(h).isnan().all()


def test_options_and_plateaus():
    class Leaky(nn.LeakyReLU):
        plateau = -1.
    h = Hook(nn.Identity(), append_stats)
    append_stats(h, nn.Sequential(nn.Identity(), nn.Sequential(Leaky())), None, torch.tensor([-1., -0.9995, 0., 5.]))
    assert h.plateau == -1 and h.dead[0] == 0.5
    h = Hook(nn.Identity(), append_stats)
    append_stats(h, Leaky(), None, torch.tensor([-1., -0.99, 0., 5.]), bins=4, lo=0., hi=4., plateau=5., tol=0.)
    assert h.dead[0] == 0.25 and h.stats[2][0].tolist() == [2, 1, 0, 0, 0, 1]


def test_lists_against_python():
    rng = random.Random(0)
    for _ in range(300):
        items = [rng.random() for _ in range(rng.randrange(8))]
        t = ListContainer(items)
        at = [rng.randrange(-len(items), len(items)) for _ in range(rng.randrange(5))] if items else []
        mask = [rng.random() < 0.5 for _ in items]
        for f in (list, tuple, torch.tensor): assert t[f(at) if f is not torch.tensor else torch.tensor(at, dtype=torch.long)] == [items[i] for i in at]
        if items: assert t[torch.tensor(mask)] == t[mask] == [o for o, m in zip(items, mask) if m]
        assert list(t) == items and len(t) == len(items) and t[1:3] == items[1:3]
        for wrong in (mask + [True], [False]*(len(items) + 1)):
            with pytest.raises(IndexError): t[wrong]
    with pytest.raises(TypeError): ListContainer([1])['a']


def test_what_cannot_be_hooked():
    for wrong in (3, [nn.ReLU(), 3], {'a': 3}):
        with pytest.raises(TypeError): Hooks(wrong, append_stats)
    with pytest.raises(TypeError): Hook(nn.ReLU(), None)
    for plot in (plot_stats, plot_hists, plot_dead, plot_activations):
        with pytest.raises(ValueError, match='no statistics'): plot(ActivationStats())


def test_copying_a_hooked_model():
    model = nn.Sequential(nn.Linear(3, 3))
    with Hooks(model, append_stats):
        model(torch.randn(2, 3))
        copy.deepcopy(model)(torch.randn(2, 3))
        pickle.loads(pickle.dumps(model))(torch.randn(2, 3))
    assert n_hooks(model) == 0


def test_figures_have_one_panel_a_layer():
    learn, stats = resnet_learner(), ActivationStats(nn.Conv2d, every=2)
    Runner(stats).fit(2, learn)
    assert {len(h.dead) for h in stats.hooks} == {4}
    assert len(plot_stats(stats)) == 2 and len(plot_stats(stats.hooks, first=2)[0].lines[0].get_xdata()) == 2
    assert len(plot_hists(stats)) == len(plot_dead(stats)) == 6 and plot_activations(stats).shape == (6, 3) and stats.plot().shape == (6, 3)
    assert len(plot_dead(stats.hooks[:1])) == 1
    learn = tiny_learner(model=nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)], nn.Linear(4, 3)))
    stats = ActivationStats()
    Runner(stats).fit(1, learn)
    assert len(plot_dead(stats)) == 31
    import matplotlib.pyplot as plt
    plt.close('all')


def test_children():
    assert children(nn.Sequential(nn.ReLU(), nn.Tanh()))[1].__class__ is nn.Tanh and children(nn.ReLU()) == []


def test_summary_of_a_residual_network(capsys):
    model = ResNet()
    model.blocks[0].eval()
    xb, modes, buffers, rng = torch.randn(2, 3, 12, 12), [m.training for m in model.modules()], copy.deepcopy(model.state_dict()), torch.get_rng_state()
    summary(model, xb)
    out = capsys.readouterr().out
    total, n = sum(p.numel() for p in model.parameters()), 12*12*(3*8*9 + 8*8*9*2) + 6*6*(8*16*9 + 16*16*9 + 8*16) + 16*5
    assert f'{total:,} parameters' in out and f'{n:,} multiply-adds for one item' in out and '(2, 16, 6, 6)' in out
    assert modes == [m.training for m in model.modules()] and n_hooks(model) == 0 and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in buffers.items())
    with pytest.raises(ValueError, match=r"Conv2d 'stem' failed on an input of shape \(2, 1, 12, 12\)"): summary(model, torch.randn(2, 1, 12, 12))
    assert n_hooks(model) == 0
    summary(nn.LSTM(3, 4), torch.randn(5, 2, 3))
    assert '[(5, 2, 4), [(1, 2, 4), (1, 2, 4)]]' in capsys.readouterr().out


def test_a_telemetry_callback_can_be_used_again():
    stats, learn = ActivationStats(), tiny_learner(model=nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    for _ in range(2):
        Runner(stats).fit(1, learn)
        assert len(stats.hooks[0].dead) == 3
    assert partial(append_stats, bins=3).keywords == {'bins': 3} and isinstance(stats, Callback)


def test_silent_layers_and_odd_outputs():
    class Odd(nn.Module):
        def __init__(self): super().__init__(); self.a, self.unused, self.none, self.pair, self.out = nn.Linear(4, 4), nn.Linear(4, 4), Nothing(), Pair(), nn.Linear(4, 3)
        def forward(self, x): x = self.a(x); self.none(x); return self.out(self.pair(x)['x'][1])
    class Nothing(nn.Module):
        def forward(self, x): return None
    class Pair(nn.Module):
        def forward(self, x): return {'x': (None, x)}
    stats = ActivationStats()
    Runner(stats).fit(1, tiny_learner(model=Odd()))
    assert stats.plot().shape == (3, 3) and len(stats.hooks) == 5
    with pytest.raises(ValueError, match='Hooked: unused Linear, none Nothing'): plot_dead(stats.hooks[1:3])
    import matplotlib.pyplot as plt
    plt.close('all')


def test_a_hook_does_not_change_the_output():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    with Hooks(model, lambda h, m, i, o: o*0) as hooks:
        assert model(x).abs().sum() > 0
        with pytest.raises(TypeError, match='holds hooks'): hooks[0] = 3
        hooks[0] = Hook(model[0], append_stats)
        assert n_hooks(model) == 1
    assert n_hooks(model) == 0


def test_summary_of_attention_and_of_several_inputs(capsys):
    summary(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8))
    n = 5*(4*8*8 + 2*8*16) + 2*5*5*8   # projections and feed-forward, and two products of 5 by 5 positions
    assert f'{n:,} multiply-adds for one item' in capsys.readouterr().out and torch.backends.mha.get_fastpath_enabled()
    summary(nn.Bilinear(3, 4, 2), (torch.randn(6, 3), torch.randn(6, 4)))
    assert '(6, 2)' in capsys.readouterr().out


def test_validation_batches_are_left_out():
    learn = resnet_learner(4)
    with Hooks(learn.model, append_stats) as hooks: Runner().fit(2, learn)
    stats = ActivationStats()
    Runner(stats).fit(2, learn)
    assert len(hooks[0].dead) == len(stats.hooks[0].dead) == 8   # and not the two of each validation
    assert stats.hooks[0].steps == list(range(8))


class Spoils(nn.Module):
    "Passes on what it gets, and something else from the n-th time on"
    def __init__(self, after, value=float('nan'), backward=False):
        super().__init__()
        self.after, self.value, self.backward, self.calls = after, value, backward, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls <= self.after: return x
        return x*torch.where(x == x, 1., 0.).sqrt() + 0*(x - x.detach()).abs().sqrt() if self.backward else x + self.value


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_before_the_step_and_says_where(value):
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), Spoils(5, value)), nn.Linear(8, 3))
    learn, guard = tiny_learner(4, 2, model), TerminateOnNaNCallback(layers=True)
    weights = []
    class Note(Callback):
        def after_step(self): weights.append([p.detach().clone() for p in self.model.parameters()])
    run = Runner([guard, Note()])
    with pytest.warns(UserWarning, match=r'Stopped in training, epoch 1, after 5 steps, learning rate 0\.1: the loss is .*; first not finite is what layer 1\.1 Spoils gives out'): run.fit(9, learn)
    assert run.n_iter == 5 == len(weights) and run.terminate_on_nan is guard and 'layer 1.1 Spoils' in guard.message
    for p, w in zip(model.parameters(), weights[-1]): assert torch.equal(p, w) and p.isfinite().all()
    assert all(not m._forward_hooks for m in model.modules())
    learn.model = nn.Linear(4, 3)
    learn.opt = optim.SGD(learn.model.parameters(), lr=0.1)
    run.fit(1, learn)
    assert guard.message is None


def test_gradients_that_are_not_finite():
    "The loss is finite all the time; only who asks for gradients is told"
    def fit(**kwargs):
        model = nn.Sequential(nn.Linear(4, 8), Spoils(2, backward=True), nn.Linear(8, 3))
        guard = TerminateOnNaNCallback(**kwargs)
        run = Runner([guard])
        run.fit(1, tiny_learner(4, 1, model))
        return guard.message, run.n_iter, model
    with pytest.warns(UserWarning, match='gradients are not finite, first that of 0.bias'): message, steps, model = fit(gradients=True)
    assert steps == 2 and all(p.isfinite().all() for p in model.parameters())
    with pytest.warns(UserWarning, match='the loss is nan'): message, steps, model = fit()
    assert steps == 3


def test_a_batch_or_a_parameter_that_is_not_finite():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), torch.randn(6, 4)
    model(x)
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert first_not_finite(model, x) == ''
    bad = x.clone(); bad[4, 1] = float('-inf')
    assert first_not_finite(model, bad) == 'item 4 of the batch'
    assert torch.equal(torch.get_rng_state(), rng) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model[1].running_var[3] = float('nan')
    assert first_not_finite(model, x) == 'the buffer 1.running_var'
    with torch.no_grad(): model[0].weight.mul_(1e38)
    for _ in range(2):      # the layer is named, and not what it spoiled in the norm behind it
        assert first_not_finite(model, x*100) == 'what layer 0 Linear gives out'
        model(x*100)
