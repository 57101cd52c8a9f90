"""Checks of tools/bench/razor.py with both libraries in one process: equal losses, and reactions to mistakes.

python tools/bench/razor_compare.py WORK_DIR TEACHER CHECKPOINT --out FILE
"""

import argparse
import contextlib
import copy
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from razor_side import import_mmrazor, read


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('work_dir', type=Path)
    p.add_argument('teacher', type=Path, help='the weights alone')
    p.add_argument('checkpoint', type=Path, help='the same as mmengine wrote it')
    p.add_argument('--steps', type=int, default=5)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--options', type=json.loads, default={})
    args = p.parse_args(argv)
    import_mmrazor()
    # Before anything of lckd_mm, which changes how torch reads mmengine's files.
    own_file = reading(args.checkpoint)
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')
    MMLogger.get_instance('razor', log_level='ERROR')
    sides = {s: read(s, args.work_dir, args.teacher, args.options) for s in ('lckd_mm', 'mmrazor')}
    result = equality(sides, args.steps)
    result['mistakes'] = [own_file, *mistakes(sides, args.work_dir, result.pop('batch'))]
    # Remove the work_dir, which errors may mention.
    args.out.write_text(json.dumps(result).replace(f'{args.work_dir}/', ''))


def build(cfg: Any) -> Any:
    import torch
    from mmengine.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    model.train()  # not chained: SingleTeacherDistill.train returns None
    return model


def equality(sides: dict, steps: int) -> dict[str, Any]:
    """Train both from the same student weights on the same batches; compare the first step's losses and gradients, and
    the final weights.

    Differences are relative: a loss to its value, all gradients or weights together to their norm. KDLoss ignores no
    label here, because KLDivergence does not use labels. Runs in float64: AdamW's first steps have the size of the
    learning rate whatever the gradient, so a float32 rounding error could become a different update. Uses two images
    per batch, since that is slow.
    """
    import torch
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import Runner

    cfg = copy.deepcopy(sides['lckd_mm'])
    cfg.merge_from_dict({'model.terms.loss_kd.loss.ignore_index': -1, 'train_dataloader.batch_size': 2})
    sides = dict(sides, lckd_mm=cfg)
    models = {side: build(c) for side, c in sides.items()}
    for model in models.values():
        model.double()
    ours, theirs = models.values()
    students = dict(lckd_mm=ours.student, mmrazor=theirs.architecture)
    theirs.architecture.load_state_dict(ours.student.state_dict())
    same_teacher = all(
        torch.equal(a, b)
        for a, b in zip(ours.teacher.model.state_dict().values(), theirs.teacher.state_dict().values(), strict=True)
    )
    wrappers = {side: build_optim_wrapper(m, copy.deepcopy(cfg.optim_wrapper)) for side, m in models.items()}
    loader = iter(Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0))
    result = dict(same_teacher=same_teacher, steps=steps)
    for step in range(steps):
        batch = next(loader)
        for side, model in models.items():
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            losses = model(data['inputs'].double(), data['data_samples'], mode='loss')
            total, logged = model.parse_losses(losses)
            if step == 0:
                # mmrazor's names are student.decode.loss_ce and distill.loss_kd.
                names = {k.removeprefix('student.').removeprefix('distill.'): float(v) for k, v in logged.items()}
                result[side] = {k: v for k, v in names.items() if 'loss' in k}
                result[f'{side}_gradient'] = torch.autograd.grad(
                    total, list(students[side].parameters()), retain_graph=True, allow_unused=True
                )
            wrappers[side].update_params(total)
        if step == 0:
            result['batch'] = batch
            result |= conventions(models, batch)
    result['losses'] = {k: relative(v, result['mmrazor'][k]) for k, v in result['lckd_mm'].items()}
    gradients = [
        torch.cat([g.flatten() for g in result.pop(f'{side}_gradient') if g is not None]).double() for side in sides
    ]
    weights = [torch.cat([x.detach().flatten() for x in s.parameters()]).double() for s in students.values()]
    result['gradient'], result['weights'] = (float((a - b).norm() / b.norm()) for a, b in (gradients, weights))
    return result


def conventions(models: dict, batch: dict) -> dict[str, float]:
    """mmrazor's KLDivergence and KDLoss on the same class scores, with its default reduction and with this config's.

    The first is a ratio over all positions, the second a relative difference; there KDLoss skips ignored positions.
    """
    import torch
    from mmengine.registry import MODELS

    from lckd_mm.losses import KDLoss

    ours = models['lckd_mm']
    data = ours.data_preprocessor(copy.deepcopy(batch), True)
    inputs, samples = data['inputs'].double(), data['data_samples']
    with torch.no_grad(), ours.student_taps.record(ours.student, ['logits']) as s:
        ours.student(inputs, samples, mode='tensor')
    t = ours.teacher(ours.teacher_taps, ['logits'], inputs, samples)
    pair = s['logits'], t['logits']
    by_default, by_mean = (
        MODELS.build(dict(type='mmrazor.KLDivergence', tau=2.0, **more))(*pair)
        for more in ({}, dict(reduction='mean', loss_weight=pair[0].shape[1]))
    )
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    return dict(
        batchmean=float(by_default / KDLoss(tau=2.0)(*pair)),
        ignored=float((labels == 255).float().mean()),
        ignored_kd=relative(float(KDLoss(tau=2.0)(*pair, samples)), float(by_mean)),
    )


def relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), 1e-30)


def attempt(run: Callable[[], str]) -> str:
    """What ``run`` returns, or its error as text."""
    try:
        # mmengine prints the file that it loads.
        with contextlib.redirect_stdout(io.StringIO()):
            return run()
    except Exception as error:
        text = re.sub(r'\x1b\[\d*m', '', str(error.args[0]) if error.args else str(error))
        return f'{type(error).__name__}: {" ".join(text.split())}'


def reading(checkpoint: Path) -> dict[str, str]:
    """Read mmengine's own checkpoint as the teacher's file, first before anything of lckd_mm is imported."""
    from mmengine.runner.checkpoint import load_from_local

    theirs = attempt(lambda: f'read, {len(load_from_local(str(checkpoint), "cpu"))} entries')
    from lckd_mm.storage.checkpoint import read_checkpoint

    ours = attempt(lambda: f'read, {len(read_checkpoint(str(checkpoint), "teacher"))} entries')
    return dict(what="the teacher's checkpoint as mmengine wrote it", mmrazor=theirs, lckd_mm=ours)


def mistakes(sides: dict, work_dir: Path, batch: dict) -> list[dict[str, str]]:
    """Four mistakes, each made with both libraries, and their outcomes."""
    import torch

    def trained(side: str, change: dict) -> Any:
        """The model of a changed config, after one forward and backward pass."""
        cfg = copy.deepcopy(sides[side])
        cfg.merge_from_dict(change)
        model = build(cfg)
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        model.truth = {}
        if side == 'mmrazor':
            # Copy the output immediately, before a later module can overwrite it in place.
            model.architecture.backbone.layer2[1].bn2.register_forward_hook(
                lambda _, __, output: model.truth.update(bn2=output.detach().clone())
            )
        total, _ = model.parse_losses(model(**data, mode='loss'))
        total.backward()
        return model

    def tapped(address: str) -> dict:
        ours = {
            'model.taps.tapped': address,
            'model.terms.loss_cwd.on': 'tapped',
            'model.terms.loss_cwd.connector': dict(type='lckd_mm.ConvBN'),
        }
        recorder = dict(type='ModuleOutputs', source=address)
        theirs = {
            'model.distiller.student_recorders.tapped': recorder,
            'model.distiller.teacher_recorders.tapped': dict(recorder),
            'model.distiller.connectors': dict(wider=dict(type='ConvModuleConnector', in_channel=16, out_channel=64)),
            'model.distiller.loss_forward_mappings.loss_cwd': dict(
                preds_S=dict(from_student=True, recorder='tapped', connector='wider'),
                preds_T=dict(from_student=False, recorder='tapped'),
            ),
        }
        return dict(lckd_mm=ours, mmrazor=theirs)

    def overwritten() -> str:
        model = trained('mmrazor', tapped('backbone.layer2.1.bn2')['mmrazor'])
        recorded = model.distiller.student_recorders.get_recorder('tapped').data_buffer[0]
        wrong = float((recorded != model.truth['bn2']).float().mean())
        return f'trains; {wrong:.0%} of the values are no longer what bn2 returned, but its sum with the shortcut'

    def ambiguous() -> str:
        model = trained('mmrazor', tapped('backbone.layer2.1.relu')['mmrazor'])
        calls = len(model.distiller.student_recorders.get_recorder('tapped').data_buffer)
        return f'trains on the first of {calls} calls, the ReLU inside the block'

    def unconnected() -> str:
        change = tapped('backbone.layer2.1.conv2')['mmrazor']
        change |= {'model.architecture.backbone.with_cp': True}
        model = trained('mmrazor', change)
        recorded = model.distiller.student_recorders.get_recorder('tapped').data_buffer[0]
        return 'trains; the recorded tensor ' + ('has' if recorded.requires_grad else 'has no') + ' gradient'

    def wrong_file() -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            model = trained('mmrazor', {'model.teacher_ckpt': str(wrong)})
        said = 'prints the mismatches and trains' if 'size mismatch' in printed.getvalue() else 'trains'
        loaded = torch.load(wrong)['state_dict']
        weights = {k: v for k, v in model.teacher.state_dict().items() if v.dim() > 1}
        taken = sum(k in loaded and torch.equal(v, loaded[k]) for k, v in weights.items())
        return f'{said}; {taken} of {len(weights)} weight tensors of the teacher are from the file'

    wrong = work_dir / 'wrong.pth'
    torch.save(dict(state_dict=build(sides['lckd_mm']).student.state_dict()), wrong)
    ours = {
        'the output of `backbone.layer2.1.bn2`, overwritten in place by `out += identity`': (
            overwritten, tapped('backbone.layer2.1.bn2')['lckd_mm'],
        ),
        'the output of `backbone.layer2.1.relu`, which runs twice': (
            ambiguous, tapped('backbone.layer2.1.relu')['lckd_mm'],
        ),
        'a feature inside a block under reentrant activation checkpointing (`with_cp=True`)': (
            unconnected, tapped('backbone.layer2.1.conv2')['lckd_mm'] | {'model.student.backbone.with_cp': True},
        ),
        "another net's file as the teacher's": (wrong_file, {'model.teacher.checkpoint': str(wrong)}),
    }  # fmt: skip
    return [
        dict(
            what=what,
            mmrazor=attempt(theirs),
            lckd_mm=attempt(lambda change=change: bool(trained('lckd_mm', change)) and 'trains'),
        )
        for what, (theirs, change) in ours.items()
    ]


if __name__ == '__main__':
    main(sys.argv[1:])
