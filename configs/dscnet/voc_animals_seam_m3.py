# M3: both contrasts, no dual stream.
_base_ = './voc_animals_seam.py'
# The threshold that suits the plain CAMs of M3 on train.
model = dict(decode_head=dict(dual_stream=False, bg_thr=0.12))
