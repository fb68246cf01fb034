# M1: the group contrast alone.
_base_ = './shapes.py'
model = dict(decode_head=dict(sgcl=None, dual_stream=False))
