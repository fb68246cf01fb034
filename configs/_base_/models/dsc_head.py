# The head of DSCNet with what helped on photographs (configs/dscnet/STUDY.md), for any CAM network
# with three outputs or more. A config with `_base_ = [CAM CONFIG, this file]` takes it as
# `_base_.dsc_head`: the bases of a config may not both have a `model`.
dsc_head = dict(
    type='DSCHead',
    # The paper's weights are 0.6 and 0.4.
    pgcl=dict(type='PGCLLoss', loss_weight=0.1),
    sgcl=dict(type='SGCLLoss', loss_weight=0.1),
    # Pixels are grouped by the last three levels of the backbone, from centres seeded by sure CAMs,
    # and read the classes of their groups.
    dual_stream=True,
    reading='classes',
    group_index=(-3, -2, -1),
    grouping=dict(num_rounds=2, min_cam=0.5),
    # The pixel-wise term of Eq. 13: CAMs below 0.2 are background, above 0.4 their class.
    pseudo_label=dict(type='PseudoLabelLoss', loss_weight=0.1),
    online_labels=dict(bg_thr=0.2, fg_thr=0.4),
    # What pixels read is a share: best cut on train at 0.61 (frozen), 0.63 (SEAM) and 0.68.
    bg_thr=0.65,
)
