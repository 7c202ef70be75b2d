"Pictures of all kinds, damaged files, labels, batches, decoding once, archives."
import copy
import io
import os
import pickle
import tarfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn, tensor

from minifastai import data_block, datasets
from minifastai.cnn import conv2d, get_cnn_layers, get_cnn_model
from minifastai.data import DataBunch, Dataset, get_dls
from minifastai.data_block import (
    CategoryProcessor, compose, decoded, find_modules, get_batch, get_files, get_imagenette,
    grandparent_splitter, image_extensions, ImageList, ItemError, ItemList, label_by_func,
    LabeledData, make_rgb, MakeRGB, model_summary, norm_imagenette, normalize_chan, parent_labeler,
    Processor, random_splitter, ResizeFixed, setify, show_batch, show_image, split_by_func,
    SplitData, to_byte_tensor, to_float_tensor, Transform, uniqueify)
from minifastai.datasets import (
    archive_files, data_path, find_data, get_cifar10, get_patches, unpack, untar_data, URLs,
    write_digits)
from minifastai.init import get_learn_run
from minifastai.norms import conv_layer

TFMS = [make_rgb, ResizeFixed(8), to_byte_tensor, to_float_tensor]
COLOURS = dict(red=(255, 0, 0), green=(0, 255, 0))


def picture(colour=(255, 0, 0), size=(12, 8), **settings):
    "The bytes of a PNG file"
    out = io.BytesIO()
    Image.new('RGB', size, colour).save(out, 'PNG', **settings)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    "Two classes: eight pictures for training, four for validation"
    for part, n in (('train', 4), ('valid', 2)):
        for name, colour in COLOURS.items():
            (tmp_path/'pics'/part/name).mkdir(parents=True)
            for i in range(n): (tmp_path/'pics'/part/name/f'{i}.png').write_bytes(picture(colour))
    return tmp_path/'pics'


def labelled(folder, tfms=TFMS, **kwargs):
    sd = SplitData.split_by_func(ImageList.from_files(folder, tfms=tfms), grandparent_splitter)
    return label_by_func(sd, parent_labeler, proc_y=CategoryProcessor(), **kwargs)


def no_warning():
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter('error')
    return caught


# Files

def test_files_are_sorted_and_filtered(folder):
    for name in ('.hidden.png', 'note.txt', 'b.JPG'): (folder/name).write_bytes(b'x')
    (folder/'.git').mkdir()
    (folder/'.git'/'a.png').write_bytes(b'x')
    assert [p.name for p in get_files(folder)] == ['b.JPG', 'note.txt']
    assert [p.name for p in get_files(folder, '.jpg')] == ['b.JPG']
    found = get_files(folder, image_extensions, recurse=True)
    assert found == sorted(found) and len(found) == 13
    assert len(get_files(folder, ['.png'], recurse=True, include=['valid'])) == 4
    assert len(get_files(str(folder), {'.PNG'}, recurse=True, include='train')) == 8


def test_what_is_not_there_is_an_error(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
        get_files(tmp_path/'nowhere')
    (tmp_path/'texts').mkdir()
    (tmp_path/'texts'/'a.txt').write_text('a')
    with pytest.raises(ValueError, match=r'no picture in .*texts, which has 1 \.txt'):
        ImageList.from_files(tmp_path/'texts')


def test_an_empty_class_is_named(folder):
    caught = no_warning()
    ImageList.from_files(folder)
    caught.__exit__()
    (folder/'train'/'blue').mkdir()
    (folder/'models').mkdir()   # not beside folders with pictures, so it's no class
    with pytest.warns(UserWarning, match=r'no image in train.blue of') as seen:
        ImageList.from_files(folder)
    assert 'models' not in str(seen[0].message)


def test_the_lessons_helpers():
    assert setify('aa') == {'aa'}
    assert setify(['aa', 1]) == {'aa', 1}
    assert setify(None) == set()
    assert setify(1) == {1}
    s = {1}
    assert setify(s) is s
    assert uniqueify([3, 1, 3]) == [3, 1]
    assert uniqueify([3, 1, 3], sort=True) == [1, 3]

    def add(x, n=1): return f'{x}+{n}'
    def mul(x, n=1): return f'{x}*{n}'
    mul._order = -1
    assert compose('x', [add, mul], n=2) == 'x*2+2'
    assert compose('x', None) == 'x'
    add.late, mul.late = 0, 1
    assert compose('x', [mul, add], order_key='late') == 'x+1*1'


# Items

def test_any_index():
    il = ItemList(list('abcd'), tfms=str.upper)
    assert il[0] == 'A' and il[-1] == 'D' and il[tensor(1)] == 'B'
    assert il[1:3] == il[[1, 2]] == il[tensor([1, 2])] == ['B', 'C']
    mask = tensor([True, False, False, True])
    assert il[mask] == il[mask.tolist()] == il[mask.numpy()] == ['A', 'D']
    assert il[[]] == il[tensor([]).long()] == []
    assert list(il) == list('abcd')   # as in the course: the items themselves
    assert il.new(['x', 'y'])[0] == 'X'
    assert len(ItemList([])) == 0


def test_what_pieces_show(folder):
    il = ImageList.from_files(folder, tfms=TFMS[::-1])
    said = repr(il)
    assert 'ImageList (12 items)' in said and f'Path: {folder}' in said
    assert os.path.join('train', 'green', '0.png') in said
    assert said.endswith('make_rgb, ResizeFixed(size=(8, 8)), to_byte_tensor, to_float_tensor')
    sd = labelled(folder)
    assert 'CategoryProcessor(2 classes: green, red) of 4 to 4 items each' in repr(sd)
    assert 'c_in=3, c_out=2' in repr(sd.to_databunch(2))
    assert '8 items' in repr(decoded(sd.train)) and 'to_float_tensor' in repr(decoded(sd.train))
    assert repr(CategoryProcessor()) == 'CategoryProcessor(no vocabulary yet)'
    assert repr(Processor()) == 'Processor()'


def test_transforms_run_in_their_order(folder):
    x = ImageList.from_files(folder, tfms=TFMS[::-1])[0]
    assert x.shape == (3, 8, 8) and x.dtype == torch.float32 and x.max() == 1
    assert ImageList.from_files(folder, tfms=MakeRGB())[0].mode == 'RGB'
    with pytest.raises(NotImplementedError, match='has to define'): Transform()(1)
    with pytest.raises(ValueError, match='a side has to be a whole number'): ResizeFixed((8, 0))


def test_a_resized_picture_is_wide_and_high_as_said():
    assert ResizeFixed((6, 4))(Image.new('L', (9, 9))).size == (6, 4)


# Pictures of all kinds

def opened(tmp_path, img, name='a.png', **settings):
    img.save(tmp_path/name, **settings)
    return make_rgb(ImageList([tmp_path/name])[0])


@pytest.mark.parametrize('mode, colour, rgb', [
    ('1', 1, (255, 255, 255)),
    ('L', 100, (100, 100, 100)),
    ('LA', (100, 255), (100, 100, 100)),
    ('LA', (100, 0), (255, 255, 255)),
    ('RGB', (1, 2, 3), (1, 2, 3)),
    ('RGBA', (1, 2, 3, 255), (1, 2, 3)),
    ('RGBA', (0, 0, 0, 0), (255, 255, 255)),
], ids=str)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, rgb):
    img = opened(tmp_path, Image.new(mode, (4, 3), colour))
    assert (img.mode, img.getpixel((0, 0))) == ('RGB', rgb)
    assert to_byte_tensor(img).shape == (3, 3, 4)


def test_cmyk(tmp_path):
    img = opened(tmp_path, Image.new('CMYK', (16, 16), (0, 255, 255, 0)), 'a.jpg', quality=95)
    red, green, blue = img.getpixel((8, 8))
    assert red > 230 and green < 30 and blue < 30


def test_a_palette_with_transparency(tmp_path):
    img = Image.new('P', (4, 4), 0)
    img.putpalette([0, 0, 0, 200, 0, 0])
    img.putpixel((1, 0), 1)
    img = opened(tmp_path, img, transparency=0)
    assert img.getpixel((0, 0)) == (255, 255, 255) and img.getpixel((1, 0)) == (200, 0, 0)
    img = opened(tmp_path, Image.new('RGB', (4, 4), (9, 9, 9)), transparency=(9, 9, 9))
    assert img.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled(tmp_path):
    grey = np.array([[0, 257*100, 65535]], np.uint16)
    img = opened(tmp_path, Image.fromarray(grey))
    assert [img.getpixel((i, 0))[0] for i in range(3)] == [0, 100, 255]
    with pytest.raises(ValueError, match='no fixed range'): make_rgb(Image.new('F', (2, 2)))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    "However a camera was held, the picture comes out the right way up"
    upright = Image.new('RGB', (16, 8), (255, 255, 255))
    upright.paste((255, 0, 0), (0, 0, 8, 4))   # red in the upper left corner
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
            6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path/'a.png', exif=exif)
    img = ImageList([tmp_path/'a.png'])[0]
    assert img.size == (16, 8)
    assert img.getpixel((2, 2)) == (255, 0, 0) and img.getpixel((13, 6)) == (255, 255, 255)


def test_bytes_need_a_picture_of_bytes():
    for mode in ('P', '1', 'I', 'F'):
        with pytest.raises(ValueError, match=f'mode {mode} .*add make_rgb'):
            to_byte_tensor(Image.new(mode, (2, 2)))


# Damaged items

@pytest.mark.parametrize('content', [b'', b'no picture', picture()[:50]],
                         ids=['empty', 'text', 'truncated'])
def test_a_damaged_file_is_named(folder, content):
    bad = folder/'train'/'red'/'2.png'
    bad.write_bytes(content)
    sd = labelled(folder)
    with pytest.raises(ItemError, match=r'2\.png can\'t be opened'): sd.train[6]
    data = sd.to_databunch(4, c_in=3)
    with pytest.raises(ItemError, match=r'2\.png can\'t be opened'): list(data.train_dl)
    with pytest.raises(ItemError, match=r'2\.png can\'t be opened'): sd.decoded()
    (folder/'train'/'green'/'3.png').write_bytes(content)
    with pytest.raises(ItemError, match=r'2 of 8 items .*3\.png.*2\.png'): sd.decoded()


def test_a_worker_names_it_too(folder):
    (folder/'train'/'red'/'2.png').write_bytes(b'no picture')
    data = labelled(folder).to_databunch(4, c_in=3, num_workers=1)
    with pytest.raises(ItemError, match=r'2\.png can\'t be opened'): list(data.train_dl)


def test_a_truncated_jpeg_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path/'a.jpg')
    content = (tmp_path/'a.jpg').read_bytes()
    (tmp_path/'a.jpg').write_bytes(content[:len(content)//2])
    with pytest.raises(ItemError, match=r'a\.jpg can\'t be opened: OSError.*truncated'):
        ImageList.from_files(tmp_path)[0]


def test_a_failing_transform_is_named(folder):
    def broken(img): return img.nothing
    il = ImageList.from_files(folder, tfms=[make_rgb, broken])
    with pytest.raises(ItemError, match=r'0\.png can\'t be transformed by broken: Attribute'): il[0]


# Splits

def test_splits(folder):
    il = ImageList.from_files(folder)
    train, valid = split_by_func(il, grandparent_splitter)
    assert (len(train), len(valid)) == (8, 4) and isinstance(train[0], Path)
    sd = SplitData.split_by_func(il, grandparent_splitter)
    assert (len(sd.train), len(sd.valid), sd.path) == (8, 4, folder)
    assert split_by_func([1, 2, 3], {1: None, 2: True, 3: False}.get) == ([3], [2])


def test_a_part_without_items(folder):
    il = ImageList.from_files(folder)
    with pytest.warns(UserWarning, match='Of 12 items, the split by grandparent_splitter gives 8 '
                      'for training and 0'):
        SplitData.split_by_func(il, partial(grandparent_splitter, valid_name='val'))
    with pytest.raises(ValueError, match='gives 0 for training and 4 for'):
        SplitData.split_by_func(il, partial(grandparent_splitter, train_name='training'))


def test_a_random_split_is_the_same_each_time():
    files = [Path(f'any/{i%7}/{i}.png') for i in range(4000)]
    train, valid = split_by_func(files, partial(random_splitter, p_valid=0.1))
    assert 320 < len(valid) < 480 and len(train) + len(valid) == 4000
    again = [f for f in files[::-1] if random_splitter(Path('/elsewhere')/f, 0.1)]
    assert sorted(again) == sorted(valid)
    other = [f for f in files if random_splitter(f, 0.1, seed=1)]
    assert 10 < len(set(other) & set(valid)) < 80
    with pytest.raises(ValueError, match='a fraction'): random_splitter(files[0], 20)


# Labels

def test_the_vocabulary_is_sorted():
    proc = CategoryProcessor()
    assert proc(['b', 'a', 'c', 'a']) == [1, 0, 2, 0]
    assert proc.vocab == ['a', 'b', 'c']
    assert proc.deprocess([2, 0]) == ['c', 'a'] and proc.deproc1(tensor(1)) == 'b'
    assert CategoryProcessor(['z', 'a'])(['a']) == [1]
    with pytest.raises(ValueError, match="'cat' isn't in the vocabulary of 2 labels, 'dog'; 'cats'"
                       r"\. Did you mean 'cats'"):
        CategoryProcessor(['dog', 'cats'])(['cat'])
    with pytest.raises(ValueError, match="several kinds can't be sorted: str, int"):
        CategoryProcessor()(['a', 1])
    with pytest.raises(ValueError, match='no vocabulary yet'): CategoryProcessor().deproc1(0)


def test_labels(folder):
    ll = labelled(folder)
    assert ll.train.proc_y is ll.valid.proc_y
    assert ll.train.proc_y.vocab == ['green', 'red']
    x, y = ll.train[0]
    assert x.shape == (3, 8, 8) and y == 0
    xs, ys = ll.train[2:6]
    assert len(xs) == 4 and ys == [0, 0, 1, 1]
    assert ll.train.y_obj(0) == ll.train.y_obj(tensor(0)) == 'green'
    assert ll.train.y_obj(slice(3, 5)) == ll.train.y_obj([3, 4]) == ['green', 'red']
    assert ll.train.x_obj(0).shape == (3, 8, 8)
    assert ll.train.items[0].name == '0.png' and ll.proc_y is ll.train.proc_y


def test_a_label_never_seen_in_training(folder):
    (folder/'valid'/'gren').mkdir()
    (folder/'valid'/'gren'/'0.png').write_bytes(picture())
    with pytest.raises(ItemError, match=r"gren.0\.png: The label 'gren' isn't in the vocabulary "
                       r"of 2 labels, 'green'; 'red'\. Did you mean 'green'"):
        labelled(folder)


def test_what_cant_be_labelled_is_named(folder):
    sd = SplitData.split_by_func(ImageList.from_files(folder), grandparent_splitter)
    with pytest.raises(ItemError, match=r'0\.png can\'t be labelled by <lambda>: IndexError'):
        label_by_func(sd, lambda fn: fn.name.split('_')[1])
    with pytest.raises(ItemError, match=r'0\.png gets no label'):
        label_by_func(sd, {}.get)
    with pytest.raises(ValueError, match='2 items, but 1 labels'):
        LabeledData(ItemList([1, 2]), ItemList([1]))


def test_copies_and_pickles(folder):
    sd = labelled(folder)
    for o in (copy.deepcopy(sd), pickle.loads(pickle.dumps(sd))):
        assert o.train.proc_y.vocab == ['green', 'red'] and o.valid[0][0].shape == (3, 8, 8)
    with pytest.raises(AttributeError): sd.nothing
    assert not hasattr(SplitData.__new__(SplitData), 'x')


# Batches

@pytest.mark.parametrize('tfms, shapes, remedy', [
    ([make_rgb, to_byte_tensor], ['(3, 8, 12)', '(3, 8, 9)'], r'ResizeFixed\(size\)'),
    ([ResizeFixed(8), to_byte_tensor], ['(3, 8, 8)', '(1, 8, 8)'], 'make_rgb'),
    ([make_rgb, ResizeFixed(8)], [], 'to_byte_tensor'),
], ids=['size', 'channels', 'no tensor'])
@pytest.mark.parametrize('make', ['databunch', 'get_dls', 'decoded'])
def test_what_cant_be_collated_is_named(folder, tfms, shapes, remedy, make):
    Image.new('L', (9, 8)).save(folder/'train'/'green'/'1.png')
    sd = labelled(folder, tfms)
    def batches():
        if make == 'decoded': return list(sd.decoded().to_databunch(8).train_dl)
        if make == 'databunch': return list(sd.to_databunch(8, c_in=3).train_dl)
        return list(get_dls(sd.train, sd.valid, 8)[0])
    with pytest.raises(ItemError, match=remedy) as e: batches()
    if shapes: assert 'green' in str(e.value) and '1.png' in str(e.value)   # the order is random
    for shape in shapes: assert shape in str(e.value)


def test_a_databunch_knows_channels_and_classes(folder):
    data = labelled(folder).to_databunch(2)
    assert (data.c_in, data.c_out, data.c) == (3, 2, 2)
    xb, yb = next(iter(data.train_dl))
    assert xb.shape == (2, 3, 8, 8) and yb.dtype == torch.int64
    assert len(data.train_ds) == 8 and len(data.valid_ds) == 4
    with pytest.raises(ValueError, match='c_out is 1, but there are 2 classes: green; red'):
        labelled(folder).to_databunch(2, c_out=1)
    assert labelled(folder).to_databunch(2, c_in=3, c_out=10).c_out == 10
    dl = data.train_dl
    assert DataBunch(dl, dl, c_in=3, c_out=10).c == 10
    assert DataBunch(dl, dl, 10).c_out == 10 and DataBunch(dl, dl, 10).c_in is None
    with pytest.raises(ValueError, match='c is 9 and c_out is 10'): DataBunch(dl, dl, 9, c_out=10)


def test_normalised_channels():
    x = torch.rand(4, 3, 5, 5)
    m, s = tensor([0.1, 0.2, 0.3]), tensor([1., 2., 3.])
    found = normalize_chan(x, m, s)
    assert torch.allclose(found[:, 1], (x[:, 1] - 0.2)/2)
    assert torch.equal(found, normalize_chan(x, m.tolist(), s.tolist()))
    assert norm_imagenette(x.half()).dtype == torch.float16
    with pytest.raises(ValueError, match='add to_float_tensor'): norm_imagenette(x.byte())


def tiny_data(c_in=3, size=16):
    x, y = torch.rand(8, c_in or 1, size, size), torch.randint(4, (8,))
    return DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 4), c_in=c_in, c_out=4)


@pytest.mark.parametrize('c_in, stem', {3: [16, 32, 64], 1: [8, 16, 32], 4: [32, 64, 128]}.items())
def test_the_network_for_photographs(c_in, stem):
    data = tiny_data(c_in)
    convs = [m for m in get_cnn_model(data, [64, 64], conv_layer).modules()
             if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [*stem, 64, 64]
    assert [m.stride[0] for m in convs] == [1, 2, 2, 2, 2]
    assert {m.kernel_size for m in convs} == {(3, 3)} and convs[0].in_channels == c_in
    assert get_cnn_model(data, [64, 64], conv_layer)(data.train_ds.x).shape == (8, 4)


def test_without_c_in_the_network_is_that_of_chapter_06():
    data = tiny_data(None)
    convs = [l[0] for l in get_cnn_layers(data, [8, 16], conv2d)[:2]]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convs] == \
        [(1, 8, 5), (8, 16, 3)]


def test_a_summary_sees_the_batch_as_the_model_does(capsys):
    data = tiny_data()
    from minifastai.cnn import BatchTransformXCallback
    cbs = [partial(BatchTransformXCallback, lambda x: x + 100)]
    learn, run = get_learn_run([8], data, 0.1, conv_layer, cbs=cbs)
    n, mode, random = len(run.cbs), learn.model.training, torch.get_rng_state()
    xb, yb = get_batch(data.valid_dl, run, learn)
    assert xb.min() >= 100 and xb.shape == (8, 3, 16, 16) and len(yb) == 8
    model_summary(run, learn, data)
    said = capsys.readouterr().out
    assert 'torch.Size([8, 16, 16, 16])' in said and 'torch.Size([8, 4])' in said
    model_summary(run, learn, data, find_all=True)
    assert 'Sequential' not in capsys.readouterr().out
    assert (len(run.cbs), learn.model.training) == (n, mode)
    assert torch.equal(random, torch.get_rng_state())
    run.fit(1, learn)
    assert len(find_modules(learn.model, lambda m: isinstance(m, nn.Conv2d))) == 4


def test_pictures_are_shown(folder):
    import matplotlib.pyplot as plt
    ll = labelled(folder)
    show_image(ll.train[0][0])
    show_image(torch.zeros(1, 4, 4))
    fig = show_batch(ll.to_databunch(2))
    assert {ax.get_title() for ax in fig.axes} <= {'green', 'red', ''}
    assert len(show_batch(torch.rand(5, 3, 4, 4)).axes) == 8
    assert len(show_batch(torch.rand(5, 3, 4, 4), c=3, r=1, figsize=(2, 2)).axes) == 3
    plt.close('all')


# Decoding once

def test_decoded_batches_are_the_same(folder):
    for i, p in enumerate(get_files(folder, '.png', recurse=True)):
        noise = np.random.default_rng(i).integers(0, 255, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).save(p)
    sd = labelled(folder)
    once = sd.decoded()
    assert once.train.x.dtype == torch.uint8 and once.train.x.shape == (8, 3, 8, 8)
    for dl, other in zip((sd.to_databunch(3).valid_dl, sd.to_databunch(3).valid_dl),
                         (once.to_databunch(3).valid_dl,
                          once.to_databunch(3, num_workers=1).valid_dl)):
        for (x, y), (x2, y2) in zip(dl, other):
            assert torch.equal(x, x2) and torch.equal(y, y2) and x2.dtype == torch.float32
    assert torch.equal(once.train[5][0], sd.train[5][0])
    assert once.train.items == sd.train.items and once.proc_y is sd.proc_y
    assert (once.to_databunch(3).c_in, once.to_databunch(3).c_out) == (3, 2)


def test_a_file_of_decoded_pictures(folder, tmp_path, monkeypatch):
    cache = tmp_path/'cache'
    train = labelled(folder).train
    x = decoded(train, cache=cache).x
    assert torch.equal(x, decoded(train).x)
    first, = cache.iterdir()
    monkeypatch.setattr(data_block, '_fill', None)   # the next call only finds the file
    assert torch.equal(x, decoded(train, cache=cache).x)
    monkeypatch.undo()
    changed = decoded(train, cache=cache).x
    changed.zero_()   # changes this process's copy, not the file
    assert torch.equal(x, decoded(train, cache=cache).x)
    # other content, other transforms: another file
    (folder/'train'/'red'/'0.png').write_bytes(picture((1, 2, 3)))
    assert decoded(train, cache=cache).x[4, 2, 0, 0] == 3
    decoded(labelled(folder, [make_rgb, ResizeFixed((4, 9)), to_byte_tensor]).train, cache=cache)
    decoded(labelled(folder, [make_rgb, ResizeFixed(8), to_byte_tensor, ]).train, cache=cache)
    assert len(list(cache.iterdir())) == 3
    first.write_bytes(b'')
    (folder/'train'/'red'/'0.png').write_bytes(picture((255, 0, 0)))
    with pytest.raises(ValueError, match='is damaged: delete it'): decoded(train, cache=cache)


def test_changed_code_inside_a_transform_is_another_file(folder, tmp_path):
    "Also that of a lambda in it, a default, or a value from outside"
    def darker(by): return lambda img: img.point(lambda p: p//by)
    def inner(source):
        names = {}
        exec(f'def tfm(img): return img.point(lambda p: p//{source})', names)
        return names['tfm']
    def decoded_by(tfm):
        tfms = [make_rgb, ResizeFixed(8), tfm, to_byte_tensor]
        decoded(labelled(folder, tfms).train, cache=tmp_path/'cache')
        return len(list((tmp_path/'cache').iterdir()))
    assert [decoded_by(f) for f in (darker(2), darker(2), darker(3))] == [1, 1, 2]
    assert [decoded_by(inner(n)) for n in (2, 3, 2)] == [3, 4, 4]


def test_a_file_is_used_if_memory_is_short(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data_block, 'cache_dir', lambda: tmp_path/'cache')
    decoded(labelled(folder).train)
    assert not (tmp_path/'cache').exists()
    monkeypatch.setattr(data_block, '_memory', lambda: 1000)
    decoded(labelled(folder).train)
    assert len(list((tmp_path/'cache'/'decoded').iterdir())) == 1


def test_a_failed_decoding_leaves_nothing(folder, tmp_path):
    (folder/'train'/'red'/'2.png').write_bytes(b'no picture')
    with pytest.raises(ItemError): decoded(labelled(folder).train, cache=tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())


def test_what_cant_be_decoded_once(folder):
    class Flip(Transform):
        random = True
        def __call__(self, item): return item
    sd = labelled(folder, [Flip(), *TFMS])
    with pytest.raises(ValueError, match=r'Flip\(\) is random'): sd.decoded()
    with pytest.raises(ItemError, match='not bytes'): labelled(folder, [make_rgb]).decoded()


# Archives

def tar_of(path, files, mode='w'):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = b'' if isinstance(content, tarfile.TarInfo) else content
            info.name = name
            if info.isreg(): info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(kind):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, '/etc/passwd'
    return info


@pytest.fixture
def archive(tmp_path, monkeypatch):
    "A small Imagenette: makes its archive, which the module takes for the original"
    monkeypatch.setattr(datasets, 'cache_dir', lambda: tmp_path/'cache')
    monkeypatch.delenv('MINIFASTAI_DATA', raising=False)
    def make(where='packs/imagenette2-160.tar', mode='w', **more):
        files = {f'imagenette2-160/{part}/{name}/ILSVRC2012_{kind}_{i}.JPEG': picture(colour)
                 for part, kind, n in (('train', 'train', 3), ('val', 'val', 2))
                 for name, colour in COLOURS.items() for i in range(n)}
        path = tmp_path/'data'/where
        path.parent.mkdir(parents=True, exist_ok=True)
        tar_of(path, files | more, mode)
        import hashlib
        from dataclasses import replace
        hashes = datasets._ARCHIVES['imagenette'].hashes
        hashes = hashes | {path.name: ('sha256', hashlib.sha256(path.read_bytes()).hexdigest())}
        known = replace(datasets._ARCHIVES['imagenette'], hashes=hashes)
        monkeypatch.setitem(datasets._ARCHIVES, 'imagenette', known)
        monkeypatch.setenv('MINIFASTAI_DATA', str(tmp_path/'data'))
        return path
    return make


def test_an_archive_is_read_where_it_is(archive, tmp_path):
    path = archive()
    assert find_data('imagenette') == path == data_path('imagenette')
    sd = get_imagenette(16)
    assert (len(sd.train), len(sd.valid)) == (6, 4)
    x, y = sd.train[4]
    assert x.shape == (3, 16, 16) and sd.train.y_obj(4) == 'red' and x[0].min() > 0.9
    assert not (tmp_path/'cache').exists()   # nothing was unpacked
    sd = get_imagenette(16, split='course')
    assert (len(sd.train), len(sd.valid)) == (6, 4)
    assert sd.decoded().valid.x.shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match="'folders' or 'course'"): get_imagenette(split='other')
    fn = sd.train.items[0]
    assert (fn.parent.name, fn.parent.parent.name) == ('green', 'train')
    assert str(fn).startswith(str(path)) and pickle.loads(pickle.dumps(fn)) == fn


def test_an_item_of_an_archive_that_cant_be_opened_is_named(archive):
    path = archive(**{'imagenette2-160/train/red/bad.JPEG': b'x'})
    with pytest.raises(ItemError, match=r'imagenette2-160\.tar/.*red/bad\.JPEG can\'t be opened'):
        get_imagenette(16).decoded()
    with pytest.raises(ValueError, match='truncated'):
        fn = archive_files(path)[0]
        path.write_bytes(path.read_bytes()[:520])
        fn.read_bytes()


@pytest.mark.parametrize('where, mode', [('imagenette2-160.tgz', 'w:gz'),
                                         ('packs/imagenette2-160.tar', 'w')])
def test_an_archive_is_unpacked_once(archive, tmp_path, where, mode):
    path = archive(where, mode)
    folder = untar_data(URLs.IMAGENETTE_160)
    assert folder == tmp_path/'cache'/'imagenette2-160'
    assert len(get_files(folder, recurse=True)) == 10
    assert os.listdir(tmp_path/'cache') == ['imagenette2-160']
    assert untar_data(URLs.IMAGENETTE_160) == folder
    assert len(get_imagenette(16).train) == 6
    (tmp_path/'data'/'imagenette2-160').mkdir()   # an unpacked folder comes first
    assert find_data('imagenette') == tmp_path/'data'/'imagenette2-160'
    assert find_data('imagenette', path) == path
    assert find_data('imagenette', tmp_path/'cache') == folder
    assert find_data('imagenette', folder) == folder


def test_an_archive_that_was_changed(archive):
    path = archive()
    path.write_bytes(path.read_bytes() + b'x')
    with pytest.raises(ValueError, match=r"tar isn't Imagenette's archive, or it's damaged"):
        get_imagenette()
    with pytest.raises(ValueError, match="doesn't know what"): untar_data('http://other')
    with pytest.raises(ValueError, match="Did you mean 'imagenette'"): find_data('imagenete')


def test_a_missing_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'cache_dir', lambda: tmp_path/'cache')
    monkeypatch.setenv('MINIFASTAI_DATA', str(tmp_path))
    assert find_data('imagenette') is None
    with pytest.raises(FileNotFoundError, match='Imagenette is not on this machine.*Put image'):
        get_imagenette(download=False)
    with pytest.raises(FileNotFoundError, match='not in .*Put cifar10-jpeg75.tar.xz into'):
        get_cifar10('cifar10_jpeg75', path=tmp_path)


@pytest.mark.parametrize('name, content, said', [
    ('../out', b'x', 'leads out of the folder'),
    ('a/../../out', b'x', 'leads out of the folder'),
    ('/etc/out', b'x', 'leads out of the folder'),
    ('c:\\out', b'x', 'leads out of the folder'),
    ('a/link', special(tarfile.SYMTYPE), 'link or a device'),
    ('a/link', special(tarfile.LNKTYPE), 'link or a device'),
    ('a/dev', special(tarfile.CHRTYPE), 'link or a device'),
    ('a/pipe', special(tarfile.FIFOTYPE), 'link or a device'),
    ('big', bytes(5000), 'more than 9 files'),
], ids=[str(i) for i in range(9)])
def test_what_is_never_unpacked(tmp_path, name, content, said):
    path = tar_of(tmp_path/'a.tar.gz', {'ok': b'1', name: content}, 'w:gz')
    with pytest.raises(ValueError, match=f'a.tar.gz: .*{said}'):
        unpack(path, tmp_path/'new', most_files=9, most_bytes=4000)
    assert os.listdir(tmp_path) == ['a.tar.gz']


def test_more_about_unpacking(tmp_path):
    path = tar_of(tmp_path/'a.tar', {f'{i}': b'1' for i in range(9)})
    with pytest.raises(ValueError, match='more than 8 files'):
        unpack(path, tmp_path/'new', most_files=8)
    assert len(os.listdir(unpack(path, tmp_path/'new'))) == 9
    with pytest.raises(FileExistsError, match='there already'): unpack(path, tmp_path/'new')
    tar_of(tmp_path/'b.tar.gz', {'a': bytes(5000)}, 'w:gz')
    content = (tmp_path/'b.tar.gz').read_bytes()
    for bad in (content[:40], b'no tar', b''):
        (tmp_path/'b.tar.gz').write_bytes(bad)
        with pytest.raises(ValueError, match='b.tar.gz is damaged'):
            unpack(tmp_path/'b.tar.gz', tmp_path/'newer')
    assert not (tmp_path/'newer').exists()
    tar_of(tmp_path/'c.tar.gz', {'a': b'1'}, 'w:gz')
    with pytest.raises(ValueError, match='c.tar.gz is damaged, or'):
        archive_files(tmp_path/'c.tar.gz')


# The lesson's lines, after one import

LESSON = """
from minifastai.all import *
path = datasets.untar_data(datasets.URLs.IMAGENETTE_160)
path.ls()
(path/'val').ls()
path_tench = path/'val'/'red'
img_fn = path_tench.ls()[0]
img = PIL.Image.open(img_fn)
plt.imshow(img)
imga = np.array(img)
' '.join(image_extensions)
setify('aa'), setify(['aa',1]), setify(None), setify(1), setify({1})
get_files(path_tench, image_extensions)[:3]
get_files(path, image_extensions, recurse=True)[:3]
all_fns = get_files(path, image_extensions, recurse=True)
len(all_fns)
il = ImageList.from_files(path, tfms=make_rgb)
il
img = il[0]; img
il[:1]
fn = il.items[0]; fn
fn.parent.parent.name
splitter = partial(grandparent_splitter, valid_name='val')
train,valid = split_by_func(il, splitter)
len(train),len(valid)
sd = SplitData.split_by_func(il, splitter); sd
ll = label_by_func(sd, parent_labeler, proc_y=CategoryProcessor())
assert ll.train.proc_y is ll.valid.proc_y
ll.train.y
ll.train.y.items[0], ll.train.y_obj(0), ll.train.y_obj(slice(2))
ll
ll.train[0]
ll.train[0][0]
ll.train[0][0].resize((128,128))
tfms = [make_rgb, ResizeFixed(128), to_byte_tensor, to_float_tensor]
il = ImageList.from_files(path, tfms=tfms)
sd = SplitData.split_by_func(il, partial(grandparent_splitter, valid_name='val'))
ll = label_by_func(sd, parent_labeler, proc_y=CategoryProcessor())
x,y = ll.train[0]
x.shape
show_image(x)
bs=64
train_dl,valid_dl = get_dls(ll.train,ll.valid,bs, num_workers=4)
x,y = next(iter(train_dl))
x.shape
show_image(x[0])
ll.train.proc_y.vocab[y[0]]
y
data = ll.to_databunch(bs, c_in=3, c_out=10, num_workers=4)
cbfs = [partial(AvgStatsCallback,accuracy),
        CudaCallback]
m,s = x.mean((0,2,3)),x.std((0,2,3))
m,s
_m = tensor([0.47, 0.48, 0.45])
_s = tensor([0.29, 0.28, 0.30])
norm_imagenette = partial(normalize_chan, mean=_m, std=_s)
cbfs.append(partial(BatchTransformXCallback, norm_imagenette))
nfs = [64,64,128,256]
sched = combine_scheds([0.3,0.7], cos_1cycle_anneal(0.1,0.3,0.05))
learn,run = get_learn_run(nfs, data, 0.2, conv_layer, cbs=cbfs+[
    partial(ParamScheduler, 'lr', sched)
])
model_summary(run, learn, data)
model_summary(run, learn, data, find_all=True)
run.fit(1, learn)
"""

OWN_CLASSES = """
from minifastai.all import *
class ImageList(ItemList):
    @classmethod
    def from_files(cls, path, extensions=None, recurse=True, include=None, **kwargs):
        if extensions is None: extensions = image_extensions
        return cls(get_files(path, extensions, recurse=recurse, include=include), path, **kwargs)
    def get(self, fn): return PIL.Image.open(fn)
class Transform(): _order=0
class MakeRGB(Transform):
    def __call__(self, item): return item.convert('RGB')
class ResizeFixed(Transform):
    _order=10
    def __init__(self,size):
        if isinstance(size,int): size=(size,size)
        self.size = size
    def __call__(self, item): return item.resize(self.size, PIL.Image.BILINEAR)
class CategoryProcessor(Processor):
    def __init__(self): self.vocab=None
    def __call__(self, items):
        if self.vocab is None:
            self.vocab = uniqueify(items)
            self.otoi  = {v:k for k,v in enumerate(self.vocab)}
        return [self.proc1(o) for o in items]
    def proc1(self, item):  return self.otoi[item]
    def deprocess(self, idxs):
        assert self.vocab is not None
        return [self.deproc1(idx) for idx in idxs]
    def deproc1(self, idx): return self.vocab[idx]
path = datasets.untar_data(datasets.URLs.IMAGENETTE_160)
tfms = [MakeRGB(), ResizeFixed(16), to_byte_tensor, to_float_tensor]
il = ImageList.from_files(path, tfms=tfms)
sd = SplitData.split_by_func(il, partial(grandparent_splitter, valid_name='val'))
ll = label_by_func(sd, parent_labeler, proc_y=CategoryProcessor())
data = ll.to_databunch(4, c_in=3, c_out=10)
xb, yb = next(iter(data.train_dl))
"""


def test_the_lessons_lines(archive, capsys):
    import matplotlib.pyplot as plt
    archive()
    names = {}
    exec(LESSON, names)
    assert len(names['all_fns']) == 10 and (len(names['train']), len(names['valid'])) == (6, 4)
    said = capsys.readouterr().out
    assert 'torch.Size([4, 16, 128, 128])' in said and 'torch.Size([4, 10])' in said
    assert 'train: ' in said
    plt.close('all')


def test_the_lessons_own_classes_fit_in(archive):
    archive()
    names = {}
    exec(OWN_CLASSES, names)
    assert names['xb'].shape == (4, 3, 16, 16) and names['ll'].train.y_obj(0) == 'green'
    repr(names['ll']), repr(names['data'])


# CIFAR-10, and what stands in for the data sets

class _Evil:
    def __reduce__(self): return os.system, ('echo harm',)


@pytest.fixture
def small_cifar(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, '_CIFAR_SIZES', dict(train=10, test=2))
    rng = np.random.default_rng(0)
    batches = {f'data_batch_{i}': 2 for i in range(1, 6)} | dict(test_batch=2)
    folder = tmp_path/'cifar-10-batches-py'
    folder.mkdir()
    for name, n in batches.items():
        batch = {b'data': rng.integers(0, 256, (n, 3072), dtype=np.uint8), b'labels': [0, 1][:n]}
        (folder/name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_cifar10(small_cifar):
    x, y, x_test, y_test = get_cifar10(path=small_cifar)
    assert x.shape == (10, 3, 32, 32) and x.dtype == torch.uint8
    assert y.tolist() == [0, 1]*5 and y_test.tolist() == [0, 1] and len(x_test) == 2
    (small_cifar/'data_batch_3').unlink()
    with pytest.raises(ValueError, match='has 8 of 10 train images'): get_cifar10(path=small_cifar)


def test_a_pickle_cant_run_code(small_cifar, capfd):
    (small_cifar/'data_batch_2').write_bytes(pickle.dumps({b'data': _Evil(), b'labels': []}))
    with pytest.raises(ValueError, match=r"data_batch_2 isn't a file of CIFAR-10: it wants to load "
                       r"\w+\.system"):
        get_cifar10(path=small_cifar)
    assert 'harm' not in capfd.readouterr().out


def test_stand_ins(tmp_path):
    folder = write_digits(tmp_path/'digits')
    il = ImageList.from_files(folder, tfms=[to_byte_tensor, to_float_tensor])
    ll = label_by_func(SplitData.split_by_func(il, grandparent_splitter), parent_labeler,
                       proc_y=CategoryProcessor())
    assert (len(ll.train), len(ll.valid)) == (1437, 360)
    x, y, x_valid, y_valid = datasets.get_data('digits')
    i = [int(fn.stem) for fn in ll.valid.items].index(7)
    assert torch.allclose(ll.valid[i][0].flatten(), x_valid[7], atol=1/250)
    assert ll.valid.y_obj(i) == str(y_valid[7].item())
    x, y, x_valid, y_valid = get_patches(16, 40)
    assert x.shape == (40, 3, 16, 16) and x.dtype == torch.uint8 and len(x_valid) == 10
    assert torch.equal(x, get_patches(16, 40)[0]) and y.bincount().tolist() == [20, 20]
