# M2: the graph contrast alone.
_base_ = './shapes.py'
model = dict(decode_head=dict(pgcl=None, dual_stream=False))
