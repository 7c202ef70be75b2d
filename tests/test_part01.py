"Chapter 01, which exports nothing: its matrix products, its rules of broadcasting, its tolerance."
import ast
import itertools
import json
from pathlib import Path

import pytest
import torch

path = Path(__file__).parent.parent/'nbs'/'01_matmul.ipynb'
cells = json.loads(path.read_text(encoding='utf-8'))['cells']


def definitions() -> dict:
    "The functions and classes of the chapter by name, without running its other lines"
    import math
    from torch.overrides import TorchFunctionMode
    names = dict(torch=torch, math=math, TorchFunctionMode=TorchFunctionMode)
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or source.startswith('#| hide'): continue
        nodes = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        for node in nodes: exec(ast.unparse(node), names)
    return names


names = definitions()
VERSIONS = ['loops', 'lists', 'elementwise', 'rows', 'once', 'einsum', 'fused']


def random_pair(n, k, m):
    g = torch.Generator().manual_seed(n*100 + k*10 + m)
    return torch.randn(n, k, generator=g), torch.randn(k, m, generator=g)


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 5, 1), (3, 1, 4), (2, 7, 3), (9, 40, 2)])
def test_every_version_is_the_product(version, shape):
    a, b = random_pair(*shape)
    c = names[f'matmul_{version}'](a, b)
    assert c.shape == (shape[0], shape[2])
    assert (c - a.double() @ b.double()).abs().max() < 1e-5


@pytest.mark.parametrize('version', VERSIONS)
def test_every_version_takes_views(version):
    a, b = random_pair(4, 12, 5)
    product = names[f'matmul_{version}'](b.t(), a.t())
    assert torch.allclose(product, (a @ b).t(), atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize('version', ['blocked', 'buffer', 'tiles'])
def test_blocks_of_any_size(version, size):
    a, b = random_pair(5, 7, 6)
    assert torch.allclose(names[f'matmul_{version}'](a, b, size), a @ b, atol=1e-5)


@pytest.mark.parametrize('levels', [0, 1, 2])
def test_strassen(levels):
    a, b = random_pair(8, 8, 8)
    assert torch.allclose(names['strassen'](a, b, levels), a @ b, atol=1e-4)


def test_a_wrong_inner_size_is_refused():
    a, b = torch.ones(2, 3), torch.ones(4, 5)
    with pytest.raises(AssertionError, match='3 columns, but 4 rows'): names['matmul_loops'](a, b)


def test_the_rules_of_broadcasting_are_pytorchs():
    shapes = [s for n in range(4) for s in itertools.product((0, 1, 2, 3), repeat=n)]
    for a, b in itertools.product(shapes, repeat=2):
        try: expected = tuple(torch.broadcast_shapes(a, b))
        except RuntimeError:
            with pytest.raises(ValueError, match="don't fit"): names['broadcast_shape'](a, b)
        else: assert names['broadcast_shape'](a, b) == expected


def test_near_heeds_shape_size_and_nan():
    near = names['near']   # the last of the chapter's two
    a, b = random_pair(30, 784, 20)
    c = a @ b
    for factor in (1e-6, 1., 1e6): assert near(factor*names['matmul_fused'](a, b), factor*c)
    assert not near(c, c[:1])
    assert not near(c[:1], c)
    assert not near(c*1.0001, c)
    assert not near(torch.where(c == c.max(), torch.nan, c), c)


def test_calls_are_counted():
    calls = names['calls']
    a, b = random_pair(2, 3, 4)
    assert calls(torch.matmul, a, b) == 1
    assert calls(names['matmul_once'], a, b) == 3
    assert calls(names['matmul_loops'], a, b) == 6*2*3*4 + 3


def test_figures_are_small():
    pictures = [out['data']['image/png'] for cell in cells for out in cell.get('outputs', [])
                if 'image/png' in out.get('data', {})]
    assert 4 <= len(pictures) <= 7
    assert max(map(len, pictures)) < 150_000
