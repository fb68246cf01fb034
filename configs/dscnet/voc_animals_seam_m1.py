# M1: the group contrast alone.
_base_ = './voc_animals_seam.py'
# The threshold that suits the plain CAMs of M3 on train.
model = dict(decode_head=dict(sgcl=None, dual_stream=False, bg_thr=0.12))
