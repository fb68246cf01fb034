# M4 on VOC 2012 as the paper has it, DSCNet on SEAM with ResNet38d: its weights of the contrasts,
# class nodes, a second classifier. Not run yet. Its M1 to M3 are this with, among --cfg-options,
# model.decode_head.dual_stream=False and one of sgcl=None and pgcl=None, or neither.
# The exported CAM is the refined one after the pixel correlation: the correlation is trained on the
# refined CAMs, and what enters the pipeline then differs from SEAM's by what DSCNet adds alone.
_base_ = ['../seam/voc.py', '../_base_/models/dsc_head_as_printed.py']
model = dict(decode_head=_base_.dsc_head)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
