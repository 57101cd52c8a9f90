"""Malformed distillation configs: each ends in a sentence of ours that names the mistake, or trains one step."""

import pytest
import torch
from fuzz_helpers import CONV, VALUES, Case, apply, config, fuzz, mutations, names_in, one_step, paths_of, small
from hypothesis import strategies as st
from run_helpers import HOSTS

from lckd_mm.hosts import build_model

KD = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5)
LIPSCHITZ = dict(loss=dict(type='lckd_mm.LipschitzLoss', gap='log'), on=['low', 'high'], weight=1.0, connector=CONV)
SHARED = dict(loss=dict(type='lckd_mm.ATLoss'), student=['low'], teacher=['low'], connector='loss_lipschitz')

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Of each host's teacher, and of one with another number of classes, and a file that is none."""
    folder = tmp_path_factory.mktemp('teachers')
    for host in HOSTS:
        saved(small(host, 4), folder / f'{host}.pth', host)
    (folder / 'broken.pth').write_bytes(b'no checkpoint')
    return folder


def saved(model, path, host='mmpretrain'):
    """The path of a checkpoint of a model with random weights."""
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(model, host).state_dict()), path)
    return str(path)


@pytest.fixture
def judged(checkpoints):
    """Fuzz a config of a host by a strategy of mutations."""

    def go(theme, base, strategy, host='mmpretrain', names=names_in):
        def run(case):
            arguments = apply(base, case)
            return None if arguments is None else lambda: one_step(arguments, host)

        one_step(apply(base, ()), host)  # the config itself is sound
        fuzz(theme, strategy, run, lambda case: names(base, case))

    return go


# ---- taps

MODULES = (
    'backbone.layer1', 'backbone.layer2', 'backbone.layer1.0', 'backbone.layer1.1', 'backbone.layer1.2', 'backbone',
    'backbone.twice', 'backbone.pair', 'backbone.named', 'backbone.unused', 'backbone.frozen', 'backbone.linear',
    'backbone.tokens', 'backbone.vector', 'neck', 'neck.gap', 'head', 'head.fc', 'head.loss_module',
    'data_preprocessor',
)  # fmt: skip
WRONG = (
    '', '.', 'backbone.', '.backbone', 'backbone..layer1', 'backbone.layer3', 'backbon.layer1', 'Backbone.layer1',
    'backbone/layer1', 'backbone layer1', 'backbone.layer1\n', 'student.backbone.layer1', 'zzz', '*', 'backbone.*',
    'backbone.layer1.7', 'é.ü', 'head.fc.weight', 'backbone.layer1.-1',
)  # fmt: skip


def addresses():
    made = st.builds(
        lambda path, item, port, call: f'{path}{item}{port}{call}',
        st.sampled_from(MODULES) | st.sampled_from(MODULES + WRONG),
        st.sampled_from(('', '', '', '[0]', '[1]', '[-1]', '[9]', '[-9]', '[]', '[0', '0]', '[x]', '[1.5]')),
        st.sampled_from(('', '', '', '@in', '@preact', '@out', '@', '@IN', '@in@in', ' @in')),
        st.sampled_from(('', '', '', '#0', '#1', '#-1', '#-2', '#7', '#-7', '#*', '#', '#**', '#x', '#1#2')),
    )  # fmt: skip
    return made | st.text(alphabet='ab1._[]@#-*in ', max_size=12) | st.sampled_from(VALUES)


def test_addresses(judged, checkpoints):
    own = dict(loss_odd=dict(loss=dict(type='lckd_mm.RKDLoss'), on='odd'))  # of features of any shape
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', own, odd='head.fc')
    base['student_taps'] = dict(odd='head.fc')
    paths = [('taps', 'odd'), ('student_taps', 'odd')]
    strategy = st.builds(lambda path, value: Case([(path, 'replace', value)]), st.sampled_from(paths), addresses())
    judged('addresses', base, strategy, names=lambda _, case: ['odd', repr(case[0][2])])


def test_tap_names_and_kinds_of_taps(judged, checkpoints):
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', dict(loss_lipschitz=LIPSCHITZ, loss_kd=KD))
    base['taps'] = ['backbone', base['taps']]
    base['student_taps'], base['teacher_taps'] = dict(low='backbone.layer1@preact'), [dict(logits='head.fc')]
    base['student']['backbone'] = base['teacher']['model']['backbone'] = dict(type='lckd_mm.CifarResNet', depth=8)
    for net in (base['student'], base['teacher']['model']):
        net['head']['in_channels'] = 64
    base['teacher']['checkpoint'] = saved(base['teacher']['model'], checkpoints / 'cifar.pth')
    paths = [p for p in paths_of(base) if p[0] in ('taps', 'student_taps', 'teacher_taps')]
    values = (*VALUES, 'backbone', ['backbone'], 'stages', *({name: 'head.fc'} for name in (1, None, '', 'a.b')))
    judged('tap names and kinds of taps', base, mutations(base, paths, values))


# ---- terms


def test_terms(judged, checkpoints):
    terms = dict(loss_lipschitz=LIPSCHITZ, loss_kd=KD, loss_at=SHARED)
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', terms)
    values = (
        *VALUES, 'low', 'high', 'logits', ['low'], ['low', 'low'], ['high', 'low'], ['low', 'high', 'logits'],
        'loss_kd', 'loss_at', ['low', 'zzz'], {'loss_a.b': KD}, {'loss_': KD}, {1: KD}, {None: KD}, {'kd': KD}, [KD],
    )  # fmt: skip
    judged('terms', base, mutations(base, [p for p in paths_of(base) if p[0] == 'terms'], values))


TERMS = dict(
    kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0, activation='softmax', num_classes=10, ignore_index=255),
            on='logits'),
    dkd=dict(loss=dict(type='lckd_mm.DKDLoss', tau=4.0, alpha=1.0, beta=8.0, ignore_index=255, standardise=True),
             on='logits'),
    wsld=dict(loss=dict(type='lckd_mm.WSLDLoss', tau=2.0, ignore_index=255), on='logits'),
    dist=dict(loss=dict(type='lckd_mm.DISTLoss', beta=1.0, gamma=1.0, tau=1.0, ignore_index=255), on='logits'),
    vid=dict(loss=dict(type='lckd_mm.VIDLoss', channels=[4, 8], student_channels=[2, 4], variance=5.0),
             on=['low', 'high']),
    review=dict(loss=dict(type='lckd_mm.ReviewKDLoss', channels=[4, 8], student_channels=[2, 4], width=512),
                on=['low', 'high']),
    crd=dict(
        loss=dict(type='lckd_mm.CRDLoss', samples=8, channels=[8], student_channels=[4], dim=4, negatives=2, tau=0.07,
                  momentum=0.5),
        on='high',
    ),
    lipschitz=dict(
        loss=dict(type='lckd_mm.LipschitzLoss', gap='log', layer_weights=[1.0], raw_back=False, normalise=False),
        on=['low', 'high'], connector=dict(type='lckd_mm.ConvBN', in_channels=[2, 4], out_channels=[4, 8]),
    ),
    ofd=dict(
        loss=dict(type='lckd_mm.OFDLoss', layer_weights=[0.5, 1.0]), on=['low', 'high'], connector=CONV,
        teacher_connector=dict(type='lckd_mm.MarginReLU', in_channels=[4, 8], margin='bn', batches=16),
    ),
    ab=dict(loss=dict(type='lckd_mm.ABLoss', margin=1.0, layer_weights=[1.0]), on=['low'], connector=CONV),
    fitnets=dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='high', connector=dict(CONV, in_channels=4, out_channels=8)),
    at=dict(loss=dict(type='lckd_mm.ATLoss'), on='low'),
    fsp=dict(loss=dict(type='lckd_mm.FSPLoss'), on=['low', 'high'], connector=CONV),
    afd=dict(loss=dict(type='lckd_mm.AFDLoss', channels=[8], reduction=4), on=['high'], connector=CONV),
    cwd=dict(loss=dict(type='lckd_mm.CWDLoss', tau=4.0), on='high', connector=CONV),
    ft=dict(
        loss=dict(type='lckd_mm.FTLoss'), on='high',
        connector=dict(type='lckd_mm.Translator', in_channels=4, out_channels=8, rate=1.0),
    ),
    explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss'), form='saturating', bound=1.0),
        on='high',
        connector=[
            dict(type='lckd_mm.ChannelPart', in_channels=4, part='explore'),
            dict(type='lckd_mm.FactorEncoder', in_channels=2, out_channels=8, rate=1.0),
        ],
    ),
    autoencoder=dict(
        loss=dict(type='lckd_mm.ReconstructionLoss'), on='high',
        teacher_connector=dict(type='lckd_mm.AutoEncoder', rate=0.5, mode='l1', batches=5, lr=1e-3, online=True),
    ),
    rkd=dict(loss=dict(type='lckd_mm.RKDLoss', distance_weight=25.0, angle_weight=50.0), on='high'),
    jacobian=dict(loss=dict(type='lckd_mm.JacobianLoss', mode='difference', sigma=0.1), on='logits'),
    gradient=dict(loss=dict(type='lckd_mm.JacobianLoss', mode='gradient', sigma=0.1), on='logits'),
)  # fmt: skip


def test_losses_and_connectors(judged, checkpoints):
    terms = {f'loss_{name}': term for name, term in TERMS.items()}
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', terms)
    paths = [
        p
        for p in paths_of(base)
        if len(p) > 3 and p[0] == 'terms' and p[2] in ('loss', 'connector', 'teacher_connector')
    ]
    types = ('lckd_mm.ConvBN', 'lckd_mm.RKDLoss', 'ConvBN', 'ReLU', 'mmpretrain.CrossEntropyLoss')
    values = (*VALUES, 'sigmoid', 'absolute', 'noise', 'data', *types)

    def run(case):
        arguments = apply(base, case)
        if arguments is None:
            return None
        name = case[0][0][1]
        arguments['terms'] = {name: arguments['terms'][name]}
        return lambda: one_step(arguments, 'mmpretrain')

    def names(case):
        # A margin from data is sound, where the hook that finds it is there.
        return [*names_in(base, case), *(['DistillationHook'] if case[0][2] == 'data' else [])]

    one_step(base, 'mmpretrain')
    fuzz('losses and connectors', mutations(base, paths, values), run, names)


def test_features_that_do_not_fit(checkpoints):
    """Every loss on every kind of feature, with every connector or none."""
    taps = dict(
        low='backbone.layer1@preact', high='backbone.layer2@preact', tokens='backbone.tokens', vector='backbone.vector',
        pooled='neck[0]', logits='head.fc', calls='backbone.twice#*', frozen='backbone.frozen',
    )  # fmt: skip
    sides = st.sampled_from([
        *taps, ['low', 'high'], ['high', 'low'], ['tokens', 'tokens'], ['low', 'logits'], ['vector'],
        ['low', 'high', 'calls'], ['pooled', 'logits'], ['calls', 'calls'],
    ])  # fmt: skip
    connectors = st.sampled_from([None, None, 'ConvBN', 'MarginReLU', 'Translator', 'Paraphraser', 'data'])
    losses = ('KDLoss', 'DKDLoss', 'LipschitzLoss', 'OFDLoss', 'ABLoss', 'FitNetsLoss', 'ATLoss', 'FSPLoss', 'AFDLoss',
              'CWDLoss', 'FTLoss', 'RKDLoss', 'JacobianLoss', 'FGDLoss', 'DISTLoss', 'WSLDLoss', 'SPLoss', 'CosineLoss',
              'VIDLoss', 'ReviewKDLoss')  # fmt: skip

    def made(loss, student, teacher, same, own, theirs):
        def connector(name):
            if name == 'data':
                return dict(type='lckd_mm.MarginReLU', margin='data')
            return name and dict(type=f'lckd_mm.{name}')

        return dict(loss=dict(type=f'lckd_mm.{loss}'), student=student, teacher=student if same else teacher,
                    connector=connector(own), teacher_connector=connector(theirs))  # fmt: skip

    strategy = st.builds(made, st.sampled_from(losses), sides, sides, st.booleans(), connectors, connectors)

    def run(term):
        arguments = config('mmpretrain', checkpoints / 'mmpretrain.pth', dict(loss_odd=term), **taps)
        return lambda: one_step(arguments, 'mmpretrain')

    fuzz('features that do not fit', strategy, run, lambda _: ['loss_odd', *map(repr, taps)])


# ---- teachers and the rest


def test_teachers(judged, checkpoints):
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', dict(loss_kd=KD))
    base['teacher'] |= dict(bn='eval', allow=[])
    files = [str(checkpoints / name) for name in ('broken.pth', 'mmseg.pth', 'none.pth')] + [str(checkpoints)]
    configs = ('mmseg::zzz.py', 'zzz::zzz.py', 'zzz.py')
    values = (*VALUES, *files, *configs, 'torchvision://zzz', 'batch', ['('], '(', ['head'])
    paths = [p for p in paths_of(base) if p[0] == 'teacher']

    def names(base, case):
        # Of a host's own argument, the side and the host's sentence.
        return [*names_in(base, case), 'teacher']

    judged('teachers', base, mutations(base, paths, values), names=names)


def test_the_rest_of_a_distiller(judged, checkpoints):
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', dict(loss_kd=KD))
    base |= dict(student_taps=None, teacher_taps=None, data_preprocessor=None)
    values = (*VALUES, (16, 24), [16, 16], (16, 16, 16), '16', 3.5)
    paths = [p for p in paths_of(base) if p[0] not in ('taps', 'terms', 'teacher') and p[-1] != 'loss']
    paths = [p for p in paths if p[:3] != ('student', 'head', 'loss')]  # which is the host's own affair
    rest = [p for p in paths if p[0] != 'student' or len(p) == 1]

    def names(base, case):
        return [*names_in(base, case), 'student'] if case[0][0][0] == 'student' else names_in(base, case)

    judged('the rest of a Distiller', base, mutations(base, rest * 4 + paths, values), names=names)


# ---- the other hosts


def _of_host(host, checkpoints):
    if host == 'mmdet':
        loss = dict(type='lckd_mm.FGDLoss', alpha=1e-3, beta=5e-4, gamma=1e-3, lam=5e-6, temperature=0.5)
        loss['channels'] = [4, 8]
    else:
        loss = dict(type='lckd_mm.CWDLoss', tau=4.0)
    terms = dict(
        loss_kd=dict(
            KD, loss=dict(type='lckd_mm.KDLoss', tau=4.0, activation=None, num_classes=11 if host == 'mmseg' else 10)
        ),
        loss_odd=dict(loss=loss, on=['low', 'high'], connector=CONV),
    )
    base = config(host, checkpoints / f'{host}.pth', terms)
    if host == 'mmdet':
        base['taps']['neck'] = 'neck.fpn_convs.0.conv'
        terms['loss_neck'] = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='neck')
        return base
    # Fires with the loss alone; both heads' scores have one size.
    base['student_taps'] = dict(aux='auxiliary_head.conv_seg')
    terms['loss_aux'] = dict(KD, student='aux', teacher='logits')
    for net in (base['student'], base['teacher']['model']):
        net['auxiliary_head'] |= dict(in_index=3, in_channels=net['decode_head']['in_channels'])
    base['teacher']['checkpoint'] = saved(base['teacher']['model'], checkpoints / 'aux.pth', host)
    return base


@pytest.mark.parametrize(('theme', 'host'), [('segmentors', 'mmseg'), ('detectors', 'mmdet')])
def test_other_hosts(judged, checkpoints, theme, host):
    base = _of_host(host, checkpoints)
    values = (*VALUES, 'low', 'high', ['low', 'high'], 'neck', 'aux', 'logits', 'backbone.layer1', 'backbone.twice#*')
    paths = [p for p in paths_of(base) if p[0] in ('taps', 'terms', 'student_taps', 'dry_run_size')]
    judged(theme, base, mutations(base, paths, values), host)


def test_two_mistakes_at_once(judged, checkpoints):
    terms = dict(loss_lipschitz=LIPSCHITZ, loss_kd=KD, loss_at=SHARED)
    base = config('mmpretrain', checkpoints / 'mmpretrain.pth', terms)
    paths = [p for p in paths_of(base) if p[0] in ('taps', 'terms') or p[:2] == ('teacher', 'checkpoint')]
    judged('two mistakes at once', base, mutations(base, paths, at_once=2))
