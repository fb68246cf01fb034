# M2: the graph contrast alone.
_base_ = './voc_animals_seam.py'
model = dict(decode_head=dict(pgcl=None, dual_stream=False))
