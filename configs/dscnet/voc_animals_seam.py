# DSCNet on SEAM on voc_animals: M4 with every image seen in two views.
# The exported CAM is the refined one after the pixel correlation: it is what SEAM exports, made of
# what DSCNet refined. model.test_cfg.refine=False gives that of the plain classifier.
_base_ = '../seam/voc_animals.py'
model = dict(
    decode_head=dict(
        type='DSCHead',
        # Chosen on train images: see STUDY.md. The paper's weights are 0.6 and 0.4.
        pgcl=dict(type='PGCLLoss', loss_weight=0.1),
        sgcl=dict(type='SGCLLoss', loss_weight=0.1),
        dual_stream=True,
        # With its own groups alone an image would tell its labels to the refined classifier.
        stream_scope='batch',
        refined_cls_weight=0.5,
        # The pixel-wise term of Eq. 13: CAMs below 0.2 are background, above 0.4 their class.
        pseudo_label=dict(type='PseudoLabelLoss', loss_weight=0.1),
        pseudo_label_source='plain',
        pseudo_label_pupil='both',
        bg_thr=0.2,
        fg_thr=0.4,
    )
)
train_dataloader = dict(sampler=dict(_delete_=True, type='GroupSampler', group_size=2))
custom_hooks = [dict(type='ContrastWarmupHook', share=0.15)]
