# OFD's and LONDON's schedule: 100 epochs, a tenth of the learning rate every 30.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(nesterov=True))
