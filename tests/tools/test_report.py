"""tools/analysis/report.py on real runs of the three hosts; the page is looked at by a real browser."""

import base64
import functools
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from run_helpers import CLASSES, HOSTS, ROOT, config, detection_data, distiller, run, scenes, validation

from lckd_mm.cli import run_tool
from lckd_mm.reporting.page import embedded

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(ROOT / 'tools/analysis/report.py'))['main']


@pytest.fixture(autouse=True)
def _no_scope():
    yield
    DefaultScope._instance_dict.clear()


def evaluated(host, root):
    """The validation's part of a config, of images that stay as they are."""
    if host == 'mmseg':
        extra = validation(root)
        extra['val_dataloader']['dataset']['metainfo']['palette'] = [[0, 0, 0]] + [[250, 0, 250]] * 10
        pipeline = extra['val_dataloader']['dataset']['pipeline']
        pipeline[:] = [step for step in pipeline if step['type'] != 'PhotoMetricDistortion']
        return extra
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    if host == 'mmdet':
        data = detection_data(root, 'val')
        data.update(test_mode=True, pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ])  # fmt: skip
        evaluator = dict(type='VOCMetric', metric='mAP')
    else:
        data = dict(HOSTS[host][1](root, 'val'), pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
        evaluator = dict(type='Accuracy', topk=(1,))
    loader['dataset'] = data
    return dict(val_dataloader=loader, val_cfg=dict(type='ValLoop'), val_evaluator=evaluator)


def train(host, root, folder, model, seed, iters=4, **more):
    """A run as tools/train.py makes one: its config is a file, and its work_dir holds all it leaves."""
    cfg = config(host, root, folder, model, iters=iters, **evaluated(host, root), **more)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval = iters // 2
    # Slowly, so that after so few steps a segmentor predicts more than the background.
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.002, momentum=0.9)
    if host == 'mmdet':
        # What is validated is what is trained on, so that something is found after so few steps.
        cfg.train_dataloader.dataset.ann_file = 'ImageSets/Main/val.txt'
        cfg.train_dataloader.batch_size = 4
        cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.002)
    cfg.randomness.seed = seed
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    file = Path(folder).parent / f'{Path(folder).name}_{host}.py'
    file.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(file)
    return run(Config.fromfile(file))


@pytest.fixture(scope='module')
def trees(scenes, tmp_path_factory):
    """A host's teacher, its student alone, and distilled, under each seed; made when it is first asked for."""

    @functools.cache
    def tree(host):
        kind, folder, iters = HOSTS[host][0], tmp_path_factory.mktemp(host) / 'work', 150 if host == 'mmdet' else 4
        for seed in (0, 1) if host == 'mmseg' else (0,):
            here = folder / f'seed{seed}'
            train(host, scenes, here / 'teacher', kind(8), seed, iters)
            train(host, scenes, here / 'alone', kind(4), seed, iters)
            model = distiller(host, kind(4), kind(8), here / f'teacher/iter_{iters}.pth')
            monitor = [dict(type='lckd_mm.LipschitzMonitorHook', interval=1)]
            train(host, scenes, here / 'lckd', dict(model, dry_run_size=64), seed, iters, custom_hooks=monitor)
        return folder

    return tree


class Page(HTMLParser):
    """What a page shows: its text, its pictures with their titles, every address in it."""

    def __init__(self, file):
        super().__init__()
        self.source = file.read_text(encoding='utf-8')
        self.images, self.addresses, self.words = [], [], []
        self.feed(self.source)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[k] for k in ('src', 'srcset', 'href', 'data', 'action', 'poster') if k in given]
        if tag == 'img':
            self.images.append(given)

    def handle_data(self, data):
        self.words.append(data)


def written(tool, roots, tmp_path, *more):
    out = tmp_path / 'report.html'
    assert run_tool(tool, [*map(str, roots), '--out', str(out), '--device', 'cpu', *map(str, more)]) == 0
    return Page(out), json.loads((tmp_path / 'report_files/figures.json').read_text())


@pytest.fixture(scope='module')
def report(tool, trees, tmp_path_factory):
    """The page of the segmentations' tree, what it shows, and its figures."""
    folder = tmp_path_factory.mktemp('report')
    page, figures = written(tool, [trees('mmseg')], folder, '--rows', 2)
    return folder / 'report.html', page, figures


def logged(folder, metric):
    """A metric's last value in the log, and the median time of a step in milliseconds."""
    (file,) = folder.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    times = [entry['time'] for entry in entries if 'loss' in entry]
    return [entry[metric] for entry in entries if metric in entry][-1], 1e3 * statistics.median(times)


def test_the_table_says_what_the_runs_logged(report, trees):
    tree, (_, page, figures) = trees('mmseg'), report
    rows = {row['title']: row for row in figures['table']}
    assert [(row['title'], row['role']) for row in figures['table']] == [
        ('teacher', 'teacher'), ('alone', 'alone'), ('lckd', 'distilled')
    ]  # fmt: skip
    last = {}
    for name, row in rows.items():
        last[name], times = zip(*(logged(tree / f'seed{seed}' / name, 'mIoU') for seed in (0, 1)))
        assert row['values'] == pytest.approx(last[name])
        mean, deviation = statistics.mean(last[name]), statistics.stdev(last[name])
        assert f'{mean:.2f} ± {deviation:.2f}' == row['metric_text']
        assert row['metric_text'] in page.text
        assert row['step_ms'] == pytest.approx(times)
        sizes = [(tree / f'seed{seed}' / name / 'iter_4.pth').stat().st_size for seed in (0, 1)]
        assert row['checkpoint_bytes'] == sizes
    assert rows['lckd']['gain'] == pytest.approx(statistics.mean(np.subtract(last['lckd'], last['alone'])))
    # The distilled student's file holds the student alone; what it costs is the same.
    for key in ('parameters', 'flops', 'weight_bytes', 'size'):
        assert rows['lckd'][key] == rows['alone'][key]
    assert rows['lckd']['size'] == [64, 64]
    assert rows['teacher']['parameters'] > 3 * rows['alone']['parameters']
    assert f'{rows["alone"]["parameters"]:,}' in page.text


def test_everything_is_in_the_page_and_nothing_is_fetched(report):
    file, page, _ = report
    assert all(a.startswith(('data:image/png;base64,', '#')) for a in page.addresses)
    assert not re.search(r'https?:|url\(|@import|<script|<link', page.source)
    assert {a[1:] for a in page.addresses if a.startswith('#')} <= set(re.findall(r'id="([^"]+)"', page.source))
    beside = {file.stem: file.read_bytes() for file in file.with_name('report_files').glob('*.png')}
    assert sorted(beside) == CHARTS
    assert set(beside.values()) <= {base64.b64decode(a.partition(',')[2]) for a in page.addresses if 'base64' in a}
    assert all(image['alt'] for image in page.images)
    assert 'Validated only once' not in page.text


def test_pictures_of_segmentations(report):
    _, page, figures = report
    (pictures,) = figures['pictures'].values()
    assert pictures['reference'] == 'student alone' and pictures['images'] == pictures['of'] == 4
    assert set(pictures['means']) == {'teacher', 'student alone', 'student distilled'}
    check_lists(pictures, 2)
    for title in ('Worst regressions', 'Best improvements', 'input', 'truth', 'teacher', 'student distilled'):
        assert title in page.text
    assert re.search(
        r'background: rgb\(250, 0, 250\)"></i>(zero|one|two|three|four|five|six|seven|eight|nine)<', page.source
    )
    rows = len(pictures['regressions']) + len(pictures['improvements'])
    panels = [image for image in page.images if ' of val_' in image['alt']]
    assert len(panels) == 5 * rows > 0
    for labelled in (decoded(image['src']) for image in panels if not image['alt'].startswith('input')):
        # The digits have the palette's colour to the bit; the rest is the image in pale grey.
        digits = (labelled == (250, 0, 250)).all(-1)
        assert ((labelled == labelled[..., :1]).all(-1) & (labelled >= 178).all(-1))[~digits].all()


def decoded(address):
    data = np.frombuffer(base64.b64decode(address.partition(',')[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def check_lists(pictures, rows):
    """Each list is sorted, the worst or the best first, and says what changed."""
    down, up = ([row['change'] for row in pictures[name]] for name in ('regressions', 'improvements'))
    assert down == sorted(down) and up == sorted(up, reverse=True)
    assert all(change < 0 for change in down) and all(change > 0 for change in up)
    assert len(down) == min(rows, pictures['worse']) and len(up) == min(rows, pictures['better'])
    for row in pictures['regressions'] + pictures['improvements']:
        scores = row['scores']
        assert row['change'] == pytest.approx(scores['student distilled'] - scores['student alone'])


def test_boxes_of_the_truth(tool, scenes, tmp_path):
    train('mmdet', scenes, tmp_path / 'alone', HOSTS['mmdet'][0](4), 0)
    page, figures = written(tool, [tmp_path / 'alone'], tmp_path, '--rows', 2)
    assert figures['pictures']['alone']['reference'] is None
    assert 'F1 = 2 TP / (2 TP + FP + FN)' in page.text
    by_name = {image['alt']: decoded(image['src']) for image in page.images if ' of val_' in image['alt']}
    truths = [name for name in by_name if name.startswith('truth')]
    assert len(truths) >= 2
    for name in truths:
        plain = by_name[name.replace('truth', 'input')]
        assert 0.005 < (by_name[name] != plain).any(-1).mean() < 0.5


@pytest.mark.full
def test_pictures_of_detections(tool, trees, tmp_path):
    page, figures = written(tool, [trees('mmdet')], tmp_path)
    (pictures,) = figures['pictures'].values()
    check_lists(pictures, 4)
    assert pictures['better'] + pictures['worse'] > 0
    # Trained on these very images, the larger net finds most of what is in them.
    assert pictures['means']['teacher'] > 0.4
    shown = pictures['regressions'] + pictures['improvements']
    assert sum(image['alt'].startswith('teacher of val_') for image in page.images) == len(shown)


def test_the_images_on_which_classifiers_differ(tool, trees, tmp_path):
    tree = trees('mmpretrain')
    page, figures = written(tool, [tree], tmp_path)
    (pictures,) = figures['pictures'].values()
    alone, lckd = (logged(tree / 'seed0' / name, 'accuracy/top1')[0] for name in ('alone', 'lckd'))
    # Who is right where the other is wrong makes up the difference of the accuracies, which the host has counted.
    gained = (lckd - alone) / 100 * pictures['images']
    assert pictures['better'] - pictures['worse'] == pytest.approx(gained)
    assert len(pictures['regressions']) == min(4, pictures['worse'])
    assert 'probability of the true class' in page.text


def test_a_single_run_says_what_is_missing(tool, trees, tmp_path):
    page, figures = written(tool, [trees('mmseg') / 'seed0/alone'], tmp_path, '--rows', 1)
    assert [row['title'] for row in figures['table']] == ['alone']
    assert logging.root.manager.disable == 0  # the log is quiet while the tool works, and no longer
    assert 'One seed of each config' in page.text and 'No σ' not in page.text
    # Without anything to hold it against, its best and its worst images.
    assert 'Lowest scores' in page.text and 'Highest scores' in page.text
    assert 'id="sigma"' not in page.source and 'Lipschitz constants' not in page.text


def test_a_lipschitz_term_without_a_monitor_is_named(tool, trees, tmp_path):
    run = shutil.copytree(trees('mmseg') / 'seed0/lckd', tmp_path / 'lckd')
    for file in run.glob('*/vis_data/scalars.json'):
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{k: v for k, v in entry.items() if not k.startswith('sigma')} for entry in entries]
        assert kept != entries
        file.write_text(''.join(json.dumps(entry) + '\n' for entry in kept))
    page, _ = written(tool, [run], tmp_path, '--rows', 1)
    assert 'No σ is logged by lckd' in page.text and 'LipschitzMonitorHook' in page.text


def test_the_teachers_run_is_found_where_its_checkpoint_lies(tool, trees, tmp_path):
    page, figures = written(tool, [trees('mmseg') / 'seed0/lckd'], tmp_path)
    assert [(row['title'], row['role']) for row in figures['table']] == [('teacher', 'teacher'), ('lckd', 'distilled')]
    assert 'no run of its student alone' in page.text and 'no run of its teacher' not in page.text
    (pictures,) = figures['pictures'].values()
    assert pictures['reference'] == 'teacher'


def test_half_a_run_and_a_moved_teacher(tool, trees, tmp_path):
    tree = tmp_path / '<b>moved</b>'
    shutil.copytree(trees('mmseg'), tree)
    for file in tree.rglob('*.py'):
        if 'lckd' in str(file):
            file.write_text(file.read_text().replace(str(trees('mmseg')), '/nowhere'))
    # Seed 1 was killed in the midst of writing its third line; its checkpoint is there, its last words are not.
    (scalars,) = (tree / 'seed1/lckd').glob('*/vis_data/scalars.json')
    lines = scalars.read_text().splitlines()
    scalars.write_text('\n'.join([*lines[:2], lines[2][:40]]))
    (tree / 'seed1/lckd/last_checkpoint').write_text(str(tree / 'seed1/lckd/iter_2.pth'))
    page, figures = written(tool, [tree], tmp_path)
    assert 'unfinished, 2 of 4 iterations' in page.text
    (lckd,) = (row for row in figures['table'] if row['role'] == 'distilled')
    assert lckd['status'] == '1 of 2 finished' and lckd['seeds'] == [0]
    assert 'The teacher at /nowhere' in page.text
    assert 'teacher' in next(iter(figures['pictures'].values()))['means']
    # A folder's name is text, whatever is in it.
    assert '<b>moved' not in page.source and '<b>moved</b>' in page.text


def test_what_cannot_be_drawn_is_said_and_the_page_stands(tool, trees, tmp_path):
    tree = tmp_path / 'tree'
    shutil.copytree(trees('mmseg') / 'seed0', tree)
    for file in tree.rglob('*.py'):
        file.write_text(re.sub(r"data_root='[^']*'", "data_root='/nowhere'", file.read_text()))
    (tree / 'alone/iter_4.pth').write_bytes(b'damaged')
    page, figures = written(tool, [tree], tmp_path)
    assert "Pictures of lckd: val_dataloader: no data at '/nowhere" in page.text
    assert figures['pictures'] == {} and len(figures['table']) == 3


def test_mistakes_are_sentences(tool, trees, tmp_path, capsys):
    tree = str(trees('mmseg') / 'seed0')
    out = ['--out', str(tmp_path / 'r.html')]
    for arguments, says in (
        ([str(tmp_path / 'none'), *out], f'{tmp_path}/none'),
        ([str(tmp_path), *out], f'{str(tmp_path)!r} holds no run'),
        ([tree, '--out', str(tmp_path / 'r.pdf')], 'r.pdf'),
        ([tree, *out, '--images', '-1'], '--images'),
        ([tree, *out, '--rows', '0'], '--rows'),
        ([tree, *out, '--methods', 'kd'], "'kd'"),
    ):
        assert run_tool(tool, arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and says in error and 'Traceback' not in error
    assert not (tmp_path / 'r.html').exists()


def test_results_of_an_older_demo_are_named_with_the_way_out(tmp_path):
    demo = runpy.run_path(str(ROOT / 'tools/demo.py'))
    (tmp_path / 'seed3').mkdir()
    (tmp_path / 'seed3/results.json').write_text('{"teacher": {"mIoU": 50.0}}')
    with pytest.raises(ValueError, match=f'{tmp_path}/seed3/results.json: .* --seed 3 --work-dir {tmp_path}'):
        demo['summary'](demo['TASKS']['segmentation'], [tmp_path])


@pytest.fixture
def browser(tmp_path):
    """``browser(arguments)``: a headless browser's output, with nothing to reach on any network."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f'no {", ".join(BROWSERS)}: apt-get install chromium')

    def call(*arguments):
        command = [program, '--headless', '--disable-gpu', '--hide-scrollbars', f'--user-data-dir={tmp_path}/profile',
                   '--host-resolver-rules=MAP * ~NOTFOUND', '--force-device-scale-factor=1']  # fmt: skip
        if os.geteuid() == 0:
            command.append('--no-sandbox')
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return call


# What the browser has made of each picture, and where it is.
MEASURE = """<pre id="measured"></pre><script>addEventListener('load', () => {
  const boxes = [...document.images].map(i => { const b = i.getBoundingClientRect(), figure = i.closest('figure');
    return [figure ? figure.id : i.alt, i.naturalWidth, [b.left, b.top, b.right, b.bottom].map(Math.round)]; });
  document.getElementById('measured').textContent = JSON.stringify([document.documentElement.scrollHeight, boxes]);
});</script>"""
CHARTS = ['losses-alone', 'losses-lckd', 'losses-teacher', 'sigma', 'validation-mIoU']


def charts_seen(browser, page, tmp_path):
    """The charts of a page; every picture of it has loaded, and is no single colour in the browser's screenshot."""
    measured = tmp_path / 'measured.html'
    measured.write_text(page.read_text(encoding='utf-8').replace('</body>', MEASURE + '</body>'), encoding='utf-8')
    dom = browser('--window-size=1280,2000', '--virtual-time-budget=5000', '--dump-dom', measured.as_uri())
    height, boxes = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', dom)[1].replace('&amp;', '&'))
    browser(f'--window-size=1280,{height}', f'--screenshot={tmp_path / "shot.png"}', page.as_uri())
    shot = cv2.imread(str(tmp_path / 'shot.png'))
    for name, width, (left, top, right, bottom) in boxes:
        assert width > 0, name
        assert shot[top:bottom, left:right].reshape(-1, 3).std(0).max() > 1, name
    return sorted(name for name, _, _ in boxes if name.startswith(('losses', 'sigma', 'validation')))


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_a_browser_shows_every_plot(report, browser, tmp_path):
    page = report[0]
    assert charts_seen(browser, page, tmp_path) == CHARTS
    damaged = tmp_path / 'damaged.html'
    chart = embedded(page.with_name('report_files') / 'sigma.png')
    damaged.write_text(page.read_text(encoding='utf-8').replace(chart, chart[:400]), encoding='utf-8')
    with pytest.raises(AssertionError, match='sigma'):
        charts_seen(browser, damaged, tmp_path)


@pytest.mark.full
@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_from_a_clone_to_the_report_of_ones_own_run(browser, tmp_path):
    """The README's path, shortened by the knobs that it has: make demo, then the report."""
    assert re.search(r'^make demo\b', (ROOT / 'README.md').read_text(), re.M)
    clone = tmp_path / 'clone'
    hidden = shutil.ignore_patterns('.venv*', '.git', 'data', 'work_dirs', '__pycache__', '.*_cache')
    left = lambda folder, names: hidden(folder, names) if Path(folder) == ROOT else []  # noqa: E731
    shutil.copytree(ROOT, clone, symlinks=True, ignore=left)
    options = 'train_cfg.max_iters=20 train_cfg.val_interval=10 param_scheduler.0.total_steps=20'
    # What make would run after its installation, which is this environment.
    dry = subprocess.run(
        ['make', '-n', 'demo', f'DEMO_ARGS=--cfg-options {options}'], cwd=clone, capture_output=True, text=True
    )
    demo = shlex.split(next(line for line in dry.stdout.splitlines() if 'tools/demo.py' in line))
    env = {**os.environ, 'PYTHONPATH': str(clone)}
    done = subprocess.run([sys.executable, *demo[1:]], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'report: work_dirs/demo/report.html' in done.stdout
    page = clone / 'work_dirs/demo/report.html'
    assert len(charts_seen(browser, page, tmp_path)) == 7
    first = Page(page)
    assert all(word in first.text for word in ('kd against the student alone', 'lckd against the student alone'))
    again = [sys.executable, '-W', 'ignore', 'tools/analysis/report.py', 'work_dirs/demo', '--out', 'mine.html']
    done = subprocess.run(again, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == 'report: mine.html'
    assert len(Page(clone / 'mine.html').images) == len(first.images)
