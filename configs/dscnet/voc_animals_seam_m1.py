# M1: the group contrast alone.
_base_ = './voc_animals_seam.py'
model = dict(decode_head=dict(sgcl=None, dual_stream=False))
