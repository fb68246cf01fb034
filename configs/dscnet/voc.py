# M4 on VOC 2012, the paper's DSCNet + SEAM: both contrasts and the dual stream on SEAM with
# ResNet38d. The same 8 images a step, schedule and augmentation as SEAM. Not run yet.
# The exported CAM is the refined one after the pixel correlation: the correlation is trained on the
# refined CAMs, and what enters the pipeline then differs from SEAM's by what DSCNet adds alone.
# model.test_cfg.refine=False gives that of the plain classifier.
_base_ = '../seam/voc.py'
model = dict(
    decode_head=dict(
        type='DSCHead',
        pgcl=dict(type='PGCLLoss', loss_weight=0.6),
        sgcl=dict(type='SGCLLoss', loss_weight=0.4),
        dual_stream=True,
    )
)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
