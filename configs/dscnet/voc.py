# M4 on VOC 2012, DSCNet on SEAM with ResNet38d: the head that did best on voc_animals, with the 8
# images a step, schedule and augmentation of SEAM. Not run yet. voc_as_printed.py has the paper's
# head.
# The exported CAM is the refined one after the pixel correlation, as in voc_animals_seam.py.
# model.test_cfg.refine=False gives that of the plain classifier.
_base_ = ['../seam/voc.py', '../_base_/models/dsc_head.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
