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
# The same where the exported CAMs are cut at another threshold.
own_pixel_term = {
    head + 'pseudo_label': dict(type='PseudoLabelLoss', loss_weight=0.1),
    head + 'online_labels': dict(bg_thr=0.2, fg_thr=0.4),
}
no_pixel_term = {
    head + 'pseudo_label': None,
    head + 'online_labels': dict(bg_thr=0.25, fg_thr=None),
    head + 'refined_cls_weight': 1.0,
}
prototypes = dict(type='PixelPrototypeLoss')
pixels = dict(type='PixelContrastLoss')


# Eq. 10 and 11 by class nodes and a second classifier, as the paper has them.
nodes = {
    head + 'reading': 'nodes',
    head + 'group_index': None,
    head + 'grouping': None,
    head + 'stream_scope': 'image',
}


def dscnet(base, alpha=None, beta=None, stream=False, pixel_contrast=None, pixel=True):
    """Say what an arm is made of: the weights of PGCL and SGCL, the dual stream, the pixel term."""
    arm = {
        'base': base,
        head + 'pgcl': alpha and dict(type='PGCLLoss', loss_weight=alpha),
        head + 'sgcl': beta and dict(type='SGCLLoss', loss_weight=beta),
        head + 'dual_stream': stream,
        head + 'pixel_contrast': pixel_contrast,
    }
    return {**arm, **(own_pixel_term if pixel else no_pixel_term)}


def stream_of(arm, base, **options):
    """Judge the weights of an arm by what its pixels read of their groups."""
    return dict(weights_of=arm, **dscnet(base, stream=True, **options))


def table_iv(cam, dsc):
    """List the arms of Table IV and their controls. The dual stream is no part of the training."""
    return {
        'M0': dict(base=cam),
        'M0,stream': stream_of('M0', dsc, pixel=False),
        'M0+pixel': dict(base=cam, **pixel_term),
        'M0+pixel,stream': stream_of('M0+pixel', dsc),
        'M1': dscnet(dsc, alpha=0.1),
        'M2': dscnet(dsc, beta=0.1),
        'M3': dscnet(dsc, alpha=0.1, beta=0.1),
        'M4': stream_of('M3', dsc, alpha=0.1, beta=0.1),
        'PPC+pixel': dscnet(dsc, pixel_contrast=prototypes),
        'PPC+pixel,stream': stream_of('PPC+pixel', dsc, pixel_contrast=prototypes),
        'M4,as_printed': {
            **dscnet(dsc, alpha=0.6, beta=0.4, stream=True, pixel=False),
            **nodes,
        },
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
    """Change M4, trained of its own."""
    return {**dscnet(dsc_frozen, alpha=0.1, beta=0.1, stream=True), **changes}


def read_otherwise(changes):
    """Change what the pixels of M4 read."""
    return dict(weights_of='M4', **m4(changes))


def by_nodes(changes):
    """Change M4 with class nodes and a second classifier, without the pixel-wise term."""
    arm = dscnet(dsc_frozen, alpha=0.6, beta=0.4, stream=True, pixel=False)
    return {**arm, **nodes, head + 'stream_scope': 'batch', **changes}


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
# Eight images a batch, each in two crops and perhaps flipped, which are positives of each other.
two_views = {
    'train_dataloader.sampler': dict(
        _delete_=True, type='mmpretrain.RepeatAugSampler', num_repeats=2
    )
}


def load_features(name, keep=False):
    """Load the stored features of a network."""
    return dict(type='LoadStoredFeatures', folder=f'work_dirs/features/{name}', keep=keep)


def stride(network, step):
    """Store features of another name, and see cells of 16 pixels in a step."""
    judged = [
        load_features(f'{network}_scale1.5'),
        dict(type='LoadCheckedMask'),
        dict(type='PackWSSSInputs'),
    ]
    return {
        'train_dataloader.dataset.pipeline': [
            load_features(f'{network}_short288', keep=True),
            dict(type='CropFeatures', size=18, step=step),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackWSSSInputs'),
        ],
        'val_dataloader.dataset.pipeline': judged,
        'test_dataloader.dataset.pipeline': judged,
    }


stride_16 = stride('mobilenet_v2', step=1)
# Features of the network at output stride 8: stored as the others, with
#   --cfg-options model.backbone.strides=1,2,2,1,1,1,1 model.backbone.dilations=1,1,1,2,2,4,4
stride_8 = stride('mobilenet_v2_stride8', step=2)

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
            if name not in ('M1', 'M2', 'M4,as_printed')
        },
    ),
    tuned_order=dict(
        title='The contrasts one by one on MobileNetV2, fine-tuned',
        base=tuned,
        judge='val',
        seeds=seeds,
        options=two_cores,
        arms={
            name: arm
            for name, arm in table_iv(tuned, 'voc_animals.py').items()
            if name in ('M0+pixel', 'M1', 'M2', 'M3')
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
            if name in ('M0', 'M0,stream', 'M3', 'M4')
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
            # What pixels read, of the same weights.
            'level_32_only': read_otherwise({head + 'group_index': (2,)}),
            'levels_16_and_32': read_otherwise({head + 'group_index': (1, 2)}),
            'groups_by_embeddings': read_otherwise({head + 'group_index': None}),
            'no_Lloyd_round': read_otherwise({head + 'grouping.num_rounds': 0}),
            'one_Lloyd_round': read_otherwise({head + 'grouping.num_rounds': 1}),
            'four_Lloyd_rounds': read_otherwise({head + 'grouping.num_rounds': 4}),
            'seeds_by_all_CAMs': read_otherwise({head + 'grouping.min_cam': 0.0}),
            'seeds_by_CAM_0.4': read_otherwise({head + 'grouping.min_cam': 0.4}),
            'seeds_by_CAM_0.6': read_otherwise({head + 'grouping.min_cam': 0.6}),
            'stream_temperature_0.05': read_otherwise({head + 'temperature': 0.05}),
            'stream_temperature_0.3': read_otherwise({head + 'temperature': 0.3}),
            # How the contrasts train.
            'paper_weights': dscnet(dsc_frozen, alpha=0.6, beta=0.4, stream=True),
            'no_contrast': dscnet(dsc_frozen, stream=True),
            'pixel_contrast_Eq.3': dscnet(dsc_frozen, pixel_contrast=pixels, stream=True),
            'no_background_group': m4({head + 'grouping.background': False}),
            'members_from_0.0': m4({head + 'grouping.min_correlation': 0.0}),
            'members_from_0.8': m4({head + 'grouping.min_correlation': 0.8}),
            'members_below_0.5,as_printed': m4({head + 'grouping.keep_outliers': True}),
            'background_attracts': m4(losses('background_is_anchor', True)),
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
            'random_batches': m4(random_batches),
            'two_views_of_an_image': m4(two_views),
            'batch_4': m4(batch(4, 5)),
            'batch_8': m4(batch(8, 10)),
            'batch_32': m4(batch(32, 40)),
            'pixel_term_of_0.3': m4({head + 'pseudo_label.loss_weight': 0.3}),
            'no_pixel_term': m4(no_pixel_term),
            # The dual stream by class nodes and a second classifier.
            'nodes,own_image': by_nodes({head + 'stream_scope': 'image'}),
            'nodes,all_images': by_nodes({}),
            'nodes,context_detached': by_nodes({head + 'detach_context': True}),
            'nodes+pixel': by_nodes(
                {
                    **own_pixel_term,
                    head + 'pseudo_label_source': 'plain',
                    head + 'pseudo_label_pupil': 'both',
                    head + 'refined_cls_weight': 0.5,
                }
            ),
            'nodes+pixel,refined_labels_itself': by_nodes(own_pixel_term),
        },
    ),
    strides=dict(
        title='Cells of 16 pixels in a step, and a network at output stride 8, MobileNetV2, stored',
        base=dsc_frozen,
        judge='train',
        seeds=seeds,
        arms={
            'M0': dict(base=frozen),
            'M0,16': dict(base=frozen, **stride_16),
            'M0,8': dict(base=frozen, **stride_8),
            'M4': m4({}),
            'M4,16': m4(stride_16),
            'M4,8': m4(stride_8),
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
