# M3: both contrasts, no dual stream.
_base_ = './voc_animals_seam.py'
model = dict(decode_head=dict(dual_stream=False))
