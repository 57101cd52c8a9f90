import copy
import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_state_dict
from run_helpers import hooks_in
from torch import nn

from lckd_mm.distillation import Distiller
from lckd_mm.hosts import build_model, fabricate_samples

STAGES = {f'stage{i}': f'backbone.layer{i}@preact' for i in range(1, 5)}
KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=0.5)
LIPSCHITZ = dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=list(STAGES), connector=dict(type='lckd_mm.ConvBN'))


class OfNoHost(BaseModel):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


class Gambler(nn.Module):
    """A loss that draws from every generator while it is built, and in the rehearsal."""

    def __init__(self):
        super().__init__()
        next_numbers()

    def forward(self, student, teacher):
        next_numbers()
        return (student - teacher).square().mean()


@pytest.fixture
def config(scope, tiny_fcn):
    """A whole distillation config; the teacher's checkpoint does not exist."""
    scope('mmseg')

    def make(**overrides):
        return (
            dict(
                student=tiny_fcn(),
                teacher=dict(model=tiny_fcn(width=12), checkpoint='nowhere.pth'),
                taps=STAGES | dict(logits='decode_head.conv_seg'),
                terms=dict(loss_lipschitz=LIPSCHITZ, loss_kd=KD),
            )
            | overrides
        )

    return make


@pytest.fixture
def built(config):
    """A Distiller; its teacher is taken as loaded, with the random weights it has."""

    def make(**overrides):
        torch.manual_seed(3)
        model = Distiller(**config(**overrides))
        model.teacher.loaded = True
        return model

    return make


def seed():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def next_numbers():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def batch_for(model, size=(32, 32), count=2):
    torch.manual_seed(9)
    samples = fabricate_samples(model, count, size)
    for sample in samples:
        if 'gt_sem_seg' in sample:
            sample.gt_sem_seg.data = torch.randint(0, 5, (1, *size))
    parameter = next(model.parameters())
    return torch.randn(count, 3, *size, dtype=parameter.dtype), samples


def inplace_switches(model):
    return {name: m.inplace for name, m in model.named_modules() if hasattr(m, 'inplace')}


# ---- the sentence of each mistake


class PerSample(nn.Module):
    def forward(self, student, teacher):
        return (student - teacher).flatten(1).mean(1)


@pytest.mark.parametrize(
    ('overrides', 'error', 'names'),
    [
        (dict(terms={}), ValueError, 'terms'),
        (dict(terms=[KD]), ValueError, 'terms'),
        (dict(terms=dict(loss_kd=None)), ValueError, 'terms'),
        (dict(terms=dict(kd=KD)), ValueError, "'kd'.*'loss_'"),
        (dict(terms=dict(loss_kd=dict(KD, on='logit'))), KeyError, "'logit'.*'stage1'"),
        (dict(student='mmseg::fcn'), TypeError, 'student .*got str'),
        (dict(student=dict(type=OfNoHost)), TypeError, 'student: OfNoHost'),
        (dict(student=dict(type='ResNet', depth=18)), TypeError, 'student: ResNet'),
        (dict(teacher=dict(checkpoint='a.pth')), KeyError, 'teacher: .*model'),
        (dict(teacher='mmseg::fcn'), TypeError, 'teacher'),
        (dict(taps='stages'), ValueError, "'stages'.*'backbone'"),
        (dict(taps=[3]), TypeError, 'taps: .*got int'),
        (dict(student_taps=dict(logits='decode_head.')), ValueError, "'decode_head.' is malformed"),
        (
            dict(student_taps=dict(stage2='backbone.layer9@preact')),
            KeyError,
            "'stage2'.*'backbone.layer9'.*EncoderDecoder; closest: 'backbone.layer",
        ),
        (dict(teacher_taps=dict(logits='head.fc')), KeyError, "teacher tap 'logits'.*'head.fc'"),
        (
            dict(taps=dict(logits='decode_head'), terms=dict(loss_kd=KD)),
            ValueError,
            "'decode_head' never fires.*decode_head.conv_seg",
        ),
        (dict(student_taps=dict(logits='decode_head')), ValueError, "student tap 'logits': .* never fires"),
        (dict(teacher_taps=dict(logits='decode_head')), ValueError, "teacher tap 'logits': .* never fires"),
        (dict(student_taps=dict(logits='backbone.layer1.0.bn2')), ValueError, 'overwritten in place.*@preact'),
        (dict(student_taps=dict(logits='backbone.layer1.0.relu#3')), ValueError, 'no call #3'),
        (
            dict(terms=dict(loss_kd=dict(KD, student='stage1', teacher='logits'))),
            ValueError,
            r"'loss_kd': KDLoss .*student stage1 \(1, 8, .*; teacher logits \(1, 5, 4",
        ),
        (dict(terms=dict(loss_kd=dict(loss=dict(type=PerSample), on='logits'))), ValueError, r'PerSample .*\(1,\)'),
        (dict(dry_run_size=0), ValueError, 'dry_run_size .*got 0'),
        (dict(dry_run_size=(32, 'wide')), ValueError, "dry_run_size .*'wide'"),
        (dict(inherit='bbox_head'), ValueError, "inherit: no module 'bbox_head' in the student"),
        (dict(inherit='backbone.layer4'), ValueError, 'inherit: no tensor of the student'),
    ],
)  # fmt: skip
def test_mistakes(config, overrides, error, names):
    with pytest.raises(error, match=names):
        Distiller(**config(**overrides))


def test_a_net_that_does_not_run(config, tiny_fcn):
    model = tiny_fcn(decode_head=tiny_fcn()['decode_head'] | dict(in_channels=7))
    with pytest.raises(ValueError, match=r'teacher: .* 32 x 32: RuntimeError: .* the size is not the cause'):
        Distiller(**config(teacher=dict(model=model, checkpoint='nowhere.pth')))


def test_another_number_of_classes_matters_to_logits_alone(config, tiny_fcn):
    teacher = dict(model=tiny_fcn(classes=7), checkpoint='nowhere.pth')
    with pytest.raises(ValueError, match=r"'loss_kd': KDLoss .*logits \(1, 5, 4, 4\); teacher logits \(1, 7, 4, 4\)"):
        Distiller(**config(teacher=teacher))
    assert list(Distiller(**config(teacher=teacher, terms=dict(loss_lipschitz=LIPSCHITZ))).terms) == ['loss_lipschitz']


def test_a_failed_build_restores_the_random_state_past_the_student(config, tiny_fcn):
    seed()
    build_model(tiny_fcn())
    expected = next_numbers()
    seed()
    with pytest.raises(KeyError):
        Distiller(**config(terms=dict(loss_kd=dict(KD, on='logit'))))
    assert next_numbers() == expected


def test_training_without_the_teachers_weights_is_refused(config):
    model = Distiller(**config())
    with pytest.raises(RuntimeError, match=r'teacher is not loaded.*init_weights\(\)'):
        model(*batch_for(model.student), mode='loss')
    with pytest.raises(FileNotFoundError, match=r"teacher: .*'nowhere\.pth'"):
        model.init_weights()


# ---- taps and terms


def test_two_taps_of_one_stage_before_its_activation(built):
    model = built(student_taps=dict(again=STAGES['stage2']), teacher_taps=dict(again=STAGES['stage2']))
    resolved = model.student_taps.resolved
    assert resolved['again'] == resolved['stage2']


def test_a_term_set_to_none_is_taken_away(built):
    assert list(built(terms=dict(loss_lipschitz=None, loss_kd=KD)).terms) == ['loss_kd']


def test_the_preset_further_taps_and_overrides(built):
    model = built(taps=['backbone', dict(logits='decode_head.conv_seg')], teacher_taps=dict(stage4='backbone.layer4'))
    everything = STAGES | dict(logits='decode_head.conv_seg')
    assert {n: str(a) for n, a in model.student_taps.addresses.items()} == everything
    assert {n: str(a) for n, a in model.teacher_taps.addresses.items()} == everything | dict(stage4='backbone.layer4')
    assert model.student_taps.traces['stage4'].shapes == [(1, 64, 4, 4)]
    assert model.teacher_taps.traces['stage4'].shapes == [(1, 96, 4, 4)]


def test_an_auxiliary_heads_tap_is_found_by_the_dry_run_with_the_loss(built):
    model = built(
        student_taps=dict(aux='auxiliary_head.conv_seg'),
        terms=dict(loss_aux=dict(loss=dict(type='lckd_mm.KDLoss'), student='aux', teacher='logits')),
    )
    assert model.student_taps.traces['aux'].shapes == [(1, 5, 4, 4)]
    losses = model(*batch_for(model.student), mode='loss')
    assert losses['loss_aux'].item() > 0


def test_the_dry_run_takes_the_training_size_or_the_one_given(built):
    assert built().student_taps.traces['logits'].shapes == [(1, 5, 4, 4)]
    assert built(dry_run_size=64).student_taps.traces['logits'].shapes == [(1, 5, 8, 8)]
    assert built(dry_run_size=(32, 64)).teacher_taps.traces['logits'].shapes == [(1, 5, 4, 8)]


@pytest.mark.parametrize(('host', 'logits'), [('mmpretrain', 'head.fc'), ('mmdet', 'bbox_head.retina_cls#*')])
def test_the_other_hosts(built, scope, tiny_classifier, tiny_detector, host, logits):
    scope(host)
    tiny = dict(mmpretrain=tiny_classifier, mmdet=tiny_detector)[host]
    model = built(
        student=tiny(),
        teacher=dict(model=tiny(width=12), checkpoint='nowhere.pth'),
        taps=STAGES | dict(logits=logits),
        dry_run_size=64,
    )
    losses = model(*batch_for(model.student, (64, 64)), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(losses[name].item() > 0 for name in ('loss_lipschitz', 'loss_kd'))
    assert model.terms['loss_kd'].loss.activation == ('sigmoid' if host == 'mmdet' else 'softmax')
    # mmpretrain's own loss is called 'loss', under which mmengine logs the total.
    assert 'loss' not in losses
    assert ('loss_task' in losses) == (host == 'mmpretrain')
    assert not hooks_in(model)


def test_mmpretrains_top_level_preprocessor_goes_to_the_student(built, scope, tiny_classifier):
    scope('mmpretrain')
    student = tiny_classifier()
    preprocessor = student.pop('data_preprocessor')
    model = built(
        student=student,
        teacher=dict(model=tiny_classifier(), checkpoint='nowhere.pth'),
        data_preprocessor=dict(preprocessor, mean=[1.0, 2.0, 3.0]),
        taps=dict(logits='head.fc'),
        terms=dict(loss_kd=KD),
        dry_run_size=32,
    )
    assert model.data_preprocessor is model.student.data_preprocessor
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert 'data_preprocessor' not in student


# ---- null equivalence of the build


def test_building_and_init_weights_draw_as_the_bare_student(config, tiny_fcn, save_teacher, tmp_path):
    path = save_teacher(tmp_path / 't.pth', tiny_fcn(width=12), 'mmseg')
    seed()
    bare = build_model(tiny_fcn())
    expected = next_numbers()
    bare.init_weights()
    afterwards = next_numbers()
    seed()
    terms = dict(loss_lipschitz=LIPSCHITZ, loss_kd=dict(loss=dict(type=Gambler), on='logits'))
    model = Distiller(**config(terms=terms, teacher=dict(model=tiny_fcn(width=12), checkpoint=path)))
    assert next_numbers() == expected
    model.init_weights()
    assert next_numbers() == afterwards
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), model.student.parameters(), strict=True))
    saved = torch.load(path)['state_dict']
    assert model.teacher.loaded
    assert all(torch.equal(v, saved[k]) for k, v in model.teacher.model.state_dict().items())


def test_connectors_depend_on_the_seed_and_differ_from_one_another(config):
    weights = []
    for value in (1, 1, 2):
        torch.manual_seed(value)
        weights.append(Distiller(**config()).terms['loss_lipschitz'].connectors[0][0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_modes_and_running_statistics_are_as_before(built, tiny_fcn):
    model, bare = built(), build_model(tiny_fcn())
    modes = {name: m.training for name, m in bare.named_modules()}
    assert {name: m.training for name, m in model.student.named_modules()} == modes
    assert all(m.training for m in model.terms.modules())
    for name, value in (*model.student.state_dict().items(), *model.terms.state_dict().items()):
        if 'running_mean' in name or 'num_batches_tracked' in name:
            assert not value.any(), name
        if 'running_var' in name:
            assert (value == 1).all(), name
    assert not any(m.training for m in model.teacher.model.modules())
    model.train()
    assert not any(m.training for m in model.teacher.model.modules())
    assert model.student.training


@pytest.mark.parametrize('teacher_draws', [False, True])
def test_weight_zero_gives_the_bare_students_losses_and_gradients(built, teacher_draws):
    model = built(terms=dict(loss_lipschitz=dict(LIPSCHITZ, weight=0), loss_kd=dict(KD, weight=0.0)))
    if teacher_draws:  # as mmseg's LightHamHead does in evaluation, too
        model.teacher.model.backbone.register_forward_pre_hook(lambda *_: next_numbers() and None)
    bare = copy.deepcopy(model.student)
    inputs, samples = batch_for(bare)
    results = []
    for net in (bare, model):
        seed()
        torch.manual_seed(11)
        losses = net(inputs, copy.deepcopy(samples), mode='loss')
        total, logged = net.parse_losses(losses)
        total.backward()
        results.append((total, logged, next_numbers()))
    (total, logged, after), (distilled, distilled_logged, distilled_after) = results
    assert torch.equal(total, distilled)
    assert after == distilled_after
    assert all(torch.equal(v, distilled_logged[k]) for k, v in logged.items())
    for (name, a), b in zip(bare.named_parameters(), model.student.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(bare.named_buffers(), model.student.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_the_teacher_is_through_before_the_student_begins(built):
    model, order = built(), []
    nets = (('teacher', model.teacher.model), ('student', model.student))
    for name, net in nets:
        for module in (net.backbone, net.backbone.layer4):
            module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    model(*batch_for(model.student), mode='loss')
    assert order == ['teacher', 'teacher', 'student', 'student']


def test_a_teacher_that_overwrites_the_images_is_refused(built):
    model = built()
    model.teacher.model.backbone.register_forward_pre_hook(lambda _, args: (args[0].clamp_(min=0),))
    with pytest.raises(RuntimeError, match='teacher: EncoderDecoder overwrites'):
        model(*batch_for(model.student), mode='loss')


# ---- state


def test_state_dict_is_the_plain_students(built):
    model = built()
    plain = model.student.state_dict()
    state = model.state_dict()
    assert list(state) == list(plain)
    assert all(torch.equal(state[k], v) for k, v in plain.items())
    assert dict(state._metadata) == dict(plain._metadata)
    assert set(model.distillation_state()) == set(model.terms.state_dict())
    assert list(nn.ModuleDict(dict(module=model)).state_dict()) == [f'module.{k}' for k in plain]


def new_values(state):
    return {k: torch.randn_like(v) if v.is_floating_point() else v + 3 for k, v in state.items()}


@pytest.mark.parametrize('loader', ['torch', 'mmengine', 'torch-wrapped', 'mmengine-wrapped'])
def test_a_plain_state_dict_loads_strictly(built, loader):
    model = built()
    connectors = {k: v.clone() for k, v in model.terms.state_dict().items()}
    plain = new_values(model.student.state_dict())
    given, target = dict(plain), model
    if loader.endswith('wrapped'):
        given, target = {f'module.{k}': v for k, v in plain.items()}, nn.ModuleDict(dict(module=model))
    keys = list(given)
    if loader.startswith('torch'):
        target.load_state_dict(given, strict=True)
    else:
        load_state_dict(target, given, strict=True)
    assert list(given) == keys
    assert all(torch.equal(v, plain[k]) for k, v in model.student.state_dict().items())
    assert all(torch.equal(v, connectors[k]) for k, v in model.terms.state_dict().items())


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_strict_is_strict(built, loader):
    model = built()
    for change in ('missing', 'unexpected', 'shape'):
        state = dict(model.state_dict())
        value = state.pop('decode_head.conv_seg.bias')
        if change == 'unexpected':
            state |= {'decode_head.conv_seg.bias': value, 'decode_head.extra': value}
        elif change == 'shape':
            state['decode_head.conv_seg.bias'] = torch.zeros(9)
        named = 'decode_head.extra' if change == 'unexpected' else 'decode_head.conv_seg.bias'
        with pytest.raises(RuntimeError, match=named):
            model.load_state_dict(state) if loader == 'torch' else load_state_dict(model, state, strict=True)


def test_a_deep_copy_stands_on_its_own_and_shares_the_teacher(built):
    model = built()
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher
    before = {k: v.clone() for k, v in model.state_dict().items()}
    connectors = {k: v.clone() for k, v in model.terms.state_dict().items()}
    twin.load_state_dict(new_values(twin.state_dict()), strict=True)
    assert list(twin.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not torch.equal(twin.backbone.stem[0].weight, model.backbone.stem[0].weight)
    with torch.no_grad():
        for parameter in twin.terms.parameters():
            parameter.zero_()
    assert all(torch.equal(v, connectors[k]) for k, v in model.terms.state_dict().items())
    assert set(twin(*batch_for(twin.student), mode='loss')) == set(model(*batch_for(model.student), mode='loss'))


def test_distillation_state_round_trip_and_mismatch(built):
    model = built()
    state = new_values(model.distillation_state())
    model.load_distillation_state(state)
    assert all(torch.equal(v, state[k]) for k, v in model.distillation_state().items())
    with pytest.raises(ValueError, match='stored connectors'):
        model.load_distillation_state({k: v for k, v in state.items() if '.3.' not in k})


# ---- what hosts look for


def test_attributes_are_the_students(built):
    model = built()
    assert model.backbone is model.student.backbone
    assert model.decode_head is model.student.decode_head
    assert model.with_auxiliary_head is True
    assert model.num_classes == 5
    with pytest.raises(AttributeError, match='no_such_thing'):
        model.no_such_thing  # noqa: B018
    assert not hasattr(model, 'bbox_head')


def test_a_layers_depth_is_the_students_where_it_has_one(built, tiny_classifier, scope):
    assert not hasattr(built(), 'get_layer_depth')
    scope('mmpretrain')
    student = tiny_classifier()
    student['backbone'] = dict(
        type='VisionTransformer', arch='deit-t', img_size=32, patch_size=16, out_type='cls_token'
    )
    student['neck'] = None
    student['head']['in_channels'] = 192
    taps = dict(stage1='backbone.layers.0', stage2='backbone.layers.1')
    term = dict(LIPSCHITZ, on=list(taps), connector=None)
    model = built(
        student=student, teacher=dict(model=student, checkpoint='nowhere.pth'), taps=taps, dry_run_size=32,
        terms=dict(loss_lipschitz=term),
    )  # fmt: skip
    for name in ('backbone.patch_embed.projection.weight', 'backbone.layers.3.ln1.weight', 'head.fc.weight'):
        assert model.get_layer_depth(f'student.{name}') == model.student.get_layer_depth(name)
    # 12 layers between the embedding and the head; a connector is as deep as a head
    assert model.get_layer_depth('student.backbone.layers.3.ln1.weight') == (4, 14)
    assert model.get_layer_depth('terms.loss_lipschitz.connectors.0.0.weight') == (13, 14)


def test_named_parameters_are_plain_and_the_teacher_is_not_among_them(built):
    model = built()
    plain = [name for name, _ in model.student.named_parameters()]
    named = dict(model.named_parameters())
    assert list(named)[: len(plain)] == plain
    assert all(name.startswith('terms.loss_lipschitz.connectors.') for name in list(named)[len(plain) :])
    assert named['backbone.layer1.0.conv1.weight'] is model.student.backbone.layer1[0].conv1.weight
    assert next(n for n, _ in model.named_parameters(prefix='ema')) == f'ema.{plain[0]}'
    mine = {id(p) for p in model.teacher.model.parameters()}
    assert not mine & {id(p) for p in model.parameters()}
    assert not mine & {id(m) for m in model.modules()}
    assert not any(m is model.teacher.model for m in model.modules())


def test_predict_and_tensor_are_the_students(built):
    model = built().eval()
    inputs, samples = batch_for(model.student)
    with torch.no_grad():
        assert torch.equal(model(inputs), model.student(inputs))
        ours = model(inputs, copy.deepcopy(samples), mode='predict')
        theirs = model.student(inputs, copy.deepcopy(samples), mode='predict')
        assert all(torch.equal(a.seg_logits.data, b.seg_logits.data) for a, b in zip(ours, theirs, strict=True))
        raw = dict(inputs=[torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)], data_samples=samples[:1])
        for step in ('val_step', 'test_step'):
            a, b = (getattr(m, step)(copy.deepcopy(raw))[0] for m in (model, model.student))
            assert torch.equal(a.seg_logits.data, b.seg_logits.data)


def test_the_teacher_follows_to_another_type_and_device(built):
    model = built().double()
    assert {p.dtype for p in model.teacher.model.parameters()} == {torch.float64}
    losses = model(*batch_for(model.student), mode='loss')
    assert losses['loss_lipschitz'].dtype == losses['loss_kd'].dtype == torch.float64
    model.to('meta')
    net = model.teacher.model
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers(), *model.parameters())} == {'meta'}


# ---- one loss


def test_a_loss_has_the_students_members_and_the_terms(built):
    model = built()
    batch = batch_for(model.student)
    bare = copy.deepcopy(model.student)(*batch, mode='loss')
    losses = model(*batch, mode='loss')
    assert list(losses) == [*bare, 'loss_lipschitz', 'loss_kd']
    total, logged = model.parse_losses(losses)
    members = [v.mean() for k, v in losses.items() if 'loss' in k]
    torch.testing.assert_close(total, sum(members))
    torch.testing.assert_close(logged['loss'], total)
    assert losses['loss_lipschitz'].item() > 0


def test_gradient_reaches_student_and_connectors_and_never_the_teacher(built):
    model = built()
    model(*batch_for(model.student), mode='loss')['loss_lipschitz'].backward()
    for name, parameter in model.student.named_parameters():  # of a term alone, the tapped layers
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert reached == name.startswith('backbone.') or 'bias' in name, name
    assert all(c[0].weight.grad.abs().max() > 0 for c in model.terms['loss_lipschitz'].connectors)
    model.zero_grad()
    total, _ = model.parse_losses(model(*batch_for(model.student), mode='loss'))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A shift after a norm's mean is taken away has none; every other parameter is trained.
        if name.endswith('weight'):
            assert parameter.grad.abs().max() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.model.parameters())


def test_a_loss_changes_nothing_of_the_teacher(built, tiny_fcn):
    model = built(teacher=dict(model=tiny_fcn(width=12), checkpoint='nowhere.pth', bn='batch'))
    before = {k: v.clone() for k, v in model.teacher.model.state_dict().items()}
    batch = batch_for(model.student)
    losses = [model(*batch, mode='loss') for _ in range(2)]
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.model.state_dict().items())
    assert losses[0]['loss_lipschitz'].item() > 0


def test_nothing_is_left_after_a_loss_or_a_failed_one(built):
    model = built()
    switches = inplace_switches(model), inplace_switches(model.teacher.model)
    batch = batch_for(model.student)
    model(*batch, mode='loss')
    assert not hooks_in(model) and not hooks_in(model.teacher.model)
    for net, broken in ((model.student, 'backbone.layer3'), (model.teacher.model, 'backbone.layer2')):
        handle = net.get_submodule(broken).register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises((ZeroDivisionError, ValueError), match='division by zero'):
            model(*batch, mode='loss')
        handle.remove()
        assert not hooks_in(model) and not hooks_in(model.teacher.model)
    assert switches == (inplace_switches(model), inplace_switches(model.teacher.model))
    assert model(*batch, mode='loss')['loss_kd'].item() > 0


def test_a_frozen_stage_may_be_observed_and_is_refused_under_a_term(built, tiny_fcn):
    student = tiny_fcn()
    student['backbone']['frozen_stages'] = 1
    model = built(student=student).train()
    with pytest.raises(ValueError, match=r"student tap 'stage1': .* no gradient"):
        model(*batch_for(model.student), mode='loss')
    with torch.no_grad():
        assert 'loss_lipschitz' in model(*batch_for(model.student), mode='loss')
    model = built(student=student, terms=dict(loss_lipschitz=LIPSCHITZ | dict(on=['stage2', 'stage3']))).train()
    seen = {}
    model.observers.append(lambda s, *_: seen.update(s))
    model(*batch_for(model.student), mode='loss')
    assert list(seen) == [*STAGES, 'logits']
    assert not seen['stage1'].requires_grad and seen['stage2'].requires_grad


def test_a_term_named_as_a_loss_of_the_student_is_refused(built):
    model = built(terms=dict(loss_own=KD))
    own = model.student.forward
    model.student.forward = lambda *args, **kwargs: {**own(*args, **kwargs), 'loss_own': torch.zeros(())}
    with pytest.raises(KeyError, match="'loss_own'"):
        model(*batch_for(model.student), mode='loss')


# ---- inherit


def test_a_module_begins_with_the_teachers_weights_where_shapes_agree(config, tmp_path, scope):
    teacher = build_model(config()['teacher']['model'], 'mmseg')
    with torch.no_grad():
        for p in teacher.parameters():
            p.uniform_(-1, 1)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    overrides = config(inherit=['decode_head', 'auxiliary_head'])
    overrides['teacher']['checkpoint'] = str(tmp_path / 'teacher.pth')
    torch.manual_seed(1)
    plain = build_model(overrides['student'], 'mmseg')
    plain.init_weights()
    torch.manual_seed(1)
    model = Distiller(**overrides)
    model.init_weights()
    theirs, before = teacher.state_dict(), plain.state_dict()
    inherited = []
    for name, value in model.student.state_dict().items():
        if not value.is_floating_point() or torch.equal(theirs[name], before[name]) if name in theirs else True:
            continue
        same = name.split('.')[0] in overrides['inherit'] and theirs[name].shape == value.shape
        inherited += [name] * same
        assert torch.equal(value, theirs[name] if same else before[name]), name
    assert 'decode_head.conv_seg.weight' in inherited
    assert model.student.decode_head.convs[0].conv.weight.shape != teacher.decode_head.convs[0].conv.weight.shape
