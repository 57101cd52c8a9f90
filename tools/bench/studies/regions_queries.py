# What regions=True and queries=True cost, beside features alone: DINO on COCO, Faster R-CNN on VOC. By overhead.py with
# --runs dino-alone dino-queries dino-matched, and with --base rcnn-features --runs rcnn-alone rcnn-regions.
title = 'Regions and queries: DINO, Faster R-CNN'
metric = dict(key='coco/bbox_mAP', title='box AP, %', scale=100)
work_dir = 'work_dirs/studies/regions-queries'
base = 'dino-features'

_queries = 'configs/coco/queries_dino-r50_dino-r18_8xb2-12e_coco.py'
_rcnn = 'configs/detection/{}faster-rcnn-r18_8xb2_voc0712.py'
_pair = _rcnn.format('ofd_faster-rcnn-r50_')


def _pkd(levels):
    return dict(loss_pkd=dict(loss=dict(type='lckd_mm.PKDLoss'), on=levels, weight=6.0))


_matched = dict(loss=dict(type='lckd_mm.MatchedQueryLoss'), on='scores', given=dict(boxes='boxes'))
_regions = dict(loss=dict(type='lckd_mm.KDLoss', tau=3.0), on='scores', regions=True)
runs = {
    'dino-alone': dict(config='configs/coco/dino-r18_8xb2-12e_coco.py', title='DINO: student alone'),
    'dino-features': dict(
        config=_queries,
        title='DINO: PKD',
        options={
            'model.taps': {f'p{i + 3}': f'neck[{i}]' for i in range(4)},
            'model.terms': dict(loss_queries=None, **_pkd(['p3', 'p4', 'p5', 'p6'])),
        },
        against='dino-alone',
    ),
    'dino-queries': dict(config=_queries, title='DINO: queries', against='dino-alone'),
    'dino-matched': dict(
        config=_queries,
        title='DINO: matched queries',
        options={
            'model.taps': dict(scores='bbox_head[0]', boxes='bbox_head[1]'),
            'model.terms': dict(loss_queries=None, loss_matched=_matched),
        },
        against='dino-alone',
    ),
    'rcnn-alone': dict(config=_rcnn.format(''), title='Faster R-CNN: student alone'),
    'rcnn-features': dict(
        config=_pair,
        title='Faster R-CNN: PKD',
        options={'model.terms': dict(loss_ofd=None, **_pkd(['p2', 'p3', 'p4', 'p5']))},
        against='rcnn-alone',
    ),
    'rcnn-regions': dict(
        config=_pair,
        title='Faster R-CNN: regions',
        options={'model.terms': dict(loss_ofd=None, loss_kd=_regions)},
        against='rcnn-alone',
    ),
}
