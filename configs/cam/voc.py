# M0 on VOC 2012: plain CAM, ResNet-50 (ImageNet), output stride 8.
_base_ = [
    '../_base_/models/cam_r50-d8.py',
    '../_base_/datasets/voc.py',
    '../_base_/schedules/sgd_poly.py',
    '../_base_/default_runtime.py',
]
