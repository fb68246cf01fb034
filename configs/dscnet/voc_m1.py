# M1: the group contrast alone.
_base_ = './voc.py'
# The threshold that suits the plain CAMs of M3 on train of voc_animals.
model = dict(decode_head=dict(sgcl=None, dual_stream=False, bg_thr=0.12))
