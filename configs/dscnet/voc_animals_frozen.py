# M4 on stored features of a frozen MobileNetV2.
_base_ = ['../cam/voc_animals_frozen.py', '../_base_/models/dsc_head.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
