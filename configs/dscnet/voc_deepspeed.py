# M4 on VOC 2012 with gradients and the optimiser's state sharded over the GPUs (DeepSpeed, ZeRO 2).
# The same training as voc.py. Needs `pip install deepspeed` and CUDA; not run yet.
# No strategy.fp16 and no strategy.bf16 here: DeepSpeed would round the class memory, a buffer, too.
_base_ = './voc.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
