"Downloads from servers that misbehave, files that lie, loaders, and what a `DataBunch` refuses."
import gzip
import hashlib
import os
import pickle
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torch.utils.data as tud
from helpers import heeds_permissions
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from minifastai import datasets
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.datasets import find_mnist, get_data, get_test_data, parse_idx
from minifastai.utils import listify

IMAGES, LABELS = datasets._TRAIN_FILES
TEST_IMAGES, TEST_LABELS = datasets._TEST_FILES
TRAIN_GZ = [f'{IMAGES}.gz', f'{LABELS}.gz']
LOGIN_PAGE = b'<html>Please log in</html>'


def idx(array):
    "`array`, of bytes, in the idx format"
    types = {np.dtype('u1'): 8}
    header = bytes([0, 0, types[array.dtype], array.ndim])
    return header + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def idx_images(rng, n): return idx(rng.integers(0, 256, (n, 28, 28), dtype='u1'))


def idx_labels(n): return idx(np.arange(n, dtype='u1') % 10)


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    """A stand-in for MNIST with few images: its files by name.

    The module knows their hashes, and has a cache of its own.
    """
    rng = np.random.default_rng(0)
    files = {
        IMAGES: idx_images(rng, 60),
        LABELS: idx_labels(60),
        TEST_IMAGES: idx_images(rng, 20),
        TEST_LABELS: idx_labels(20),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    tiny = replace(datasets._IDX_DATA['mnist'], sha256=hashes)
    monkeypatch.setitem(datasets._IDX_DATA, 'mnist', tiny)
    monkeypatch.setattr(datasets, 'cache_dir', lambda: tmp_path/'cache')
    monkeypatch.delenv('MINIFASTAI_DATA', raising=False)
    monkeypatch.delenv('MINIFASTAI_DATASET', raising=False)
    return files


def put(files, folder, compressed=True):
    "Write `files` into `folder`, which is made if need be"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if compressed: (folder/f'{name}.gz').write_bytes(gzip.compress(content))
        else: (folder/name).write_bytes(content)
    return folder


def body(files, how, name):
    "What a server that misbehaves in the way `how` answers when it is asked for the file `name`"
    content = files[name]
    if how == 'page': return LOGIN_PAGE
    if how == 'zipped_page': return gzip.compress(LOGIN_PAGE)
    if how == 'swapped': return gzip.compress(files[LABELS if name == IMAGES else IMAGES])
    if how == 'flipped': return gzip.compress(content[:-1] + b'!')
    return gzip.compress(content)


@pytest.fixture
def server(tiny_mnist):
    "A local server as a function: from how it is to misbehave, to the address of such a mirror"
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def do_GET(self):
            _, how, file = self.path.split('/')
            if how == 'gone': return self.send_error(404)
            content = body(tiny_mnist, how, file.removesuffix('.gz'))
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if how == 'slow': time.sleep(0.2)
            if how == 'drops': content = content[:len(content)//2]
            if how == 'hangs': content = content[:10]
            self.wfile.write(content)
            if how == 'hangs':
                self.wfile.flush()
                released.wait(30)

    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    serve = partial(httpd.serve_forever, poll_interval=0.01)
    threading.Thread(target=serve, daemon=True).start()
    yield lambda how: f'http://127.0.0.1:{httpd.server_port}/{how}/'
    released.set()
    httpd.shutdown()
    httpd.server_close()


def mnist(*mirrors):
    "The stand-in, with these mirrors if any are given"
    data = datasets._IDX_DATA['mnist']
    return replace(data, mirrors=mirrors) if mirrors else data


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path):
    datasets._download(mnist(server('good')), tmp_path/'new')
    assert names(tmp_path/'new') == TRAIN_GZ
    assert set(find_mnist(tmp_path/'new')) >= {IMAGES, LABELS}


@pytest.mark.parametrize('how', ['gone', 'page', 'zipped_page', 'swapped', 'flipped', 'drops'])
def test_a_bad_mirror_is_passed_over(server, tmp_path, how):
    folder = tmp_path/'new'
    datasets._download(mnist(server(how), server('good')), folder)
    assert names(folder) == TRAIN_GZ
    assert datasets._read_file(mnist(), folder/f'{IMAGES}.gz').shape == (60, 28, 28)


@pytest.mark.parametrize('how', ['gone', 'page', 'swapped', 'flipped', 'drops'])
def test_only_bad_mirrors(server, tmp_path, how):
    folder = tmp_path/'new'
    with pytest.raises(ConnectionError, match='could not be downloaded') as info:
        datasets._download(mnist(server(how), server('gone')), folder)
    assert str(info.value).count('http://') >= 2
    assert names(folder) == []


def test_a_mirror_that_hangs(server, tmp_path, monkeypatch):
    import pooch
    patient = pooch.HTTPDownloader
    impatient = lambda timeout, **kw: patient(timeout=(0.5, 0.5), **kw)
    monkeypatch.setattr(pooch, 'HTTPDownloader', impatient)
    start = time.perf_counter()
    datasets._download(mnist(server('hangs'), server('good')), tmp_path/'new')
    assert time.perf_counter() - start < 6
    assert names(tmp_path/'new') == TRAIN_GZ


def test_two_downloads_at_once(server, tmp_path):
    folder = tmp_path/'new'
    download = lambda: datasets._download(mnist(server('slow')), folder)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(download) for _ in range(2)]: done.result()
    assert names(folder) == TRAIN_GZ
    for name in TRAIN_GZ: datasets._read_file(mnist(), folder/name)


@pytest.fixture
def mirrored(server, monkeypatch):
    "`get_data` and `get_test_data` download from the local server"
    monkeypatch.setitem(datasets._IDX_DATA, 'mnist', mnist(server('good')))


def test_get_data_downloads_into_the_cache(mirrored, monkeypatch):
    monkeypatch.setattr(datasets, '_split', lambda x, y, n: (x[:50], y[:50], x[50:], y[50:]))
    with pytest.raises(FileNotFoundError, match='Three ways'): get_data('mnist', download=False)
    x_train, y_train, x_valid, y_valid = get_data()
    assert x_train.shape == (50, 784)
    assert y_valid.tolist() == list(range(10))
    assert x_train.max() < 1
    monkeypatch.setattr(datasets, '_download', None)   # it is not called again
    assert torch.equal(get_data()[0], x_train)


def test_the_test_set_is_a_pair_of_its_own(mirrored, monkeypatch):
    with pytest.raises(FileNotFoundError, match='Two ways'): get_test_data(download=False)
    x, y = get_test_data()
    assert x.shape == (20, 784)
    assert y.tolist() == list(range(10))*2
    # the training files were not asked for
    assert names(datasets.cache_dir()) == sorted([f'{TEST_IMAGES}.gz', f'{TEST_LABELS}.gz'])
    assert find_mnist() == {}
    monkeypatch.setenv('MINIFASTAI_DATASET', 'digits')
    with pytest.raises(ValueError, match='have a test set here'): get_test_data()


def test_search_order(tiny_mnist, tmp_path, monkeypatch):
    assert find_mnist() == {}
    cached = put(tiny_mnist, datasets.cache_dir())
    assert find_mnist()[IMAGES].parent == cached

    setting = tmp_path/'set'
    monkeypatch.setenv('MINIFASTAI_DATA', str(setting))
    assert find_mnist()[IMAGES].parent == cached      # the setting's folder has none: look on
    put(tiny_mnist, setting/'mnist', compressed=False)
    assert find_mnist()[IMAGES] == setting/'mnist'/IMAGES

    put(tiny_mnist, tmp_path/'given'/'MNIST'/'raw')
    assert find_mnist(tmp_path/'given')[LABELS].parent.name == 'raw'
    assert find_mnist(tmp_path) == {}                 # an explicit path is the only place


def test_a_damaged_file_is_named_not_passed_over(tiny_mnist, tmp_path, monkeypatch):
    "Even if another copy would be found further on"
    folder = put(tiny_mnist, tmp_path/'set')
    monkeypatch.setenv('MINIFASTAI_DATA', str(folder))
    bad = folder/f'{IMAGES}.gz'
    whole = bad.read_bytes()
    truncated = whole[:-20]
    one_bit_flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    another_file = gzip.compress(tiny_mnist[LABELS])
    for content in (truncated, one_bit_flipped, b'', another_file):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=str(bad)): get_data('mnist')
    bad.unlink()
    with pytest.raises(FileNotFoundError, match=f'but not {IMAGES}'): get_data('mnist')


def test_fashion_mnist_has_folders_of_its_own(tiny_mnist, tmp_path, monkeypatch):
    "It has MNIST's file names, so neither data set may be taken for the other"
    fashion = {name: content[:-1] + b'!' for name, content in tiny_mnist.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in fashion.items()}
    data = replace(datasets._IDX_DATA['fashion_mnist'], sha256=hashes)
    monkeypatch.setitem(datasets._IDX_DATA, 'fashion_mnist', data)
    get = partial(get_data, 'fashion_mnist', download=False)
    flat = put(tiny_mnist, tmp_path/'set')
    monkeypatch.setenv('MINIFASTAI_DATA', str(flat))
    with pytest.raises(FileNotFoundError, match='Fashion-MNIST is not on this machine'): get()
    with pytest.raises(ValueError, match="It is MNIST's: pass another folder"): get(path=flat)
    own = put(fashion, flat/'fashion-mnist')
    assert sum(map(len, get()[::2])) == 60
    assert torch.equal(get(path=own)[0], get()[0])
    assert find_mnist()[IMAGES].parent == flat
    assert get_test_data('fashion_mnist')[0].shape == (20, 784)
    put(fashion, flat)   # MNIST's own folder comes before files that lie beside it
    put(tiny_mnist, flat/'mnist')
    assert find_mnist()[IMAGES].parent.name == 'mnist'
    put(fashion, tmp_path/'other'/'FashionMNIST'/'raw')
    assert torch.equal(get(path=tmp_path/'other')[0], get()[0])
    with pytest.raises(FileNotFoundError, match='a folder fashion-mnist'): get(path=tmp_path/'no')


def test_fashion_mnist_is_downloaded_into_its_own_folder(server, tiny_mnist, monkeypatch):
    data = replace(mnist(server('good')), title='Fashion-MNIST', folders=('fashion-mnist',))
    monkeypatch.setitem(datasets._IDX_DATA, 'fashion_mnist', data)
    get_data('fashion_mnist')
    assert names(datasets.cache_dir()/'fashion-mnist') == TRAIN_GZ
    assert find_mnist() == {}


def test_settings(monkeypatch, tiny_mnist):
    monkeypatch.setenv('MINIFASTAI_DATASET', 'digits')
    assert get_data()[0].shape == (1437, 784)
    # MNIST is asked for by name, so the setting does not count
    with pytest.raises(FileNotFoundError): get_data('mnist', download=False)
    monkeypatch.setenv('MINIFASTAI_DATASET', 'mnits')
    with pytest.raises(ValueError, match="no data set 'mnits'"): get_data()


@pytest.mark.skipif(not heeds_permissions(), reason='root may read everything')
def test_an_unreadable_file(tiny_mnist, tmp_path):
    put(tiny_mnist, tmp_path)
    (tmp_path/f'{IMAGES}.gz').chmod(0)
    with pytest.raises(PermissionError): get_data('mnist', path=tmp_path)


def test_dimensions_that_no_array_can_have():
    header = bytes([0, 0, 8, 3]) + np.array([0, 2**32 - 1, 2**32 - 1], '>u4').tobytes()
    with pytest.raises(ValueError, match='labels: no array can have the shape'):
        parse_idx(header, source='labels')


@pytest.mark.parametrize('name', [f'{LABELS}.gz', LABELS])
def test_a_file_is_read_only_as_far_as_it_can_be_right(tiny_mnist, tmp_path, name):
    "50 MB of zeros, which take 50 kB when they are compressed"
    zeros = bytes(50_000_000)
    (tmp_path/name).write_bytes(gzip.compress(zeros) if name.endswith('.gz') else zeros)
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f'{name}: too long.*60,008 bytes'):
            datasets._read_file(mnist(), tmp_path/name)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally: tracemalloc.stop()


def test_a_pipe_is_no_file_of_data(tiny_mnist, tmp_path):
    "Reading it would never end"
    folder = put({LABELS: tiny_mnist[LABELS]}, tmp_path)
    os.mkfifo(folder/f'{IMAGES}.gz')
    with pytest.raises(FileNotFoundError, match=f'but not {IMAGES}'):
        get_data('mnist', path=folder)


def left_by_a_download(folder, seconds):
    "A temporary folder, in which something was last written so long ago"
    tmp = folder/f'.download-{seconds}'
    tmp.mkdir(parents=True)
    (tmp/'part').write_bytes(b'half of it')
    then = time.time() - seconds
    for p in (tmp/'part', tmp): os.utime(p, (then, then))
    return tmp


def test_folders_of_killed_downloads_are_removed(mirrored):
    "Those of downloads that may still run are not"
    cache = datasets.cache_dir()
    old = left_by_a_download(cache, 2*3600)
    young = left_by_a_download(cache, 60)
    long = left_by_a_download(cache, 3*3600)
    (long/'part').write_bytes(b'one more byte')   # it began long ago, and goes on
    find_mnist()
    assert old.exists()   # who only looks changes nothing
    datasets._get_idx('mnist', datasets._TRAIN_FILES, None, True)
    assert not old.exists()
    assert young.exists() and long.exists()
    old.mkdir()
    os.utime(old, (0, 0))
    datasets._get_idx('mnist', datasets._TRAIN_FILES, None, True)   # nothing to download this time
    assert not old.exists()


X = torch.arange(20.)[:, None] + torch.zeros(20, 3)
Y = torch.arange(20)


class Theirs(tud.Dataset):
    "A data set of PyTorch's kind"
    def __len__(self): return 20
    def __getitem__(self, i): return X[i], Y[i]


class Derived(Dataset):
    "The same, derived from our class, which it does not use"
    def __init__(self): pass
    def __len__(self): return 20
    def __getitem__(self, i): return X[i], Y[i]


class Noted(Dataset):
    "Ours, with items that are made one by one"
    def __getitem__(self, i):
        assert isinstance(i, int)
        return super().__getitem__(i)


DATA_SETS = {
    'ours': lambda: Dataset(X, Y),
    'tensors': lambda: TensorDataset(X, Y),
    'arrays': lambda: Dataset(X.numpy(), Y.numpy()),
    'lists': lambda: Dataset(list(X), list(Y)),
    'part': lambda: Subset(Dataset(X, Y), range(20)),
    'part by a tensor': lambda: Subset(Dataset(X, Y), torch.arange(20)),
    'part of tensors': lambda: Subset(TensorDataset(X, Y), range(20)),
    'part of part': lambda: Subset(Subset(Dataset(X, Y), range(20)), range(20)),
    'sum': lambda: ConcatDataset([Dataset(X[:5], Y[:5]), TensorDataset(X[5:], Y[5:])]),
    'theirs': Theirs,
    'derived': Derived,
    'one by one': lambda: Noted(X, Y),
}


def check(dl, sizes):
    "The loader `dl` yields batches of such sizes, of all items, each with its own label"
    batches = list(dl)
    assert [len(yb) for _, yb in batches] == sizes
    for xb, yb in batches:
        assert xb.shape == (len(yb), 3)
        assert torch.equal(xb[:, 0].long(), yb)
    if sum(sizes) == 20: assert sorted(torch.cat([yb for _, yb in batches]).tolist()) == Y.tolist()


@pytest.mark.parametrize('make', DATA_SETS.values(), ids=DATA_SETS)
def test_any_data_set_in_loaders_and_in_those_that_other_tools_build(make):
    ds = make()
    train_dl, valid_dl = get_dls(ds, ds, np.int64(8))
    data = DataBunch(train_dl, valid_dl)
    assert data.train_ds is data.valid_ds is ds
    assert repr(data).startswith('DataBunch(train_dl: 3 batches of 8 from ')
    check(train_dl, [8, 8, 4])
    check(valid_dl, [16, 4])
    assert type(next(iter(train_dl))) is list   # as PyTorch's collating makes it
    for dl in (train_dl, valid_dl):
        sizes = [len(yb) for _, yb in dl]
        check(DataLoader(dl.dataset, batch_sampler=dl.batch_sampler, collate_fn=dl.collate_fn),
              sizes)
        check(DataLoader(dl.dataset, batch_size=dl.batch_size, sampler=dl.sampler), sizes)
    check(DataLoader(ds, 8, shuffle=True, drop_last=True), [8, 8])


@pytest.mark.parametrize('kwargs', [
    dict(num_workers=2), dict(num_workers=1, persistent_workers=True),
    dict(collate_fn=None), dict(collate_fn=tud.default_collate),
], ids=['workers', 'persistent', 'no_collate', 'default_collate'])
@pytest.mark.parametrize('name', ['ours', 'tensors', 'part'])
def test_options_of_loaders(name, kwargs):
    ds = DATA_SETS[name]()
    train_dl, valid_dl = get_dls(ds, ds, 8, **kwargs)
    for _ in range(2): check(train_dl, [8, 8, 4])
    check(valid_dl, [16, 4])


@pytest.mark.parametrize('name', ['ours', 'tensors', 'part'])
def test_spawned_workers_get_a_loader_by_pickle(name):
    ds = DATA_SETS[name]()
    for dl in map(pickle.loads, map(pickle.dumps, get_dls(ds, ds, 8))):
        check(dl, [len(yb) for _, yb in dl])


def test_a_collate_function_of_ones_own_gets_items():
    def collate(items):
        assert len(items) == len(list(items)) == 8
        assert [int(y) for _, y in items[2:4]] == [int(y) for _, y in items][2:4]
        assert torch.equal(items[-1][0], list(reversed(items))[0][0])
        return torch.stack([x for x, _ in items]), [int(y) for _, y in items]
    xb, yb = next(iter(get_dls(Dataset(X, Y), Dataset(X, Y), 8, collate_fn=collate)[0]))
    assert xb[:, 0].tolist() == yb


def test_tensors_that_take_one_index_at_a_time():
    "And PyTorch doesn't collate them either"
    ds = Dataset(X.to_sparse(), Y)
    (xb, yb), _ = get_dls(ds, ds, 8, collate_fn=lambda items: list(zip(*items)))[1]
    assert torch.equal(torch.stack(xb).to_dense(), X[:16])


@pytest.mark.parametrize('generator', [None, torch.Generator().manual_seed(3)])
def test_the_order_is_one_permutation_a_pass(generator):
    "And no other number is drawn, but the seed that each pass of a `DataLoader` draws"
    dl, _ = get_dls(Dataset(X, Y), Dataset(X, Y), 8, generator=generator)
    source = torch.default_generator if generator is None else generator
    torch.manual_seed(1)
    state = source.get_state()
    orders = [torch.cat([yb for _, yb in dl]) for _ in range(2)]
    after = source.get_state()
    source.set_state(state)
    for order in orders:
        if generator is None: torch.empty((), dtype=torch.int64).random_()
        assert torch.equal(order, torch.randperm(20, generator=source))
    assert torch.equal(source.get_state(), after)


def test_a_sampler_of_ones_own_is_for_training():
    rare = tud.WeightedRandomSampler([0.]*18 + [1., 1.], 30)
    for ds in (Dataset(X, Y), TensorDataset(X, Y), Theirs()):
        train_dl, valid_dl = get_dls(ds, ds, 8, sampler=rare, drop_last=True)
        assert train_dl.sampler is rare
        assert [set(yb.tolist()) <= {18, 19} for _, yb in train_dl] == [True]*3
        check(valid_dl, [16, 4])


@pytest.mark.parametrize('n', [1, 3])
def test_batches_of_other_than_two_tensors(n):
    ds = TensorDataset(*[X + i for i in range(n)])
    batch = next(iter(get_dls(ds, ds, 8)[1]))
    assert [torch.equal(t, X[:16] + i) for i, t in enumerate(batch)] == [True]*n


class Forgetful(Dataset):
    def __init__(self): pass


class Unsized(Forgetful):
    def __getitem__(self, i): return X[i], Y[i]


class Stream(tud.IterableDataset):
    def __iter__(self): return iter([(X, Y)])
    def __len__(self): return 1


@pytest.mark.parametrize('make, says', [
    (Forgetful, r'a Forgetful, has no x and y: call super\(\).__init__\(x, y\), or define'),
    (Unsized, 'an? Unsized, has no x and y'),
    (Stream, "of type Stream, which has no length or can't be indexed: make your own DataLoader"),
    (lambda: [DataLoader(Dataset(X, Y))][0], 'of type DataLoader, which has no length or can'),
    (lambda: None, 'of type NoneType, which has no length'),
])
def test_what_loaders_cannot_be_made_of(make, says):
    repr(make())   # at least a name
    for sets in ((make(), Dataset(X, Y)), (Dataset(X, Y), make())):
        with pytest.raises(TypeError, match=says): get_dls(*sets, 8)


@pytest.mark.parametrize('kwargs, says', [
    (dict(shuffle=False), 'takes no shuffle'),
    (dict(batch_size=4), 'takes no batch_size'),
    (dict(batch_sampler=[[1]]), 'takes no batch_sampler'),
    (dict(sampler=tud.BatchSampler(range(20), 4, False)), 'takes no batch_sampler'),
    (dict(sampler=range(20), generator=torch.Generator()), 'give the generator to the sampler'),
])
def test_arguments_that_contradict_get_dls(kwargs, says):
    with pytest.raises((TypeError, ValueError), match=says):
        get_dls(Dataset(X, Y), Dataset(X, Y), 8, **kwargs)
    with pytest.raises(ValueError, match='train_ds has no items'):
        get_dls(Dataset(X[:0], Y[:0]), Dataset(X, Y), 8)


def bunch(*tensors, c=None):
    ds = Dataset(*tensors) if len(tensors) == 2 else TensorDataset(*tensors)
    return DataBunch(DataLoader(ds), c=c)


DTYPES = {t for t in vars(torch).values() if isinstance(t, torch.dtype)}


@pytest.mark.filterwarnings('ignore:.*(experimental|deprecated)')
@pytest.mark.parametrize('dtype', sorted(DTYPES, key=str), ids=str)
def test_numbers_of_any_type_are_let_through(dtype):
    if str(dtype).startswith('torch.q'):
        t = torch._empty_affine_quantized((8, 4), scale=1., zero_point=0, dtype=dtype)
    else:
        t = torch.zeros(8, 4, dtype=dtype)
    y = torch.zeros(8, dtype=torch.int64)
    for tensors in ((t, y), (y, t[:, 0]), (t, t, y), (t,)): repr(bunch(*tensors, c=2))


@pytest.mark.filterwarnings('ignore:.*(Sparse|nested|prototype)')
@pytest.mark.parametrize('make', [
    lambda: torch.eye(8).to_sparse(),
    lambda: torch.eye(8).to_sparse_csr(),
    lambda: torch.eye(8).to_sparse_bsr((2, 2)),
    lambda: torch.nested.nested_tensor([torch.ones(n) for n in range(1, 9)]),
    lambda: torch.nested.nested_tensor([torch.ones(n) for n in range(1, 9)], layout=torch.jagged),
    lambda: torch.ones(8, 4, device='meta'),
    lambda: np.array(['a']*8),
    lambda: np.zeros(8, [('a', 'f4')]),
    lambda: np.ones(8)[::-1],
    lambda: np.ones(8, '>f4'),
    lambda: np.ones(8, 'u2'),
    lambda: np.ones(8, np.longdouble),
    lambda: np.broadcast_to(np.ones(1), 8),   # read-only
    lambda: list('abcdefgh'),
])
def test_layouts_and_arrays_of_any_kind_are_let_through(make):
    y = torch.zeros(8, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*writable')
        for data in (bunch(make(), y, c=2), bunch(y, make(), c=2)): repr(data)


NAN = torch.tensor([0., 1., float('nan')])
LABELS_OF_3 = torch.tensor([0, 5, 1])


@pytest.mark.parametrize('tensors, says', [
    ((NAN, Y[:3]), 'train_dl: input 2 has numbers'),
    ((NAN.half(), Y[:3]), 'train_dl: input 2 has numbers'),
    ((NAN.numpy()[::-1], Y[:3]), 'train_dl: input 0 has numbers'),
    ((NAN,), 'train_dl: input 2 has numbers'),
    ((Y[:3], NAN), 'train_dl: target 2 has numbers'),
    ((NAN.log(), Y[:3]), 'train_dl: input 0 has numbers'),
    ((X[:3], NAN, Y[:3]), 'train_dl: tensor 1, input 2 has numbers'),
    ((X[:3], X[:3], LABELS_OF_3), 'train_dl: target 1 is 5, but the 3 classes'),
    ((X[:3], LABELS_OF_3.numpy().astype('u1')), 'train_dl: target 1 is 5, but the 3 classes'),
])
def test_the_first_wrong_item_is_named(tensors, says):
    with pytest.raises(ValueError, match=says): bunch(*tensors, c=3)


def test_what_are_no_labels_is_not_looked_at_as_labels():
    bunch(LABELS_OF_3, Y[:3], c=3)
    bunch(LABELS_OF_3, c=3)                       # without targets
    bunch(LABELS_OF_3, LABELS_OF_3, Y[:3], c=3)
    bunch(X[:3], torch.tensor([0, -100, 2]), c=3)
    class Filled(Dataset):
        def __getitem__(self, i): return self.x[i].nan_to_num(), self.y[i]
    DataBunch(*get_dls(Filled(NAN, Y[:3]), Filled(NAN, Y[:3]), 2), 3)


def test_what_are_no_loaders():
    ds, dls = Dataset(X, Y), get_dls(Dataset(X, Y), Dataset(X, Y), 8)
    for wrong in (ds, TensorDataset(X, Y), Subset(ds, [1]), Theirs(), Derived(), X, X.numpy(),
                  'mnist', dict(train=dls[0]), 64):
        for args, what in (((wrong, dls[1]), 'train_dl'), ((dls[0], wrong), 'valid_dl')):
            with pytest.raises(TypeError, match=rf'{what} is of type.*\*get_dls\(train_ds'):
                DataBunch(*args)
    with pytest.raises(TypeError, match='is a tuple of loaders: .* with a star'): DataBunch(dls)


def test_a_bunch_says_what_it_holds():
    ds = Dataset(X, Y)
    dls = get_dls(ds, Theirs(), 8)
    assert repr(DataBunch(*dls, c=20)) == (
        'DataBunch(train_dl: 3 batches of 8 from tensors (20, 3) and (20,), '
        'valid_dl: 2 batches of 16 from 20 items, c=20)')
    assert repr(DataBunch([(X, Y)])) == 'DataBunch(train_dl: 1 batch, valid_dl: none)'
    stream = DataBunch(batch for batch in [(X, Y)])
    assert repr(stream) == 'DataBunch(train_dl: batches, valid_dl: none)'


def test_one_thing_or_several():
    for one in ('loss', b'loss', dict(lr=1), torch.tensor(0.1), np.float64(0.1), np.array(0.1), 3):
        assert listify(one) == [one]
    assert listify(torch.tensor([1., 2.])) == [1., 2.]
    assert listify(i for i in range(2)) == listify((0, 1)) == listify({0, 1}) == [0, 1]
