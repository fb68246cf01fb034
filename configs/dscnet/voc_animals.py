# M4 on voc_animals: both contrasts and the dual stream on the network of M0.
_base_ = '../cam/voc_animals.py'
model = dict(
    decode_head=dict(
        type='DSCHead',
        # Chosen on train images: see STUDY.md. The paper's weights are 0.6 and 0.4.
        pgcl=dict(type='PGCLLoss', loss_weight=0.1),
        sgcl=dict(type='SGCLLoss', loss_weight=0.1),
        # Pixels are grouped by three levels of the backbone, from centres seeded by sure CAMs, and
        # read the classes of their groups.
        dual_stream=True,
        reading='classes',
        group_index=(1, 2, 3),
        grouping=dict(num_rounds=2, min_cam=0.5),
        # The pixel-wise term of Eq. 13: CAMs below 0.2 are background, above 0.4 their class.
        pseudo_label=dict(type='PseudoLabelLoss', loss_weight=0.1),
        online_labels=dict(bg_thr=0.2, fg_thr=0.4),
        # What pixels read is a share: best cut at about 0.6 on train.
        bg_thr=0.6,
    )
)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
