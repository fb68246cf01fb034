# M4 on shapes, as printed: both contrasts and the dual stream on the network of M0.
_base_ = ['../cam/shapes.py', '../_base_/models/dsc_head_as_printed.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
