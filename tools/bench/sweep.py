"""Distil every published model of the host libraries from itself, one training step each, and count what happens.

    python tools/bench/sweep.py OUT.jsonl [--only TEXT …] [--timeout 900] [--large]

Each config whose model no earlier one has is the student and, with weights saved to a file, its own teacher: taps
'backbone', 'neck' and 'logits' as far as it has them, FitNets on the last stage and level, KD on the class scores; two
made-up images of the smallest size on which the host trains it. OUT gets one line a config; a second call goes on.

    distils   built, rehearsed, one step
    refused   a preset, or a term on it, was refused in a sentence, and the rest distils
    large     above 400 million parameters: not run without --large
    host      the host alone does not build it or train it here on such images; else: anything else
"""

import argparse
import copy
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

HOSTS = ('mmpretrain', 'mmseg', 'mmdet')
KINDS = ('distils', 'refused', 'large', 'host', 'else')


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='the file of JSON lines')
    p.add_argument('--only', nargs='+', default=[''], metavar='TEXT', help='only configs whose name holds one of these')
    p.add_argument('--timeout', type=float, default=900, help='seconds a config')
    p.add_argument('--large', action='store_true', help='models above 400 million parameters, too')
    p.add_argument('--config', help=argparse.SUPPRESS)  # in the process of one config
    args = p.parse_args(argv)
    if args.config:
        return print(json.dumps(distil(args.config, args.large)))
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done, models = ({row[key] for row in rows} for key in ('config', 'model'))
    for name in published():
        if name in done or not any(text in name for text in args.only) or (model := fingerprint(name)) in models:
            continue
        models.add(model)
        rows.append(dict(config=name, model=model) | in_a_process(name, args))
        with args.out.open('a') as file:
            file.write(json.dumps(rows[-1]) + '\n')
        print(rows[-1]['kind'].ljust(8), name, rows[-1].get('why', ''), flush=True)
    print(table(rows))


def published() -> Iterator[str]:
    """The names of all configs with a model, such as ``'mmseg::fcn/fcn_r50-d8_….py'``."""
    for host in HOSTS:
        folder = Path(importlib.util.find_spec(host).origin).parent / '.mim' / 'configs'
        yield from sorted(f'{host}::{path.relative_to(folder)}' for path in folder.glob('[!_]*/**/*.py'))


def fingerprint(name: str) -> str:
    """A hash of the config's model; of its name if it cannot be read, and one for all that have none."""
    from lckd_mm.hosts import read_model_config

    try:
        model = without_files(read_model_config(name, 'sweep')[0])
    except Exception as error:
        model = None if isinstance(error, KeyError) else name
    return hashlib.sha1(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()


def without_files(node):
    """A config without the addresses of pretrained weights."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        files = key == 'pretrained' or (key == 'init_cfg' and 'Pretrained' in str(value))
        node[key] = None if files else without_files(value)
    return node


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    """The row of :func:`distil`, or what ended its process."""
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
    from lckd_mm.errors import CLEAR, one_line
    from lckd_mm.hosts import build_model, read_model_config
    from lckd_mm.taps.presets import PRESETS, preset_taps

    MMLogger.get_instance('sweep', log_level='ERROR')
    MessageHub.get_current_instance().update_info('iter', 0)  # mmdet's resizing of whole batches asks for it
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, scope = read_model_config(name, 'sweep')
            replace_sync_bn(without_files(model))
            torch.manual_seed(1)
            plain = build_model(model, scope)
            if (count := sum(p.numel() for p in plain.parameters())) > 400e6 and not large:
                return dict(kind='large', parameters=count)
            with DefaultScope.overwrite_default_scope(scope):
                plain.init_weights()
                size = smallest_size(plain, model)
        except Exception as error:
            return dict(kind='host', why=one_line(error))
        teacher = dict(model=model, checkpoint=f'{folder}/teacher.pth')
        torch.save(dict(state_dict=plain.state_dict()), teacher['checkpoint'])
        taps, refused = {}, {}
        with DefaultScope.overwrite_default_scope(scope):
            for preset in PRESETS:
                try:
                    taps[preset] = preset_taps(plain, preset, (size, size))
                except ValueError as error:
                    refused[preset] = one_line(error)
            row = dict(kind='else', parameters=count, size=size, taps=taps, refused=refused)
            while taps:
                try:
                    step(model, scope, teacher, taps, size)
                    return row | dict(kind='refused' if refused else 'distils', why='; '.join(refused.values()))
                except Exception as error:
                    # A sentence about a preset's term: without this preset the rest has to distil.
                    about = [preset for preset in taps if f"'loss_{preset}'" in str(error)]
                    if not about or not isinstance(error, CLEAR):
                        return row | dict(why=one_line(error))
                    refused[about[0]] = one_line(error)
                    del taps[about[0]]
        return row | dict(why='; '.join(refused.values()))


def batch_of(model, size: int) -> dict:
    import torch

    from lckd_mm.hosts import fabricate_samples, image_channels

    images = torch.randint(0, 256, (2, image_channels(model), size, size), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=fabricate_samples(model, 2, (size, size)))


def smallest_size(plain, config: dict) -> int:
    """The side of the smallest images on which the host trains the model; its preprocessor then pads to it."""
    for size in (64, 96, 128, 192, 224, 256, 384, 448, 512, 640, 1024):
        if getattr(plain.data_preprocessor, 'size', None):
            config['data_preprocessor']['size'] = plain.data_preprocessor.size = (size, size)
        model = copy.deepcopy(plain).train()
        try:
            model.parse_losses(model(**model.data_preprocessor(batch_of(model, size), True), mode='loss'))
            return size
        except Exception as error:
            last = error
    raise last


def step(model: dict, scope: str, teacher: dict, taps: dict, size: int) -> None:
    """Build the distiller, rehearse a batch, and train for one step, which raises where a term is not finite."""
    from mmengine.optim import build_optim_wrapper

    from lckd_mm.contexts import saved_buffers
    from lckd_mm.hooks.rehearsal import rehearse, twin
    from lckd_mm.hosts import build_model

    terms = {f'loss_{p}': dict(loss=dict(type='lckd_mm.FitNetsLoss'), on=list(taps[p])[-1]) for p in taps}
    if 'logits' in taps:
        terms['loss_logits'] = dict(loss=dict(type='lckd_mm.KDLoss'), on=list(taps['logits']))
    config = dict(student=model, teacher=teacher, taps=list(taps), terms=terms, dry_run_size=size)
    distiller = build_model(dict(type='lckd_mm.Distiller', **config), scope)
    distiller.init_weights()
    wrapper = build_optim_wrapper(distiller, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3)))
    rehearse(twin(distiller.train()), wrapper, batch_of(distiller.student, size), saved_buffers(distiller))
    distiller.train_step(batch_of(distiller.student, size), wrapper)


def table(rows: list[dict]) -> str:
    """Counts by host and kind, then the configs that neither distil nor are refused in a sentence."""
    from lckd_mm.reporting import table

    counts = Counter((row['config'].partition('::')[0], row['kind']) for row in rows)
    lines = [(host, *(str(counts[host, kind]) for kind in KINDS)) for host in HOSTS]
    odd = [f'{row["kind"]}: {row["config"]}: {row["why"]}' for row in rows if row['kind'] in KINDS[3:]]
    return '\n'.join([table(['', *KINDS], lines), '', *odd])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
