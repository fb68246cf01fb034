# M3: both contrasts, no dual stream.
_base_ = './voc.py'
model = dict(decode_head=dict(dual_stream=False))
