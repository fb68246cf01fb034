# The learning rate falls polynomially every step, to 0 at train_cfg.max_epochs.
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=8)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    ranks=dict(type='RankAgreementHook'),
    resume=dict(type='ExactResumeHook'),
    validation=dict(type='MissedValidationHook'),
)
