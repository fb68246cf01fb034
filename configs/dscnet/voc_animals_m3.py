# M3: both contrasts, no dual stream.
_base_ = './voc_animals.py'
model = dict(decode_head=dict(dual_stream=False))
