# DSCNet on SEAM on voc_animals: M4 with every image seen in two views.
# The exported CAM is the refined one after the pixel correlation: it is what SEAM exports, made of
# what DSCNet refined. model.test_cfg.refine=False gives that of the plain classifier.
_base_ = ['../seam/voc_animals.py', '../_base_/models/dsc_head.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
