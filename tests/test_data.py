"Downloads from servers that misbehave, two at a time, and the search order."
import gzip
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import heeds_permissions

from minifastai import data
from minifastai.datasets import find_mnist, get_data, get_test_data

IMAGES, LABELS = data._train_files
TEST_IMAGES, TEST_LABELS = data._test_files


def idx(array):
    "`array` in the idx format, compressed"
    types = {np.dtype('u1'): 8}
    return bytes([0, 0, types[array.dtype], array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    "A stand-in for MNIST of the same shape but the number of images, its hashes known to the module; a cache of its own. Returns the files"
    rng = np.random.default_rng(0)
    files = {IMAGES: idx(rng.integers(0, 256, (60, 28, 28), dtype='u1')), LABELS: idx(np.arange(60, dtype='u1') % 10)}
    files |= {TEST_IMAGES: idx(rng.integers(0, 256, (20, 28, 28), dtype='u1')), TEST_LABELS: idx(np.arange(20, dtype='u1') % 10)}
    monkeypatch.setattr(data, '_mnist_sha256', {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    monkeypatch.setattr(data, '_cache_dir', lambda: tmp_path/'cache')
    monkeypatch.delenv('MINIFASTAI_DATA', raising=False)
    monkeypatch.delenv('MINIFASTAI_DATASET', raising=False)
    return files


@pytest.fixture
def server(tiny_mnist):
    "A local server; the first part of a path says how it misbehaves. Yields a function from that to a mirror's address"
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            _, how, name = self.path.split('/')
            body = gzip.compress(tiny_mnist[name.removesuffix('.gz')])
            if how == 'gone': return self.send_error(404)
            if how == 'page': body = b'<html>Please log in</html>'
            if how == 'zipped_page': body = gzip.compress(b'<html>Please log in</html>')
            if how == 'swapped': body = gzip.compress(tiny_mnist[LABELS if IMAGES in name else IMAGES])
            if how == 'flipped': body = gzip.compress(tiny_mnist[name.removesuffix('.gz')][:-1] + b'!')
            self.send_response(200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            if how == 'slow': time.sleep(0.2)
            if how == 'drops': body = body[:len(body)//2]
            if how == 'hangs': self.wfile.write(body[:10]); self.wfile.flush(); time.sleep(3); return
            self.wfile.write(body)
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield lambda how: f'http://127.0.0.1:{httpd.server_port}/{how}/'
    httpd.shutdown()


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path):
    data._download_mnist(tmp_path/'new', mirrors=[server('good')])
    assert names(tmp_path/'new') == [f'{IMAGES}.gz', f'{LABELS}.gz']
    assert set(find_mnist(tmp_path/'new')) >= {IMAGES, LABELS}


@pytest.mark.parametrize('how', ['gone', 'page', 'zipped_page', 'swapped', 'flipped', 'drops'])
def test_a_bad_mirror_is_passed_over(server, tmp_path, how):
    folder = tmp_path/'new'
    data._download_mnist(folder, mirrors=[server(how), server('good')])
    assert names(folder) == [f'{IMAGES}.gz', f'{LABELS}.gz']
    x = data._read_mnist(folder/f'{IMAGES}.gz')
    assert x.shape == (60, 28, 28)


@pytest.mark.parametrize('how', ['gone', 'page', 'swapped', 'flipped', 'drops'])
def test_only_bad_mirrors(server, tmp_path, how):
    folder = tmp_path/'new'
    with pytest.raises(ConnectionError, match='could not be downloaded') as info: data._download_mnist(folder, mirrors=[server(how), server('gone')])
    assert str(info.value).count('http://') >= 2 and names(folder) == []


def test_a_mirror_that_hangs(server, tmp_path, monkeypatch):
    import pooch
    patient = pooch.HTTPDownloader
    monkeypatch.setattr(pooch, 'HTTPDownloader', lambda timeout, **kw: patient(timeout=(0.5, 0.5), **kw))
    start = time.perf_counter()
    data._download_mnist(tmp_path/'new', mirrors=[server('hangs'), server('good')])
    assert names(tmp_path/'new') == [f'{IMAGES}.gz', f'{LABELS}.gz'] and time.perf_counter() - start < 6


def test_two_downloads_at_once(server, tmp_path):
    folder = tmp_path/'new'
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(data._download_mnist, folder, mirrors=[server('slow')]) for _ in range(2)]: done.result()
    assert names(folder) == [f'{IMAGES}.gz', f'{LABELS}.gz']
    for name in (IMAGES, LABELS): data._read_mnist(folder/f'{name}.gz')


def test_get_data_downloads_into_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, '_mirrors', (server('good'),))
    monkeypatch.setattr(data._download_mnist, '__defaults__', (data._train_files, (server('good'),)))
    monkeypatch.setattr(data, '_split', lambda x, y, n: (x[:50], y[:50], x[50:], y[50:]))
    with pytest.raises(FileNotFoundError, match='Three ways'): get_data('mnist', download=False)
    x_train, y_train, x_valid, y_valid = get_data()
    assert x_train.shape == (50, 784) and y_valid.tolist() == list(range(10)) and x_train.max() < 1
    monkeypatch.setattr(data, '_download_mnist', None)  # it is not called again
    assert torch.equal(get_data()[0], x_train)


def test_the_test_set_is_a_pair_of_its_own(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data._download_mnist, '__defaults__', (data._train_files, (server('good'),)))
    with pytest.raises(FileNotFoundError, match='Two ways'): get_test_data(download=False)
    x, y = get_test_data()
    assert x.shape == (20, 784) and y.tolist() == list(range(10))*2
    assert names(data._cache_dir()) == sorted([f'{TEST_IMAGES}.gz', f'{TEST_LABELS}.gz'])   # the training files were not asked for
    assert find_mnist() == {}
    monkeypatch.setenv('MINIFASTAI_DATASET', 'digits')
    with pytest.raises(ValueError, match='Only MNIST has a test set'): get_test_data()


def test_search_order(tiny_mnist, tmp_path, monkeypatch):
    def put(folder, **how):
        folder.mkdir(parents=True)
        for name, content in tiny_mnist.items(): (folder/(name if how else f'{name}.gz')).write_bytes(content if how else gzip.compress(content))
        return folder
    assert find_mnist() == {}
    cached = put(data._cache_dir())
    assert find_mnist()[IMAGES].parent == cached
    monkeypatch.setenv('MINIFASTAI_DATA', str(tmp_path/'set'))
    assert find_mnist()[IMAGES].parent == cached            # the setting's folder has none: look on
    put(tmp_path/'set'/'mnist', raw=True)
    assert find_mnist()[IMAGES] == tmp_path/'set'/'mnist'/IMAGES
    put(tmp_path/'given'/'MNIST'/'raw')
    assert find_mnist(tmp_path/'given')[LABELS].parent.name == 'raw'
    assert find_mnist(tmp_path) == {}                       # an explicit path is the only place


def test_a_damaged_file_is_named_not_passed_over(tiny_mnist, tmp_path, monkeypatch):
    "Also if another copy would be found further on"
    folder = tmp_path/'set'
    folder.mkdir()
    for name, content in tiny_mnist.items(): (folder/f'{name}.gz').write_bytes(gzip.compress(content))
    bad = folder/f'{IMAGES}.gz'
    monkeypatch.setenv('MINIFASTAI_DATA', str(folder))
    whole = bad.read_bytes()
    for content in (whole[:-20], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b'', gzip.compress(tiny_mnist[LABELS])):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=str(bad)): get_data('mnist')
    bad.unlink()
    with pytest.raises(FileNotFoundError, match=f'but not {IMAGES}'): get_data('mnist')


def test_settings(monkeypatch, tiny_mnist):
    monkeypatch.setenv('MINIFASTAI_DATASET', 'digits')
    assert get_data()[0].shape == (1437, 784)
    with pytest.raises(FileNotFoundError): get_data('mnist', download=False)  # asked for by name: the setting does not count
    monkeypatch.setenv('MINIFASTAI_DATASET', 'mnits')
    with pytest.raises(ValueError, match="no data set 'mnits'"): get_data()


@pytest.mark.skipif(not heeds_permissions(), reason='root may read everything')
def test_an_unreadable_file(tiny_mnist, tmp_path):
    for name, content in tiny_mnist.items(): (tmp_path/f'{name}.gz').write_bytes(gzip.compress(content))
    Path(tmp_path/f'{IMAGES}.gz').chmod(0)
    with pytest.raises(PermissionError): get_data('mnist', tmp_path)
