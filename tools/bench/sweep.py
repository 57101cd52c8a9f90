"""Distil every published model of the host libraries from itself, one training step each, and count what happens.

    python tools/bench/sweep.py OUT.jsonl [--only TEXT …] [--one-a-folder] [--timeout 900] [--large] [--table]

Each config whose model no earlier one has is the student and, with weights saved to a file, its own teacher: taps
'backbone', 'neck' and 'logits' as far as it has them, FitNets on the last stage and the last level, KD on the class
scores; two made-up images of the smallest size on which the host trains it. Each runs in a process of its own. OUT gets
one JSON line a config; a second call goes on where the first ended. The table counts:

    distils   built, rehearsed, one step
    refused   a preset, or a term on it, was refused in a sentence, and the rest distils
    large     above 400 million parameters: not run without --large
    host      the host alone does not build it or train it here on such images
    else      anything else
"""

import argparse
import copy
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

KINDS = ('distils', 'refused', 'large', 'host', 'else')
SIZES = (64, 96, 128, 192, 224, 256, 384, 448, 512, 640, 1024)
LARGE = 400e6


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='the file of JSON lines')
    p.add_argument('--only', nargs='+', default=[''], metavar='TEXT', help='only configs whose name holds one of these')
    p.add_argument('--one-a-folder', action='store_true', help='only the first config of each folder')
    p.add_argument('--timeout', type=float, default=900, help='seconds a config')
    p.add_argument('--large', action='store_true', help='models above 400 million parameters, too')
    p.add_argument('--table', action='store_true', help='only print the table')
    p.add_argument('--config', help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.config:
        return print(json.dumps(distil(args.config, args.large)))
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done, models, folders = ({row[key] for row in rows} for key in ('config', 'model', 'folder'))
    for name in () if args.table else published():
        folder = name.rpartition('/')[0]
        if name in done or not any(text in name for text in args.only) or (args.one_a_folder and folder in folders):
            continue
        model = fingerprint(name)
        if model is None or model in models:
            continue
        models.add(model)
        folders.add(folder)
        rows.append(dict(config=name, folder=folder, model=model) | in_a_process(name, args))
        with args.out.open('a') as file:
            file.write(json.dumps(rows[-1]) + '\n')
        print(rows[-1]['kind'].ljust(8), name, rows[-1].get('why', ''), flush=True)
    print(table(rows))


def published() -> list[str]:
    """The names of all configs, such as ``'mmseg::fcn/fcn_r50-d8_….py'``."""
    names = []
    for host in ('mmpretrain', 'mmseg', 'mmdet'):
        folder = Path(importlib.util.find_spec(host).origin).parent / '.mim' / 'configs'
        found = sorted(path.relative_to(folder) for path in folder.rglob('*.py'))
        names += [f'{host}::{path}' for path in found if '_base_' not in path.parts and len(path.parts) > 1]
    return names


def fingerprint(name: str) -> str | None:
    """A hash of the config's model dict; None if it has none."""
    from lckd_mm.hosts import read_model_config

    try:
        model, _ = read_model_config(name, 'sweep')
    except Exception as error:
        return None if isinstance(error, KeyError) else f'unreadable: {name}'
    return hashlib.sha1(json.dumps(without_files(model), sort_keys=True, default=str).encode()).hexdigest()


def without_files(node):
    """A config without the addresses of pretrained weights."""
    if isinstance(node, dict):
        for key, value in node.items():
            files = key == 'pretrained' or (key == 'init_cfg' and 'Pretrained' in str(value))
            node[key] = None if files else without_files(value)
    elif isinstance(node, list):
        node[:] = [without_files(value) for value in node]
    return node


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, '-W', 'ignore', __file__, str(args.out), '--config', name, *['--large'] * args.large]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, cwd=ROOT)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return dict(kind='else', why=f'more than {args.timeout:g} s')
    except (IndexError, ValueError):
        return dict(kind='else', why=f'exit status {done.returncode}: {" ".join(done.stderr.split())[-400:]}')


def distil(name: str, large: bool) -> dict:
    """One row: its kind, why, the taps of each preset, and the sentences of those refused."""
    import torch
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope

    from lckd_mm.cli.launch import replace_sync_bn
    from lckd_mm.errors import one_line
    from lckd_mm.hosts import build_model, read_model_config
    from lckd_mm.taps.presets import PRESETS, preset_taps

    warnings.simplefilter('ignore')
    MMLogger.get_instance('sweep', log_level='ERROR')
    MessageHub.get_current_instance().update_info('iter', 0)  # mmdet's resizing of whole batches asks for it
    try:
        model, scope = read_model_config(name, 'sweep')
        replace_sync_bn(without_files(model))
    except Exception as error:
        return dict(kind='host', why=one_line(error))
    with DefaultScope.overwrite_default_scope(scope or 'mmengine'), tempfile.TemporaryDirectory() as folder:
        try:
            torch.manual_seed(1)
            plain = build_model(model, scope)
            count = sum(p.numel() for p in plain.parameters())
            if count > LARGE and not large:
                return dict(kind='large', parameters=count)
            plain.init_weights()
            size = smallest_size(plain, model, scope)
        except Exception as error:
            return dict(kind='host', why=one_line(error))
        torch.save(dict(state_dict=plain.state_dict()), os.path.join(folder, 'teacher.pth'))
        taps, refused = {}, {}
        for preset in PRESETS:
            try:
                taps[preset] = preset_taps(plain, preset, (size, size))
            except ValueError as error:
                refused[preset] = one_line(error)
        row = dict(parameters=count, size=size, taps=taps, refused=refused)
        del plain
        while taps:
            try:
                step(model, scope, os.path.join(folder, 'teacher.pth'), taps, size)
                return row | dict(kind='refused' if refused else 'distils', why='; '.join(refused.values()))
            except (ValueError, KeyError, TypeError) as error:
                # A sentence about a term or a tap: without the preset that it is about, the rest has to distil.
                about = next(
                    (preset for preset in PRESETS if f"'loss_{preset}'" in str(error) and preset in taps), None
                )
                if about is None:
                    return row | dict(kind='else', why=one_line(error))
                refused[about] = one_line(error)
                del taps[about]
            except Exception as error:
                return row | dict(kind='else', why=one_line(error))
        return row | dict(kind='else', why='; '.join(refused.values()))


def batch_of(model, size: int) -> dict:
    import torch

    from lckd_mm.hosts import fabricate_samples

    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=fabricate_samples(model, 2, (size, size)))


def smallest_size(plain, config: dict, scope: str) -> int:
    """The side of the smallest images on which the host trains the model, which its preprocessor then pads to."""
    import torch

    errors = []
    for size in SIZES:
        model = copy.deepcopy(plain).train()
        if getattr(model.data_preprocessor, 'size', None) is not None:
            config['data_preprocessor']['size'] = model.data_preprocessor.size = (size, size)
        try:
            with torch.no_grad():
                model.parse_losses(model(**model.data_preprocessor(batch_of(model, size), True), mode='loss'))
        except Exception as error:
            errors.append(error)
            continue
        plain.data_preprocessor = model.data_preprocessor
        return size
    raise errors[-1]


def step(model: dict, scope: str, checkpoint: str, taps: dict, size: int) -> None:
    """Build the distiller, and train it for one step: every loss finite, every term there."""
    import torch
    from mmengine.optim import build_optim_wrapper

    from lckd_mm.hosts import build_model

    kd = dict(loss=dict(type='lckd_mm.KDLoss'), on=list(taps.get('logits', ())))
    fitnets = dict(type='lckd_mm.FitNetsLoss')
    terms = {f'loss_{p}': dict(loss=fitnets, on=list(taps[p])[-1]) for p in ('backbone', 'neck') if p in taps}
    distiller = build_model(
        dict(
            type='lckd_mm.Distiller',
            student=model,
            teacher=dict(model=model, checkpoint=checkpoint),
            taps=list(taps),
            terms=terms | (dict(loss_logits=kd) if 'logits' in taps else {}),
            dry_run_size=size,
        ),
        scope,
    )
    distiller.init_weights()
    wrapper = build_optim_wrapper(distiller, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3)))
    logged = distiller.train().train_step(batch_of(distiller.student, size), wrapper)
    missing = [name for name in distiller.terms if name not in logged or not torch.isfinite(logged[name]).all()]
    if missing:
        raise RuntimeError(f'{missing[0]} is not a finite loss')


def table(rows: list[dict]) -> str:
    """Counts by host and kind, then what is neither distilled nor refused in a sentence."""
    from lckd_mm.reporting import table

    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        counts[row['config'].partition('::')[0]][row['kind']] += 1
    lines = [(host, *(str(counts[host][kind]) for kind in KINDS)) for host in counts]
    lines.append(('all', *(str(sum(c[kind] for c in counts.values())) for kind in KINDS)))
    odd = [f'{row["kind"]}: {row["config"]}: {row["why"]}' for row in rows if row['kind'] in ('host', 'else')]
    return '\n'.join([table(['', *KINDS], lines), '', *odd])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
