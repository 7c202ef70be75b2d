"The lesson's lines of chapter 06 as they stand, and its parts on shapes and input that the chapter does not have."
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import LESSON_DATA
from torch import nn, optim

from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.callbacks import Callback
from minifastai.learner import Learner, Runner
from minifastai.device import CudaCallback, default_device
from minifastai.cnn import (
    BatchTransformXCallback, conv2d, flatten, get_cnn_layers, get_cnn_model, get_runner, Lambda,
    mnist_resize, view_tfm)
from minifastai.init import act_gain, GeneralRelu, get_learn_run, init_cnn
from minifastai.norms import conv_layer

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
    for h in hooks:
        ms,ss,hist = h.stats
        plt.plot(ms[:10])
for h in hooks[:4]:
    plt.imshow(get_hist(h), origin='lower')
    plt.plot(get_min(h))
model = get_cnn_model(data, nfs, conv_layer, leak=0.1, sub=0.4, maxv=6.)
init_cnn(model)
learn,run = get_runner(model, data, lr=0.9, cbs=cbfs)
with Hooks(model, append_stats) as hooks:
    run.fit(1, learn)
sched = combine_scheds([0.5, 0.5], [sched_cos(0.2, 1.), sched_cos(1., 0.1)])
learn,run = get_learn_run(nfs, data, 1., conv_layer, cbs=cbfs+[partial(ParamScheduler,'lr', sched)])
run.fit(2, learn)
learn,run = get_learn_run(nfs, data, 1., conv_layer, uniform=True, cbs=cbfs+[partial(ParamScheduler,'lr', sched)])
run.fit(1, learn)
t = ListContainer(range(10))
t[[1,2]], t[[False]*8 + [True,False]]
'''


def test_the_lessons_lines():
    pytest.importorskip('sklearn')
    names = {}
    exec(LESSON, names)
    assert names['run'].recorder.lrs[-1][0] == pytest.approx(0.2) and len(names['hooks'][0].stats[0]) == 3


def images(c=1, size=28, n=8, classes=10):
    ds = Dataset(torch.randn(n, c, size, size), torch.randint(classes, (n,)))
    return DataBunch(*get_dls(ds, ds, 4), classes)


@pytest.mark.parametrize('c,size,nfs', [(1, 28, [8, 16, 32, 32]), (3, 28, [4]), (3, 37, [4, 6, 8]), (2, 5, [3, 3, 3, 3])])
def test_channels_and_sizes(c, size, nfs):
    data = images(c, size, classes=7)
    learn, run = get_learn_run(nfs, data, 0.1, conv_layer, leak=0.1)
    run.fit(1, learn)
    assert learn.model(data.train_ds[0][0][None]).shape == (1, 7)
    assert get_cnn_layers(data, nfs)[0][0].in_channels == c and get_cnn_layers(data, nfs, n_in=5)[0][0].in_channels == 5
    for wrong in ((2, c + 1, size, size), (2, c*size*size), (c, size, size)):
        with pytest.raises(ValueError, match=rf'\(N, {c}, H, W\)'): learn.model(torch.zeros(wrong))


def test_what_data_do_not_say():
    x, y = torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    assert get_cnn_model(DataBunch([(x, y)], c=10), [4])(x).shape == (4, 10)   # a list of batches
    for data in (DataBunch(iter([(x, y)]), c=10), DataBunch([(x[:, 0], y)], c=10), DataBunch([], c=10)):
        with pytest.raises(ValueError, match='n_in='): get_cnn_model(data, [4])
        assert get_cnn_model(data, [4], n_in=3)(x).shape == (4, 10)
    with pytest.raises(ValueError, match='neither'): get_cnn_model(DataBunch([(torch.zeros(4, 28, 28, 1), y)], c=10), [4])   # (H, W, C)
    for n_in in ('3', 0, True):
        with pytest.raises(ValueError, match='number of channels'): get_cnn_model(images(), [4], n_in=n_in)
    for nfs in ([], [0], [8, -1], ['8'], [8.5], [True], None):
        with pytest.raises(ValueError, match='channel counts'): get_cnn_layers(images(), nfs)
    for classes in (None, 0, 2.5):
        with pytest.raises(ValueError, match='number of classes'): get_cnn_layers(DataBunch([(x, y)], c=classes), [4])


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
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GeneralRelu(leak, sub, maxv), x)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), GeneralRelu(leak, sub, maxv), nn.Flatten())
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    drawn = GeneralRelu(leak, sub, maxv)(torch.randn(2_000_000, generator=torch.Generator().manual_seed(1)))
    assert act_gain(GeneralRelu(leak, sub, maxv)) == pytest.approx(drawn.pow(2).mean().rsqrt().item(), rel=5e-3)


def test_init_keeps_the_signals_size_through_any_depth():
    "Pre-activations have a mean square near 1 behind each convolution, averaged over weights (circular padding: no border)"
    for act in (nn.ReLU(), GeneralRelu(0.1, 0.4, 6.), nn.Tanh(), nn.SiLU()):
        for uniform in (False, True):
            torch.manual_seed(0)
            convs = [nn.Conv2d(128 if i else 16, 128, 3, padding=1, padding_mode='circular') for i in range(8)]
            model = nn.Sequential(*[nn.Sequential(c, act) for c in convs])
            init_cnn(model, uniform)
            outs = []
            for c in convs: c.register_forward_hook(lambda m, i, o: outs.append(o.pow(2).mean().item()))
            model(torch.randn(16, 16, 8, 8))
            assert all(0.5 < v < 2 for v in outs), (act, outs)


def test_init_touches_convolutions_only():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, groups=1), nn.MultiheadAttention(4, 2), nn.Conv1d(2, 2, 3, bias=False))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    init_cnn(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'2.weight', '2.bias', '4.weight'}


def test_cuda_callback_moves_everything():
    seen = []
    class Look(Callback):
        _order = 9
        def begin_batch(self): seen.append((self.xb.device, self.yb.device))
    data = images()
    model = get_cnn_model(data, [4])
    learn = Learner(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), F.cross_entropy, data)
    for cb in (CudaCallback('cpu'), CudaCallback(torch.device('cpu')), CudaCallback()): Runner([cb, Look()]).fit(1, learn)
    assert {d.type for pair in seen[-3:] for d in pair} == {default_device().type}
    assert {v.device.type for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)} == {default_device().type}
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
    learn, run = get_runner(get_cnn_model(data, [2]), data, 0.1, opt_func=optim.Adam, loss_func=lambda p, y: p.sum())
    assert isinstance(learn.opt, optim.Adam)


def test_views():
    x = torch.arange(24.).view(2, 12)
    assert torch.equal(view_tfm(3, 4)(x), x.view(2, 3, 4)) and torch.equal(view_tfm(12)(x.t().contiguous().t()), x)
    assert torch.equal(flatten(view_tfm(3, 4)(x)), x) and torch.equal(Lambda(lambda t: t*2)(x), x*2)
    assert mnist_resize(torch.zeros(0, 784)).shape == (0, 1, 28, 28)
    for size in ((5,), (3, 5), (24,)):
        with pytest.raises(ValueError, match='12 numbers for each item'): view_tfm(*size)(x)
    assert pickle.loads(pickle.dumps(view_tfm(3, 4)))(x).shape == (2, 3, 4)


def test_conv_layers_sizes():
    for ks in (1, 3, 5, 7):
        for stride in (1, 2, 3):
            for f in (conv2d, conv_layer): assert f(2, 3, ks, stride)(torch.zeros(1, 2, 10, 13)).shape == (1, 3, math.ceil(10/stride), math.ceil(13/stride))


def test_init_of_models_whose_order_is_not_that_of_definition():
    class Block(nn.Module):   # one ReLU, used twice, defined last
        def __init__(self): super().__init__(); self.conv1, self.conv2, self.relu = nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3), nn.ReLU()
    for model in (nn.Sequential(Block(), Block()), nn.ModuleList([nn.Conv2d(32, 32, 3) for _ in range(4)])):   # the second calls F.relu
        torch.manual_seed(0)
        init_cnn(model)
        gains = [m.weight.std().item()*math.sqrt(32*9) for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert gains == pytest.approx([1, 2**.5, 2**.5, 2**.5], rel=0.03)
    for wrong in (lambda z: z*0, lambda z: z/0):
        with pytest.raises(ValueError, match='no gain'): act_gain(wrong)
    for wrong in ((), (0,), ((1, 28, 28),), ('1',)):
        with pytest.raises(ValueError, match='view_tfm'): view_tfm(*wrong)
