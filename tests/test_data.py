"Downloads from servers that misbehave, files that lie, and the search order."
import gzip
import hashlib
import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from helpers import heeds_permissions

from minifastai import datasets
from minifastai.datasets import find_mnist, get_data, get_test_data, parse_idx

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
    monkeypatch.setattr(datasets, '_MNIST_SHA256', hashes)
    monkeypatch.setattr(datasets, '_cache_dir', lambda: tmp_path/'cache')
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


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path):
    datasets._download_mnist(tmp_path/'new', mirrors=[server('good')])
    assert names(tmp_path/'new') == TRAIN_GZ
    assert set(find_mnist(tmp_path/'new')) >= {IMAGES, LABELS}


@pytest.mark.parametrize('how', ['gone', 'page', 'zipped_page', 'swapped', 'flipped', 'drops'])
def test_a_bad_mirror_is_passed_over(server, tmp_path, how):
    folder = tmp_path/'new'
    datasets._download_mnist(folder, mirrors=[server(how), server('good')])
    assert names(folder) == TRAIN_GZ
    assert datasets._read_mnist(folder/f'{IMAGES}.gz').shape == (60, 28, 28)


@pytest.mark.parametrize('how', ['gone', 'page', 'swapped', 'flipped', 'drops'])
def test_only_bad_mirrors(server, tmp_path, how):
    folder = tmp_path/'new'
    with pytest.raises(ConnectionError, match='could not be downloaded') as info:
        datasets._download_mnist(folder, mirrors=[server(how), server('gone')])
    assert str(info.value).count('http://') >= 2
    assert names(folder) == []


def test_a_mirror_that_hangs(server, tmp_path, monkeypatch):
    import pooch
    patient = pooch.HTTPDownloader
    impatient = lambda timeout, **kw: patient(timeout=(0.5, 0.5), **kw)
    monkeypatch.setattr(pooch, 'HTTPDownloader', impatient)
    start = time.perf_counter()
    datasets._download_mnist(tmp_path/'new', mirrors=[server('hangs'), server('good')])
    assert time.perf_counter() - start < 6
    assert names(tmp_path/'new') == TRAIN_GZ


def test_two_downloads_at_once(server, tmp_path):
    folder = tmp_path/'new'
    download = lambda: datasets._download_mnist(folder, mirrors=[server('slow')])
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(download) for _ in range(2)]: done.result()
    assert names(folder) == TRAIN_GZ
    for name in TRAIN_GZ: datasets._read_mnist(folder/name)


@pytest.fixture
def mirrored(server, monkeypatch):
    "`get_data` and `get_test_data` download from the local server"
    monkeypatch.setattr(datasets, '_MIRRORS', (server('good'),))
    defaults = datasets._TRAIN_FILES, (server('good'),)
    monkeypatch.setattr(datasets._download_mnist, '__defaults__', defaults)


def test_get_data_downloads_into_the_cache(mirrored, monkeypatch):
    monkeypatch.setattr(datasets, '_split', lambda x, y, n: (x[:50], y[:50], x[50:], y[50:]))
    with pytest.raises(FileNotFoundError, match='Three ways'): get_data('mnist', download=False)
    x_train, y_train, x_valid, y_valid = get_data()
    assert x_train.shape == (50, 784)
    assert y_valid.tolist() == list(range(10))
    assert x_train.max() < 1
    monkeypatch.setattr(datasets, '_download_mnist', None)   # it is not called again
    assert torch.equal(get_data()[0], x_train)


def test_the_test_set_is_a_pair_of_its_own(mirrored, monkeypatch):
    with pytest.raises(FileNotFoundError, match='Two ways'): get_test_data(download=False)
    x, y = get_test_data()
    assert x.shape == (20, 784)
    assert y.tolist() == list(range(10))*2
    # the training files were not asked for
    assert names(datasets._cache_dir()) == sorted([f'{TEST_IMAGES}.gz', f'{TEST_LABELS}.gz'])
    assert find_mnist() == {}
    monkeypatch.setenv('MINIFASTAI_DATASET', 'digits')
    with pytest.raises(ValueError, match='Only MNIST has a test set'): get_test_data()


def test_search_order(tiny_mnist, tmp_path, monkeypatch):
    assert find_mnist() == {}
    cached = put(tiny_mnist, datasets._cache_dir())
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
            datasets._read_mnist(tmp_path/name)
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
    cache = datasets._cache_dir()
    old = left_by_a_download(cache, 2*3600)
    young = left_by_a_download(cache, 60)
    long = left_by_a_download(cache, 3*3600)
    (long/'part').write_bytes(b'one more byte')   # it began long ago, and goes on
    find_mnist()
    assert old.exists()   # who only looks changes nothing
    datasets._get_mnist(datasets._TRAIN_FILES, None, True)
    assert not old.exists()
    assert young.exists() and long.exists()
    old.mkdir()
    os.utime(old, (0, 0))
    datasets._get_mnist(datasets._TRAIN_FILES, None, True)   # nothing to download this time
    assert not old.exists()
