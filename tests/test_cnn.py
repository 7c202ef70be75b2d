"The lesson's lines of chapter 06, and its functions on shapes and input that the chapter lacks."
import copy
import math
import pickle
from collections import UserDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import exported_is_the_same, LESSON_DATA
from torch import nn, optim

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback, CancelTrainException
from minifastai.learner import Learner, Runner
from minifastai.device import CudaCallback, default_device
from minifastai.cnn import (
    BatchTransformXCallback, conv2d, flatten, get_cnn_layers, get_cnn_model, get_runner, Lambda,
    mnist_resize, view_tfm)
from minifastai.init import act_gain, GeneralRelu, get_learn_run, init_cnn, init_cnn_
from minifastai.hooks import children
from minifastai.norms import BatchNorm, conv_layer, GroupNorm, InstanceNorm, LayerNorm

LESSON = LESSON_DATA + '''
cbfs = [Recorder, partial(AvgStatsCallback, accuracy)]
cbfs.append(CudaCallback)
mnist_view = view_tfm(1,28,28)
cbfs.append(partial(BatchTransformXCallback, mnist_view))
nfs = [8,16,32,32]
model = get_cnn_model(data, nfs)
learn,run = get_runner(model, data, lr=0.4, cbs=cbfs)
run.fit(1, learn)
hooks = [Hook(l, append_stats) for l in children(model[:4])]
run.fit(1, learn)
for h in hooks:
    plt.plot(h.stats[0])
    h.remove()
hooks = Hooks(model, append_stats)
repr(hooks)
hooks.remove()
x,y = next(iter(data.train_dl))
x = mnist_resize(x)
p = model[0](x)
for l in model:
    if isinstance(l, nn.Sequential):
        init.kaiming_normal_(l[0].weight)
        l[0].bias.data.zero_()
with Hooks(model, append_stats) as hooks:
    run.fit(2, learn)
    fig,(ax0,ax1) = plt.subplots(1,2, figsize=(10,4))
    for h in hooks:
        ms,ss = h.stats
        ax0.plot(ms[:10])
        ax1.plot(ss[:10])
for h in hooks[:4]:
    plt.imshow(get_hist(h), origin='lower')
    plt.plot(get_min(h))
ours = hooks
def append_stats(hook, mod, inp, outp):
    if not hasattr(hook,'stats'): hook.stats = ([],[],[])
    means,stds,hists = hook.stats
    if mod.training:
        means.append(outp.data.mean().cpu())
        stds .append(outp.data.std().cpu())
        hists.append(outp.data.cpu().histc(40,-7,7))
with Hooks(model, append_stats) as hooks:
    run.fit(1, learn)
    for h in hooks:
        ms,ss,hi = h.stats
        ax0.plot(ms[:10])
def get_hist(h): return torch.stack(h.stats[2]).t().float().log1p()
for h in hooks[:4]: plt.imshow(get_hist(h), origin='lower')
def get_min(h):
    h1 = torch.stack(h.stats[2]).t().float()
    return h1[19:22].sum(0)/h1.sum(0)
for h in hooks[:4]: plt.plot(get_min(h))
model = get_cnn_model(data, nfs, conv_layer, leak=0.1, sub=0.4, maxv=6.)
init_cnn_(model, init.kaiming_normal_)
init_cnn(model, uniform=True)
learn,run = get_runner(model, data, lr=0.9, cbs=cbfs)
with Hooks(model, append_stats) as hooks:
    run.fit(1, learn)
sched = combine_scheds([0.5, 0.5], [sched_cos(0.2, 1.), sched_cos(1., 0.1)])
learn,run = get_learn_run(nfs, data, 1., conv_layer, cbs=cbfs+[partial(ParamScheduler,'lr', sched)])
run.fit(2, learn)
learn,run = get_learn_run(nfs, data, 1., conv_layer, uniform=True,
                          cbs=cbfs+[partial(ParamScheduler,'lr', sched)])
run.fit(1, learn)
t = ListContainer(range(10))
t[[1,2]], t[[False]*8 + [True,False]]
'''


def test_the_lessons_lines():
    pytest.importorskip('sklearn')
    names = {}
    exec(LESSON, names)
    assert names['run'].recorder.lrs[-1][0] == pytest.approx(0.2)
    assert [len(kept) for kept in names['ours'][0].stats] == [6, 6]   # batches of two epochs
    assert [len(kept) for kept in names['hooks'][0].stats] == [3, 3, 3]


def images(c=1, size=28, n=8, classes=10):
    "`n` random images and labels, in batches of 4"
    ds = Dataset(torch.randn(n, c, size, size), torch.randint(classes, (n,)))
    return DataBunch(*get_dls(ds, ds, 4), classes)


@pytest.mark.parametrize('c,size,nfs', [
    (1, 28, [8, 16, 32, 32]),
    (3, 28, [4]),
    (3, 37, [4, 6, 8]),
    (2, 5, [3, 3, 3, 3]),
])
def test_channels_and_sizes(c, size, nfs):
    data = images(c, size, classes=7)
    learn, run = get_learn_run(nfs, data, 0.1, conv_layer, leak=0.1)
    run.fit(1, learn)
    image, _ = data.train_ds[0]
    assert learn.model(image[None]).shape == (1, 7)
    assert get_cnn_layers(data, nfs)[0][0].in_channels == c
    assert get_cnn_layers(data, nfs, n_in=5)[0][0].in_channels == 5
    for wrong in ((2, c + 1, size, size), (2, c*size*size), (c, size, size)):
        with pytest.raises(ValueError, match=rf'\(N, {c}, H, W\)'): learn.model(torch.zeros(wrong))


def test_what_data_do_not_say():
    x, y = torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    list_of_batches = DataBunch([(x, y)], c=10)
    assert get_cnn_model(list_of_batches, [4])(x).shape == (4, 10)

    for train_dl in (iter([(x, y)]), [(x[:, 0], y)], []):
        data = DataBunch(train_dl, c=10)
        with pytest.raises(ValueError, match='n_in='): get_cnn_model(data, [4])
        assert get_cnn_model(data, [4], n_in=3)(x).shape == (4, 10)

    channels_at_the_end = DataBunch([(torch.zeros(4, 28, 28, 1), y)], c=10)   # (N, H, W, C)
    with pytest.raises(ValueError, match='neither'): get_cnn_model(channels_at_the_end, [4])


def test_what_no_network_can_be_made_of():
    for n_in in ('3', 0, True):
        with pytest.raises(ValueError, match='number of channels'):
            get_cnn_model(images(), [4], n_in=n_in)
    for nfs in ([], [0], [8, -1], ['8'], [8.5], [True], None):
        with pytest.raises(ValueError, match='channel counts'): get_cnn_layers(images(), nfs)
    batch = torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    for classes in (None, 0, 2.5):
        data = DataBunch([batch], c=classes)
        with pytest.raises(ValueError, match='number of classes'): get_cnn_layers(data, [4])


def test_a_model_shows_what_it_takes():
    model = get_cnn_model(images(3), [4, 6])
    assert repr(model).startswith('ImageSequential(\n  n_in=3\n  (0): Sequential(')
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert list(model.state_dict())[:2] == ['0.0.weight', '0.0.bias']
    assert isinstance(model[0][0], nn.Conv2d)
    assert len(children(model)) == len(model) == 5
    wrong, maps = torch.zeros(2, 28*28), torch.zeros(2, 4, 14, 14)
    for part in (model, model[:2], model[:-1], model[0:1]):
        with pytest.raises(ValueError, match=r'\(N, 3, H, W\)'): part(wrong)
    assert model[1:2](maps).shape == (2, 6, 7, 7)
    assert model[1:].n_in is None
    assert len(model[5:]) == 0


NORMS = {
    'batch': 'batch', 'running': 'running', 'layer': 'layer', 'instance': 'instance',
    'group': 'group', 'none': 'none', 'our batch': BatchNorm, 'our layer': LayerNorm,
    'our instance': InstanceNorm, 'our group': partial(GroupNorm, 2),
}


@pytest.mark.parametrize('norm', NORMS)
def test_models_can_be_exported(norm):
    "For any number of images, with the same results"
    model = get_cnn_model(images(), [4, 6], conv_layer, norm=NORMS[norm], leak=0.1, sub=0.4)
    exported_is_the_same(model, (1, 28, 28))


def test_models_of_functions_can_be_exported():
    parts = [Lambda(mnist_resize), *get_cnn_layers(images(), [4])]
    exported_is_the_same(nn.Sequential(*parts), (784,))


def test_flatten_leaves_a_row_a_row():
    for shape in ((3,), (3, 1), (0, 2, 2), (2, 0)):
        x = torch.zeros(shape)
        assert flatten(x).shape == (len(x), x[:1].numel() if len(x) else math.prod(shape[1:]))


def test_models_can_be_copied_saved_and_moved():
    model = get_cnn_model(images(), [4, 6], conv_layer, leak=0.1, sub=0.4, maxv=6.)
    x = torch.randn(3, 1, 20, 20)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        with pytest.raises(ValueError): twin(torch.zeros(2, 400))
    assert model.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize('leak', [None, 0., 0.1, -0.5])
@pytest.mark.parametrize('sub', [None, 0.4])
@pytest.mark.parametrize('maxv', [None, 1.])
def test_general_relu_gradients(leak, sub, maxv):
    act = GeneralRelu(leak, sub, maxv)
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(act, x)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), act, nn.Flatten())
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    drawn = act(torch.randn(2_000_000, generator=torch.Generator().manual_seed(1)))
    assert act_gain(act) == pytest.approx(drawn.pow(2).mean().rsqrt().item(), rel=5e-3)


@pytest.mark.parametrize('uniform', [False, True])
@pytest.mark.parametrize('act', [
    nn.ReLU(),
    GeneralRelu(0.1, 0.4, 6.),
    nn.Tanh(),
    nn.SiLU(),
], ids=lambda act: type(act).__name__)
def test_init_keeps_the_signals_size_through_any_depth(act, uniform):
    """Pre-activations have a mean square near 1 after each convolution.

    The mean is over weights too; with circular padding there is no border.
    """
    torch.manual_seed(0)
    convs = [nn.Conv2d(ni, 128, 3, padding=1, padding_mode='circular') for ni in [16] + [128]*7]
    model = nn.Sequential(*[nn.Sequential(conv, act) for conv in convs])
    init_cnn(model, uniform)
    mean_squares = []
    for conv in convs:
        conv.register_forward_hook(lambda m, i, o: mean_squares.append(o.pow(2).mean().item()))
    model(torch.randn(16, 16, 8, 8))
    assert len(mean_squares) == len(convs)
    assert all(0.5 < v < 2 for v in mean_squares), mean_squares


def test_the_lessons_init_reaches_every_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.Conv1d(2, 2, 3, bias=False), nn.ModuleList([nn.Conv3d(2, 2, 1)])),
        nn.Linear(3, 3),
    )
    linear = model[2].weight.clone()
    init_cnn_(model, lambda weight, a: nn.init.constant_(weight, a))
    convs = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    assert len(convs) == 3
    assert all((conv.weight == 0.1).all() for conv in convs)
    assert not model[0].bias.any()
    assert torch.equal(model[2].weight, linear)


def test_init_touches_convolutions_only():
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3, groups=1),
        nn.MultiheadAttention(4, 2),
        nn.Conv1d(2, 2, 3, bias=False),
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    init_cnn(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'2.weight', '2.bias', '4.weight'}


def test_cuda_callback_moves_everything():
    seen = []

    class Look(Callback):
        _order = 9
        def begin_batch(self): seen.extend([self.xb.device, self.yb.device])

    data = images()
    model = get_cnn_model(data, [4])
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn = Learner(model, opt, F.cross_entropy, data)
    for cb in (CudaCallback('cpu'), CudaCallback(torch.device('cpu')), CudaCallback()):
        Runner([cb, Look()]).fit(1, learn)

    state = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert {device.type for device in seen[-6:]} == {default_device().type}
    assert {v.device.type for v in state} == {default_device().type}


# `meta` stands for a device that is not here: its tensors have a shape and no numbers
def on_meta():
    cuda = CudaCallback('cpu')
    cuda.device = torch.device('meta')
    return cuda


class CustomLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('weight', torch.ones(2))

    def forward(self, pred, yb): return F.cross_entropy(pred, yb, self.weight)


class LossOfOne(CustomLoss):
    def forward(self, pred): return (pred*self.weight).sum()


WEIGHT = torch.tensor([1., 2.])


@pytest.mark.parametrize('loss_func', [
    nn.CrossEntropyLoss(weight=WEIGHT),
    partial(F.cross_entropy, weight=WEIGHT),
    partial(nn.CrossEntropyLoss(weight=WEIGHT)),
    partial(partial(lambda w, pred, yb, ws: (pred*w*ws[0]).sum(), WEIGHT), ws=[WEIGHT]),
    CustomLoss(),
    CustomLoss().forward,
    LossOfOne(),
    F.cross_entropy,
], ids=['module', 'keyword', 'partial', 'arguments', 'custom', 'method', 'of one', 'function'])
def test_cuda_callback_moves_the_loss_function(loss_func):
    done = []

    class Once(Callback):
        def after_pred(self):
            loss = self.loss_func(self.pred, self.yb)
            done.append(loss.is_meta)
            raise CancelTrainException

    model = nn.Linear(4, 2)
    data = DataBunch([(torch.randn(6, 4), torch.randint(2, (6,)))], None, 2)
    learn = Learner(model, optim.SGD(model.parameters(), 0.1), loss_func, data)
    Runner([on_meta(), Once()]).fit(1, learn)
    assert done == [True]


class Graphs:
    "A batch with a method `to`, as libraries for texts and graphs have them"
    def __init__(self, x): self.x = x
    def to(self, device): return Graphs(x=self.x.to(device))


@pytest.mark.parametrize('make, tensors', [
    (lambda x: Graphs(x), lambda b: [b.x]),
    (lambda x: [Graphs(x), {'more': (Graphs(x), x)}],
     lambda b: [b[0].x, b[1]['more'][0].x, b[1]['more'][1]]),
    (lambda x: UserDict(ids=x, mask=[x]), lambda b: [b['ids'], b['mask'][0]]),
    (lambda x: nn.utils.rnn.pack_sequence([x, x[:2]]), lambda b: [b.data]),
], ids=['object', 'nested', 'mapping', 'packed'])
def test_cuda_callback_moves_any_batch(make, tensors):
    run = Runner()
    cuda = on_meta()
    cuda.run = run
    run.xb = run.yb = make(torch.randn(3, 4))
    cuda.begin_batch()
    assert all(t.is_meta for t in tensors(run.xb))
    assert run.yb is run.xb   # its own target is moved once
    run.xb, run.yb = make(torch.randn(3, 4)), torch.zeros(3)
    cuda.begin_batch()
    assert all(t.is_meta for t in (*tensors(run.xb), run.yb))


def test_cuda_callback_refuses_devices_that_it_cannot_use():
    with pytest.raises(ValueError, match="cannot use the device 'cuda:99'"): CudaCallback('cuda:99')
    for wrong in ('gpu', 'meta'):
        with pytest.raises(ValueError, match='cannot use the device'): CudaCallback(wrong)


def test_cuda_callback_with_optimizers_that_count_steps():
    data = images()
    model = get_cnn_model(data, [4])
    learn = Learner(model, optim.AdamW(model.parameters()), F.cross_entropy, data)
    for _ in range(2): Runner(CudaCallback()).fit(1, learn)
    assert {s['step'].item() for s in learn.opt.state.values()} == {4.}


def test_runner_takes_callbacks_and_functions_that_make_them():
    data = images(1, 4)
    made = BatchTransformXCallback(lambda x: x)
    for cbs in (None, made, CudaCallback, [made, CudaCallback, lambda: Callback()]):
        learn, run = get_runner(get_cnn_model(data, [2]), data, cbs=cbs)
        assert learn.opt.param_groups[0]['lr'] == 0.6
        run.fit(1, learn)

    model = get_cnn_model(data, [2])
    learn, run = get_runner(model, data, 0.1, opt_func=optim.Adam, loss_func=lambda p, y: p.sum())
    assert isinstance(learn.opt, optim.Adam)


def test_views():
    x = torch.arange(24.).view(2, 12)
    to_3_by_4 = view_tfm(3, 4)
    assert torch.equal(to_3_by_4(x), x.view(2, 3, 4))
    assert torch.equal(view_tfm(12)(x.t().contiguous().t()), x)
    assert torch.equal(flatten(to_3_by_4(x)), x)
    assert torch.equal(Lambda(lambda t: t*2)(x), x*2)
    assert mnist_resize(torch.zeros(0, 784)).shape == (0, 1, 28, 28)
    assert pickle.loads(pickle.dumps(to_3_by_4))(x).shape == (2, 3, 4)
    for size in ((5,), (3, 5), (24,)):
        with pytest.raises(ValueError, match='12 numbers for each item'): view_tfm(*size)(x)
    for wrong in ((), (0,), ((1, 28, 28),), ('1',)):
        with pytest.raises(ValueError, match='view_tfm'): view_tfm(*wrong)


def test_conv_layers_sizes():
    x = torch.zeros(1, 2, 10, 13)
    for ks in (1, 3, 5, 7):
        for stride in (1, 2, 3):
            shape = 1, 3, math.ceil(10/stride), math.ceil(13/stride)
            for make in (conv2d, conv_layer): assert make(2, 3, ks, stride)(x).shape == shape


class ReluDefinedLast(nn.Module):
    "Two convolutions and one ReLU, which is used after both and defined last"
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(32, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.relu = nn.ReLU()


def test_init_of_models_whose_order_is_not_that_of_definition():
    blocks = nn.Sequential(ReluDefinedLast(), ReluDefinedLast())
    without_relu_modules = nn.ModuleList([nn.Conv2d(32, 32, 3) for _ in range(4)])   # calls F.relu
    for model in (blocks, without_relu_modules):
        torch.manual_seed(0)
        init_cnn(model)
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        gains = [conv.weight.std().item()*math.sqrt(32*9) for conv in convs]
        assert gains == pytest.approx([1, 2**.5, 2**.5, 2**.5], rel=0.03)


def test_activations_without_a_gain():
    for wrong in (lambda z: z*0, lambda z: z/0):
        with pytest.raises(ValueError, match='no gain'): act_gain(wrong)
