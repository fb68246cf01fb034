# M1: the group contrast alone.
_base_ = './voc_animals.py'
model = dict(decode_head=dict(sgcl=None, dual_stream=False))
