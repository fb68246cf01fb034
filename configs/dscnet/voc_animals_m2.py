# M2: the graph contrast alone.
_base_ = './voc_animals.py'
# The threshold that suits the plain CAMs of M3 on train.
model = dict(decode_head=dict(pgcl=None, dual_stream=False, bg_thr=0.14))
