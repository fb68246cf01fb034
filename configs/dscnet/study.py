# The ablation study; the protocol and what came out is in STUDY.md. One command, resumable:
#   python tools/analysis_tools/ablation.py configs/dscnet/study.py --work-dir work_dirs/study
# The frozen parts want the features that the heads of the *_frozen.py configs say how to store.
head = 'model.decode_head.'
seeds = [0, 1, 2]
# The pixel-wise term of Eq. 13, with thresholds that were chosen on train.
pixel_term = {
    head + 'pseudo_label': dict(type='PseudoLabelLoss', loss_weight=0.1),
    head + 'bg_thr': 0.2,
    head + 'fg_thr': 0.4,
}
no_pixel_term = {
    head + 'pseudo_label': None,
    head + 'bg_thr': 0.25,
    head + 'fg_thr': None,
    head + 'refined_cls_weight': 1.0,
}
prototypes = dict(type='PixelPrototypeLoss')
pixels = dict(type='PixelContrastLoss')


def dscnet(base, alpha=None, beta=None, stream=False, pixel_contrast=None, pixel=False):
    """Say what an arm is made of: the weights of PGCL and SGCL, the dual stream, the pixel term."""
    arm = {
        'base': base,
        head + 'pgcl': alpha and dict(type='PGCLLoss', loss_weight=alpha),
        head + 'sgcl': beta and dict(type='SGCLLoss', loss_weight=beta),
        head + 'dual_stream': stream,
        head + 'pixel_contrast': pixel_contrast,
    }
    return {**arm, **(pixel_term if pixel else no_pixel_term)}


def table_iv(cam, dsc):
    """List the arms of Table IV: with the weights of the paper, and with the pixel-wise term."""
    return {
        'M0': dict(base=cam),
        'M1': dscnet(dsc, alpha=0.6),
        'M2': dscnet(dsc, beta=0.4),
        'M3': dscnet(dsc, alpha=0.6, beta=0.4),
        'M4': dscnet(dsc, alpha=0.6, beta=0.4, stream=True),
        'PPC': dscnet(dsc, pixel_contrast=prototypes),
        'M0+pixel': dict(base=cam, **pixel_term),
        'M1+pixel': dscnet(dsc, alpha=0.1, pixel=True),
        'M2+pixel': dscnet(dsc, beta=0.1, pixel=True),
        'M3+pixel': dscnet(dsc, alpha=0.1, beta=0.1, pixel=True),
        'M4+pixel': dscnet(dsc, alpha=0.1, beta=0.1, stream=True, pixel=True),
        'PPC+pixel': dscnet(dsc, pixel_contrast=prototypes, pixel=True),
    }


frozen = '../cam/voc_animals_frozen.py'
dsc_frozen = 'voc_animals_frozen.py'
lite0 = '../cam/voc_animals_lite0_frozen.py'
tuned = '../cam/voc_animals.py'


# Two runs on two cores; how many processes read the images is of no matter to the result.
two_cores = {
    'train_dataloader.num_workers': 1,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
}


def m4(changes):
    """Change M4 with the weights of the paper."""
    return {**dscnet(dsc_frozen, alpha=0.6, beta=0.4, stream=True), **changes}


def m4_pixel(changes):
    """Change M4 with the pixel-wise term."""
    return {**dscnet(dsc_frozen, alpha=0.1, beta=0.1, stream=True, pixel=True), **changes}


def warm_up(share):
    """Change the share of the steps without contrast."""
    return {'custom_hooks': [dict(type='ContrastWarmupHook', share=share)]}


def losses(key, value):
    """Change one setting of both contrasts."""
    return {f'{head}pgcl.{key}': value, f'{head}sgcl.{key}': value}


def batch(size, epochs):
    """Change the images of a step, at an equal number of steps."""
    return {
        'train_dataloader.batch_size': size,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'default_hooks.checkpoint.interval': epochs,
    }


class_pairs = {'train_dataloader.sampler': dict(_delete_=True, type='GroupSampler', group_size=2)}
random_batches = {
    'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True)
}

parts = dict(
    frozen=dict(
        title='Table IV on stored features of MobileNetV2',
        base=frozen,
        judge='val',
        seeds=seeds,
        arms=table_iv(frozen, dsc_frozen),
    ),
    frozen_lite0=dict(
        title='Table IV on stored features of EfficientNet-Lite0',
        base=lite0,
        judge='val',
        seeds=seeds,
        arms=table_iv(lite0, 'voc_animals_lite0_frozen.py'),
    ),
    tuned=dict(
        title='Table IV on MobileNetV2, fine-tuned',
        base=tuned,
        judge='val',
        seeds=seeds,
        options=two_cores,
        arms={
            name: arm
            for name, arm in table_iv(tuned, 'voc_animals.py').items()
            if name in ('M0', 'M0+pixel', 'M4+pixel', 'PPC+pixel')
        },
    ),
    tuned_order=dict(
        title='The order of the arms on MobileNetV2, fine-tuned',
        base=tuned,
        judge='val',
        seeds=seeds,
        options=two_cores,
        arms={
            name: arm
            for name, arm in table_iv(tuned, 'voc_animals.py').items()
            if name[2:] == '+pixel'
        },
    ),
    seam=dict(
        title='Table IV on SEAM, MobileNetV2, fine-tuned',
        base='../seam/voc_animals.py',
        judge='val',
        seeds=seeds,
        options=two_cores,
        arms={
            name: arm
            for name, arm in table_iv('../seam/voc_animals.py', 'voc_animals_seam.py').items()
            if name in ('M0', 'M0+pixel', 'M4+pixel')
        },
    ),
    switches=dict(
        title='One switch at a time, on stored features of MobileNetV2',
        base=dsc_frozen,
        judge='train',
        seeds=seeds,
        arms={
            'M4': m4({}),
            'M0': dict(base=frozen),
            'M0,class_pairs': dict(base=frozen, **class_pairs),
            'no_background_group': m4({head + 'grouping': dict(background=False)}),
            'no_Lloyd_round': m4({head + 'grouping': dict(num_rounds=0)}),
            'seeds_by_CAM_0.3': m4({head + 'grouping': dict(min_cam=0.3)}),
            'members_from_0.0': m4({head + 'grouping': dict(min_correlation=0.0)}),
            'members_from_0.8': m4({head + 'grouping': dict(min_correlation=0.8)}),
            'members_below_0.5,as_printed': m4({head + 'grouping': dict(keep_outliers=True)}),
            'positives_from_0.5': m4(losses('min_correlation', 0.5)),
            'denominator_as_printed': m4(losses('positive_in_denominator', False)),
            'temperature_0.05': m4(losses('temperature', 0.05)),
            'temperature_0.2': m4(losses('temperature', 0.2)),
            'temperature_0.5': m4(losses('temperature', 0.5)),
            '32_channels': m4({head + 'embed_channels': 32}),
            '256_channels': m4({head + 'embed_channels': 256}),
            'no_memory': m4({head + 'memory_momentum': None}),
            'memory_0.99': m4({head + 'memory_momentum': 0.99}),
            'no_warm-up': m4(warm_up(0.0)),
            'warm-up_0.5': m4(warm_up(0.5)),
            'no_graph_round': m4({head + 'graph_rounds': 0}),
            'two_graph_rounds': m4({head + 'graph_rounds': 2}),
            'graph_convolution': m4({head + 'graph_attention': False}),
            'reads_own_image': m4({head + 'stream_scope': 'image'}),
            'context_detached': m4({head + 'detach_context': True}),
            'random_batches': m4(random_batches),
            'batch_4': m4(batch(4, 5)),
            'batch_8': m4(batch(8, 10)),
            'batch_32': m4(batch(32, 40)),
            'stride_16': m4(
                {
                    'train_dataloader.dataset.pipeline': [
                        dict(
                            type='LoadStoredFeatures',
                            folder='work_dirs/features/mobilenet_v2_short288',
                            keep=True,
                        ),
                        dict(type='CropFeatures', size=18, step=1),
                        dict(type='RandomFlip', prob=0.5),
                        dict(type='PackWSSSInputs'),
                    ],
                }
            ),
            'pixel_contrast_Eq.3': dscnet(dsc_frozen, pixel_contrast=pixels),
            'M4+pixel': m4_pixel({}),
            'M4+pixel,paper_weights': dscnet(
                dsc_frozen, alpha=0.6, beta=0.4, stream=True, pixel=True
            ),
            'M4+pixel,reads_own_image': m4_pixel({head + 'stream_scope': 'image'}),
            'M4+pixel,refined_labels_itself': m4_pixel(
                {
                    head + 'pseudo_label_source': 'refined',
                    head + 'pseudo_label_pupil': 'refined',
                }
            ),
            'M4+pixel,refined_unclassified': m4_pixel({head + 'refined_cls_weight': 0.0}),
            'M4+pixel,refined_classified_by_1': m4_pixel({head + 'refined_cls_weight': 1.0}),
            'M4+pixel_of_0.3': m4_pixel({head + 'pseudo_label.loss_weight': 0.3}),
        },
    ),
    weights=dict(
        title='Weights of the contrasts (Fig. 6), on stored features of MobileNetV2',
        base=dsc_frozen,
        judge='train',
        seeds=seeds,
        options={key: value for key, value in m4({}).items() if key != 'base'},
        grid=dict(
            x=('alpha (PGCL)', head + 'pgcl.loss_weight', [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            y=('beta (SGCL)', head + 'sgcl.loss_weight', [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ),
    ),
)
