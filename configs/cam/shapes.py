# M0 on shapes: plain CAM, a narrow ResNet-18 from scratch.
_base_ = [
    '../_base_/models/cam_r18-small.py',
    '../_base_/datasets/shapes.py',
    '../_base_/schedules/adamw_poly.py',
    '../_base_/default_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(_delete_=True))
