# M4 on VOC 2012 with parameters, gradients and the optimiser's state sharded over the GPUs (FSDP).
# The same training as voc.py; test and export its checkpoints with voc.py. On gloo ranks a small
# network gives the numbers of one process to rounding (tests/test_exact_parallel.py); not run on
# GPUs yet. On a CPU set strategy.model_wrapper.device_id=cpu and another state_dict_cfg: torch
# 2.13 crashes there when 'full' offloads a state. mmengine's EMAHook cannot copy a sharded model.
_base_ = './voc.py'
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        # Parts of the backbone. A head must stay whole: it is not called through its forward, where
        # FSDP would collect its parameters.
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
            min_num_params=10_000_000,
        ),
    ),
    # One whole file a checkpoint, which every tool reads.
    state_dict_cfg='full',
)
