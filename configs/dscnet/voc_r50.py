# M4 on VOC 2012 without SEAM: the head that did best on voc_animals on the plain CAM network with
# ResNet-50. Not run yet.
_base_ = ['../cam/voc.py', '../_base_/models/dsc_head.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
