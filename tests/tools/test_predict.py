"""tools/predict.py, and tools/test.py with --show-dir and --tta: what they write, and that they build no teacher."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from run_helpers import HOSTS, config, count, distiller, evaluation, scenes

from lckd_mm import cli
from lckd_mm.cli.predict import found, inference
from lckd_mm.config import plain_model
from lckd_mm.evaluation.drawing import original_image
from lckd_mm.hosts import build_model, fabricate_samples, load_config

SOME = count(list(HOSTS), ['mmseg'])


@pytest.fixture
def student(scenes, tmp_path, scope):
    """``student(host, **config)``: the files of a distillation whose teacher is missing, and of a student."""

    def write(host, **extra):
        scope(host)
        torch.manual_seed(2)
        built = build_model(HOSTS[host][0](4), host)
        if host == 'mmseg':  # several classes in an image
            built.decode_head.conv_seg.weight.data.normal_()
            built.backbone.apply(lambda m: m.weight.data.normal_(0, 3) if isinstance(m, torch.nn.BatchNorm2d) else None)
        if host == 'mmdet':  # some boxes with a score that is drawn
            built.bbox_head.retina_cls.bias.data.fill_(-0.5)
        names = [f'name{i}' for i in range(11)]
        palette = [[20 * i, 255 - 20 * i, 128] for i in range(11)]
        if host != 'mmseg':
            names, palette = names[:10], palette[:10]
        meta = dict(dataset_meta=dict(classes=names, palette=palette))
        torch.save(dict(state_dict=built.state_dict(), meta=meta), tmp_path / 'student.pth')
        model = distiller(host, HOSTS[host][0](4), HOSTS[host][0](8), tmp_path / 'nowhere.pth')
        config(host, scenes, tmp_path / 'run', model, **evaluation(host, scenes), **extra).dump(tmp_path / 'kd.py')
        return [str(tmp_path / 'kd.py'), str(tmp_path / 'student.pth')]

    return write


def differs(path, picture):
    """Whether something was drawn into the right part of a file, which shows this picture."""
    drawn = cv2.imread(str(path))[:, -picture.shape[1] :]
    return not np.array_equal(drawn, picture)


@pytest.mark.parametrize('host', SOME)
def test_images_are_predicted_by_the_student_alone(host, student, scenes, tmp_path, capsys):
    files = [str(scenes / 'JPEGImages' / f'{name}.jpg') for name in ('train_000000', 'val_000001')]
    assert cli.run_tool(cli.predict, [*student(host), *files, '--out', str(tmp_path / 'out'), '--debug']) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    for file, line in zip(files, lines):
        picture = tmp_path / 'out' / f'{Path(file).stem}.png'
        assert line.startswith(file) and line.endswith(str(picture)) and 'name' in line
        assert differs(picture, cv2.imread(file))
    if host == 'mmseg':  # the shares of the image's area
        shares = [float(part.split()[1]) for part in lines[0].partition(': ')[2].rpartition(';')[0].split(', ')]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.3)


def test_what_cannot_be_predicted_is_a_sentence(student, tmp_path, capsys):
    (tmp_path / 'broken.jpg').write_text('no image')
    files = student('mmseg')
    assert cli.run_tool(cli.predict, [*files, str(tmp_path / 'broken.jpg'), '--out', str(tmp_path / 'out')]) == 1
    assert "broken.jpg' is no image file that OpenCV reads" in capsys.readouterr().err
    picture = tmp_path / 'own.png'
    cv2.imwrite(str(picture), np.zeros((64, 64, 3), np.uint8))
    before = picture.read_bytes()
    assert cli.run_tool(cli.predict, [*files, str(picture), '--out', str(tmp_path)]) == 1
    assert "own.png' is one of the images; give another folder" in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert cli.run_tool(cli.test, [*files, '--tta']) == 1
    assert '--tta: the config has no tta_model' in capsys.readouterr().err


@pytest.mark.parametrize('channels', [3, 1])
def test_an_image_becomes_one_of_a_data_set_without_files(channels, scope, tmp_path):
    scope('mmpretrain')
    torch.manual_seed(2)
    net = HOSTS['mmpretrain'][0](4)
    net['backbone']['in_channels'] = channels
    mean, std = [120.0, 110.0, 100.0][:channels], [60.0, 50.0, 70.0][:channels]
    net['data_preprocessor'] = dict(type='ClsDataPreprocessor', mean=mean, std=std, to_rgb=False)
    model = build_model(net, 'mmpretrain').eval()
    data = dict(type='CIFAR10', pipeline=[dict(type='PackInputs')])
    together = dict(type='ConcatDataset', datasets=[data, data])
    loaders = dict(train_dataloader=dict(dataset=data), test_dataloader=dict(dataset=together))
    file = str(tmp_path / 'colours.png')
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8).repeat(32, 0).repeat(32, 1)
    cv2.imwrite(file, picture)
    predicted = inference(model, Config(dict(model=net, **loaders)))(file)
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    held = small[..., ::-1] if channels == 3 else cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)[..., None]
    with torch.no_grad():
        expected = model.test_step(dict(inputs=[torch.from_numpy(held.copy()).permute(2, 0, 1)]))[0]
    # The grey of a mean is not quite the mean of greys.
    torch.testing.assert_close(predicted.pred_score, expected.pred_score, atol=1e-2 if channels == 1 else 1e-5, rtol=0)


def test_a_grey_image_is_loaded_as_the_test_pipeline_loads_it(scope, tmp_path):
    scope('mmpretrain')
    torch.manual_seed(2)
    net = HOSTS['mmpretrain'][0](4)
    net['backbone']['in_channels'] = 1
    net['data_preprocessor'] = dict(type='ClsDataPreprocessor', mean=[120.0], std=[60.0], to_rgb=False)
    model = build_model(net, 'mmpretrain').eval()
    pipeline = [dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='PackInputs')]
    data = dict(type='CustomDataset', pipeline=pipeline)
    loaders = dict(train_dataloader=dict(dataset=data), test_dataloader=dict(dataset=data))
    file = str(tmp_path / 'grey.png')
    cv2.imwrite(file, np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8))
    predicted = inference(model, Config(dict(model=net, **loaders)))(file)
    with torch.no_grad():
        image = torch.from_numpy(cv2.imread(file, cv2.IMREAD_GRAYSCALE))[None]
        expected = model.test_step(dict(inputs=[image]))[0]
    torch.testing.assert_close(predicted.pred_score, expected.pred_score)


def test_a_line_names_the_five_highest_scores_of_a_class():
    boxes = InstanceData(labels=torch.tensor([0] * 6 + [1]), scores=torch.tensor([0.4, 0.9, 0.8, 0.7, 0.6, 0.5, 0.9]))
    expected = '6 cat (0.90, 0.80, 0.70, 0.60, 0.50, …), 1 dog (0.90)'
    assert found(DetDataSample(pred_instances=boxes), ['cat', 'dog']) == expected


def test_an_image_without_a_file_is_rgb():
    image = torch.randint(0, 256, (3, 5, 4)).byte()
    assert np.array_equal(original_image(DataSample(), image), image.permute(1, 2, 0))
    unread = DataSample(metainfo=dict(img_path='nowhere.png'))
    assert np.array_equal(original_image(unread, image), image.flip(0).permute(1, 2, 0))


@pytest.mark.full
@pytest.mark.parametrize('host', HOSTS)
def test_pictures_of_a_test_show_truth_and_prediction(host, student, scenes, tmp_path):
    options = ['--work-dir', str(tmp_path / 'run'), '--show-dir', str(tmp_path / 'out'), '--debug']
    assert cli.run_tool(cli.test, [*student(host), *options]) == 0
    pictures = sorted((tmp_path / 'out').iterdir())
    assert [path.name for path in pictures] == [f'train_{i:06d}.png' for i in range(16)]
    image = cv2.imread(str(scenes / 'JPEGImages' / 'train_000000.jpg'))
    if host != 'mmpretrain':
        assert cv2.imread(str(pictures[0])).shape[1] == 2 * image.shape[1]
        assert differs(pictures[0], image)


@pytest.mark.parametrize('host', SOME)
def test_tta_merges_the_image_and_its_mirror(host, student, scenes, tmp_path):
    extra = {}
    if host == 'mmseg':
        flips = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
        views = [flips, [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]]
        pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)]
        extra = dict(tta_model=dict(type='SegTTAModel'), tta_pipeline=pipeline)
    files = student(host, **extra)
    argv = [*files, '--work-dir', str(tmp_path / 'run'), '--dump', str(tmp_path / 'tta.pkl'), '--tta', '--debug']
    # More images in a batch than views.
    argv += ['--cfg-options', 'test_dataloader.batch_size=4']
    argv += ['test_dataloader.collate_fn.type=default_collate'] if host == 'mmpretrain' else []
    assert cli.run_tool(cli.test, [*argv, '--show-dir', str(tmp_path / 'out')]) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {f'train_{i:06d}.png' for i in range(16)}
    merged = pickle.loads((tmp_path / 'tta.pkl').read_bytes())
    assert len(merged) == 16
    model = plain_model(load_config(files[0])).eval()
    model.load_state_dict(torch.load(files[1], weights_only=False)['state_dict'])
    image = torch.from_numpy(cv2.imread(str(scenes / 'JPEGImages' / 'train_000000.jpg'))).permute(2, 0, 1)

    def predicted(image):
        with torch.no_grad():
            return model.test_step(dict(inputs=[image], data_samples=fabricate_samples(model, 1, (64, 64))))[0]

    views = [predicted(image), predicted(image.flip(2))]
    if host == 'mmseg':
        scores = [view.seg_logits.data.softmax(0) for view in views]
        expected = (scores[0] + scores[1].flip(2)).argmax(0)
        assert torch.equal(merged[0]['pred_sem_seg']['data'].squeeze(0), expected)
        assert not torch.equal(views[0].pred_sem_seg.data[0], expected)
    elif host == 'mmpretrain':
        torch.testing.assert_close(merged[0]['pred_score'], sum(view.pred_score for view in views) / 2)
    else:
        highest = max(view.pred_instances.scores.max() for view in views)
        torch.testing.assert_close(merged[0]['pred_instances']['scores'].max(), highest)
