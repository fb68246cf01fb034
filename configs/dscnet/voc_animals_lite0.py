# M4 on voc_animals with EfficientNet-Lite0.
_base_ = '../cam/voc_animals_lite0.py'
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
