"""Terms with `queries`: the teacher's decoder and head judge both nets' memory by the teacher's own queries."""

import pytest
import torch
import torch.nn.functional as F
from run_helpers import HOOK, config, run, scalars, scenes
from small_nets import dino, narrow
from test_reuse import batch, built, model

from lckd_mm.hosts import build_model, load_config
from lckd_mm.losses import QueryLoss

NAMES = dict(
    deformable='deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    refined='deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    two_stage='deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    detr='detr/detr_r50_8xb2-150e_coco.py',
    conditional='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    dab='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    dino='dino/dino-4scale_r50_8xb2-12e_coco.py',
    ddq='ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
)
FLAT = ('detr', 'conditional', 'dab')
MEMORY = dict(memory='encoder')


def detr(name, width=32, layers=2, classes=5):
    """A detector with queries of mmdet on a narrow ResNet-18."""
    width = width if name in ('deformable', 'refined', 'detr') else 256  # which the others have in their code
    cfg = load_config(f'mmdet::{NAMES[name]}').model.to_dict()
    for key in ('backbone', 'neck'):
        cfg[key].pop('init_cfg', None)
    outs = (3,) if name in FLAT else (1, 2, 3)
    cfg['backbone'] = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=outs)
    widths = {256: width, 128: width // 2, 512: width * 2}
    cfg = narrow(cfg, {**widths, 1024: 16, 2048: 16, 80: classes, 300: 7, 100: 7})
    if name not in FLAT:
        cfg['neck']['norm_cfg']['num_groups'] = 4
        cfg['bbox_head']['embed_dims'] = width
    cfg['neck']['in_channels'] = [8, 16, 32][-len(outs) :]
    cfg['num_queries'] = 7 if name != 'ddq' else 30
    for part in ('encoder', 'decoder'):
        cfg[part]['num_layers'] = layers
    if name in ('two_stage', 'dino', 'ddq'):
        cfg['test_cfg']['max_per_img'] = 5
    if 'dn_cfg' in cfg:
        cfg['dn_cfg']['group_cfg']['num_dn_queries'] = 4
    if 'dqs_cfg' in cfg:
        cfg['dense_topk_ratio'] = 1.0
    return cfg


def term(**extra):
    return dict(loss_queries=dict(dict(loss=dict(type='lckd_mm.QueryLoss'), on='memory', queries=True), **extra))


def distiller(tmp_path, student, teacher, taps=MEMORY, others=None, allow=(), **extra):
    """With a head whose boxes depend on what it reads, as they do not before any training."""
    cfg = model(tmp_path, term(**extra) | (others or {}), taps, student, teacher)
    cfg['teacher']['allow'] = allow
    found = build_model(cfg, 'mmdet')
    found.init_weights()
    torch.manual_seed(4)
    with torch.no_grad():
        for p in found.teacher.model.bbox_head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return found


def judged(found):
    """The value, and what the loss is given."""
    data, seen = batch(found), {}
    hook = found.terms['loss_queries'].loss.register_forward_pre_hook(
        lambda _, args: seen.update(student=args[0], teacher=args[1])
    )
    value = found.loss(**data)['loss_queries']
    hook.remove()
    return value, seen, data


@pytest.mark.parametrize('name', NAMES)
def test_a_student_with_the_teacher_s_weights_loses_nothing(tmp_path, name):
    """Then what the decoder makes of its memory is what the teacher's own pass gives."""
    net = detr(name)
    found = distiller(tmp_path, net, net)
    found.student.load_state_dict(found.teacher.model.state_dict())
    found.eval()
    found.student.training = True  # itself alone: what its head needs for its losses
    with torch.no_grad():
        value, seen, data = judged(found)
    assert value.abs() < 1e-5
    for ours, theirs in zip(seen['student'], seen['teacher']):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert ours.dim() == 4 and ours.shape[:2] == (2, 2)
    plain = found.teacher.model(found.teacher.convert(data['inputs'], None), data['data_samples'], mode='tensor')
    for theirs, own in zip(seen['teacher'], plain):
        torch.testing.assert_close(theirs, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('student', 'teacher'), [('deformable', 'refined'), ('detr', 'detr'), ('dino', 'dino')])
def test_each_layer_asks_the_teacher_s_queries_of_the_student_s_memory(tmp_path, student, teacher):
    """Against the layers run by hand; only the student gets a gradient, up to its encoder."""
    found = distiller(tmp_path, detr(student), detr(teacher)).train()
    net, layers = found.teacher.model, found.teacher.model.decoder.layers
    calls, memory = [], {}
    hooks = [m.register_forward_hook(lambda _, a, k, y: calls.append((a, k, y)), with_kwargs=True) for m in layers]
    hooks += [
        of.encoder.register_forward_hook(lambda _, __, y, key=key: memory.update({key: y}))
        for key, of in dict(student=found.student, teacher=net).items()
    ]
    references = []
    own_forward = net.bbox_head.forward
    net.bbox_head.forward = lambda *args, **kwargs: references.append((args, kwargs)) or own_forward(*args, **kwargs)
    value, seen, _ = judged(found)
    del net.bbox_head.forward
    for hook in hooks:
        hook.remove()
    first = calls[: len(layers)]
    norm = getattr(net.decoder, 'post_norm', None) or getattr(net.decoder, 'norm', None) or torch.nn.Identity()
    states = []
    for layer, (args, kwargs, _) in zip(layers, first):
        swapped = {k: memory['student'] if v is memory['teacher'] else v for k, v in kwargs.items()}
        assert sum(v is memory['teacher'] for v in kwargs.values()) >= 1
        states.append(norm(layer(*args, **swapped)))
    _, kwargs = references[0]
    scores, boxes = own_forward(**{**kwargs, 'hidden_states': torch.stack(states)})[:2]
    torch.testing.assert_close(seen['student'][0], scores)
    torch.testing.assert_close(seen['student'][1], boxes)
    for ours, theirs in zip(seen['student'], seen['teacher']):
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(ours, theirs))
        assert (ours[0] - ours[1]).abs().max() > 1e-4
    found.zero_grad()
    value.backward()
    for module in (found.student.encoder, found.student.backbone):
        assert sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is None for p in found.student.decoder.parameters())
    assert not found.teacher._calls
    assert all('forward' not in vars(m) for m in net.modules())


def cxcywh_giou(a, b):
    """GIoU of two boxes, by their corners, without clamps."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.tolist(), b.tolist()
    a, b = (ax - aw / 2, ay - ah / 2, ax + aw / 2, ay + ah / 2), (bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2)
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = aw * ah + bw * bh - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


@pytest.mark.parametrize('sigmoids', [True, False])
def test_the_loss_by_hand(sigmoids):
    torch.manual_seed(0)
    layers, images, queries, classes = 2, 3, 4, 5
    ours, theirs = torch.randn(2, layers, images, queries, classes, dtype=torch.float64).unbind()
    boxes = 0.2 + 0.3 * torch.rand(2, layers, images, queries, 4, dtype=torch.float64)
    loss = QueryLoss(scores=2.0, boxes=3.0, giou=0.5)
    loss.sigmoids = sigmoids
    expected = 0.0
    for layer in range(layers):
        divergence = distance = total = 0.0
        for image in range(images):
            for query in range(queries):
                s, t = ours[layer, image, query], theirs[layer, image, query]
                if sigmoids:
                    p = t.sigmoid()
                    divergence += (
                        F.binary_cross_entropy(s.sigmoid(), p, reduction='sum')
                        - F.binary_cross_entropy(p, p, reduction='sum')
                    )  # fmt: skip
                    w = p.max()
                else:
                    p = t.softmax(0)
                    divergence += (p * (p.log() - s.log_softmax(0))).sum()
                    w = p[:-1].max()
                a, b = boxes[0, layer, image, query], boxes[1, layer, image, query]
                distance += w * (3.0 * (a - b).abs().mean() + 0.5 * (1 - cxcywh_giou(a, b)))
                total += w
        expected += 2.0 * divergence / (images * queries) + distance / total
    value = loss([ours, boxes[0]], [theirs, boxes[1]])
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=torch.float64))
    assert loss([ours, boxes[0]], [ours, boxes[0]]).abs() < 1e-9
    assert loss([x[:, :0] for x in (ours, boxes[0])], [x[:, :0] for x in (theirs, boxes[1])]) == 0


def test_the_loss_reads_from_the_head_how_it_scores(tmp_path):
    for name, sigmoids in (('detr', False), ('dino', True)):
        found = distiller(tmp_path, detr(name), detr(name))
        assert found.terms['loss_queries'].loss.sigmoids is sigmoids


def test_another_width_is_refused_with_the_connector_that_helps(tmp_path):
    with pytest.raises(
        ValueError, match=r"queries=True at tap 'memory': student .*; connector=dict\(type='lckd_mm.Linear"
    ):
        distiller(tmp_path, detr('deformable', width=16), detr('deformable'))
    found = distiller(tmp_path, detr('deformable', 16), detr('deformable'), connector=dict(type='lckd_mm.Linear'))
    value, _, _ = judged(found.train())
    value.backward()
    assert all(p.grad.abs().sum() > 0 for p in found.terms['loss_queries'].connectors.parameters())


def test_an_encoder_of_fewer_levels_is_refused_with_the_keys_to_change(tmp_path):
    """They are all that is needed, and the other way out works, too."""
    student = detr('dino')
    student['num_feature_levels'] = student['neck']['num_outs'] = 3
    for part, attention in (('encoder', 'self_attn_cfg'), ('decoder', 'cross_attn_cfg')):
        student[part]['layer_cfg'][attention]['num_levels'] = 3
    says = (
        r"tap 'memory': student \(1, 84, 256\) and teacher \(1, 85, 256\) differ .* \(backbone.out_indices, "
        r'neck.num_outs, num_feature_levels, and num_levels in .*\), or match .*, by lckd_mm.MatchedQueryLoss'
    )
    with pytest.raises(ValueError, match=says):
        distiller(tmp_path, student, detr('dino'))
    matched = dict(loss=dict(type='lckd_mm.MatchedQueryLoss'), on='scores', given=dict(boxes='boxes'), queries=False)
    taps = dict(scores='bbox_head[0]', boxes='bbox_head[1]')
    assert judged(distiller(tmp_path, student, detr('dino'), taps, **matched).train())[0] > 0


KD, MASKS = dict(type='lckd_mm.KDLoss'), dict(type='lckd_mm.MaskQueryLoss')


@pytest.mark.parametrize(
    ('extra', 'teacher', 'says'),
    [
        (
            dict(loss=KD),
            'dino',
            r'KDLoss does not compare the class scores and boxes .*; write loss=dict\(type=.*Query',
        ),
        (dict(loss=MASKS), 'dino', r"MaskQueryLoss does not compare .* boxes .*; write loss=dict\(type='lckd_mm.Query"),
        (dict(queries=False), 'dino', 'QueryLoss and queries=False do not belong together; write queries=True in'),
        (dict(queries='yes'), 'dino', "queries must be True or False, got 'yes'"),
        (dict(reuse='memory'), 'dino', 'reuse and queries=True exclude each other; remove one'),
        (dict(classes='by name'), 'dino', 'classes and queries=True exclude each other; remove one'),
        (dict(teacher_connector=dict(type='lckd_mm.Linear')), 'dino', 'teacher_connector and queries=True exclude'),
        (dict(on='neck'), 'dino', r"tap 'neck' is 'neck\[0\]'; write on='memory' and taps=dict\(memory='encoder'\)"),
        (dict(loss=dict(type='lckd_mm.QueryLoss', scores=0, boxes=0, giou=0)), 'dino', 'give one a weight'),
        (dict(on=['memory', 'neck'], teacher=['memory', 'neck']), 'dino', "write on='memory' and taps=dict"),
        ({}, 'detr', r'student \(1, 85, 256\) and teacher \(1, 4, 32\) differ in shape; give both encoders the sam'),
    ],
)
def test_what_does_not_fit_is_refused_while_the_model_is_built(tmp_path, extra, teacher, says):
    with pytest.raises((ValueError, TypeError), match=f'(term .loss_queries.|QueryLoss).*{says}'):
        built(tmp_path, term(**extra), dict(MEMORY, neck='neck[0]'), detr('dino'), detr(teacher))


def test_a_teacher_whose_decoder_runs_otherwise_is_refused(tmp_path):
    found = distiller(tmp_path, detr('dino'), detr('dino'))
    found.teacher.model.decoder.register_forward_hook(lambda _, __, y: (y[0] + 1, y[1]))
    with pytest.raises(ValueError, match=r'the decoder of DINO runs otherwise than .*; name a teacher such as DINO'):
        judged(found)


def test_the_queries_are_those_of_a_plain_pass_whatever_else_is_tapped(tmp_path):
    """A tap that fires in training alone adds a pass with denoising queries, made from the ground truth."""
    net = detr('ddq')
    taps = dict(MEMORY, dense=f'bbox_head.cls_branches.{net["decoder"]["num_layers"] + 1}')
    dense = dict(loss_dense=dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='dense', weight=0.1))
    found = distiller(tmp_path, net, net, taps, dense, allow=['aux_reg'])
    found.student.load_state_dict(found.teacher.model.state_dict(), strict=False)
    found.eval()
    found.student.training = True
    with torch.no_grad():
        value, seen, _ = judged(found)
    assert seen['teacher'][0].shape[2] == 30 and value.abs() < 1e-5


def test_beside_a_term_that_reuses_the_encoder(tmp_path):
    """The encoder's own arguments are noted, too: its second layer runs again on the student's first."""
    taps = dict(MEMORY, first='encoder.layers.0')
    fit = dict(loss=dict(type='lckd_mm.FitNetsLoss'), student='first', reuse='first', teacher='memory')
    again = dict(loss_again=fit)
    found = distiller(tmp_path, detr('detr'), detr('detr'), taps, again).train()
    losses = found.loss(**batch(found))
    assert all(0 < losses[name] < float('inf') for name in ('loss_queries', 'loss_again'))


def test_boxes_are_scored_in_float32_where_the_teacher_runs_in_bfloat16(tmp_path):
    net = detr('dino')
    found = distiller(tmp_path, net, net).train()
    with torch.autocast('cpu', torch.bfloat16):
        value, seen, _ = judged(found)
    for of in seen.values():
        assert all(x.dtype == torch.float32 for x in of)
        fine = of[1].to(torch.bfloat16).float() != of[1]
        assert fine.float().mean() > 0.9
    value.backward()
    assert torch.isfinite(value)


def test_equal_boxes_without_an_area_have_no_distance():
    boxes = torch.tensor([0.5, 0.5, 8e-4, 8e-4]).expand(1, 1, 3, 4)
    ours, scores = boxes.clone().requires_grad_(), torch.zeros(1, 1, 3, 2)
    value = QueryLoss()([scores, ours], [scores, boxes])
    value.backward()
    assert value == 0


def test_nan_in_the_teacher_is_not_taken_for_another_decoder(tmp_path):
    found = distiller(tmp_path, detr('detr'), detr('detr'))
    found.teacher.model.decoder.post_norm.bias.data[0] = float('nan')
    with pytest.raises(Exception, match='nan'):
        judged(found.train())


def test_a_ddq_that_was_trained_is_loaded_as_the_docs_say(tmp_path):
    net = build_model(detr('ddq'), 'mmdet')
    net.init_weights()
    net.decoder.aux_reg_branches = net.bbox_head.aux_reg_branches  # as its training does
    file = tmp_path / 'trained.pth'
    torch.save(dict(state_dict=net.state_dict()), file)
    cfg = model(tmp_path, term(), MEMORY, detr('ddq'), detr('ddq'))
    cfg['teacher'].update(checkpoint=str(file), allow=['decoder.aux_reg_branches'])
    build_model(cfg, 'mmdet').init_weights()


def test_a_run_of_the_runner(tmp_path, scenes):
    """Denoising queries and the rehearsal included; a run that goes on from a checkpoint is the same to the bit."""
    nets = model(tmp_path, term(), MEMORY, dino(classes=10), dino(classes=10))
    logged = {}
    for name in ('whole', 'rest'):
        cfg = config('mmdet', scenes, tmp_path / name, nets, iters=4)
        cfg.default_hooks.distillation = HOOK
        cfg.default_hooks.resume = dict(type='lckd_mm.ResumeHook')
        cfg.default_hooks.checkpoint.interval = 2
        cfg.default_hooks.logger.interval = 1
        if name == 'rest':
            cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'iter_2.pth')
        run(cfg)
        logged[name] = [row['loss_queries'] for row in scalars(cfg.work_dir) if 'loss_queries' in row]
    assert len(logged['whole']) == 4 and logged['whole'][-2:] == logged['rest']
    state = torch.load(tmp_path / 'whole' / 'iter_4.pth', weights_only=False)['state_dict']
    build_model(dino(classes=10), 'mmdet').load_state_dict(state)
