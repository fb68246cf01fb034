# The head of DSCNet as the paper has it, without the pixel-wise term of Eq. 13. A config with
# `_base_ = [CAM CONFIG, this file]` takes it as `_base_.dsc_head`.
dsc_head = dict(
    type='DSCHead',
    pgcl=dict(type='PGCLLoss', loss_weight=0.6),
    sgcl=dict(type='SGCLLoss', loss_weight=0.4),
    dual_stream=True,
)
