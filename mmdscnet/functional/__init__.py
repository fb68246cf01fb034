"""The method as pure functions: tensors in, tensors out, no state, torch only.

The modules are the stations of the data path, in this order:

=====================  =======================================================  ==============
module                 station                                                  DSCNet
=====================  =======================================================  ==============
``cam``                classifier output -> normalised, masked CAMs             Eq. 1
``pixel_correlation``  alike pixels share their CAMs (SEAM)                     --
``equivariance``       the CAMs of two views -> their distances (SEAM)          --
``pseudo_label``       CAMs -> label map with background and ignore band        Eq. 2, 12, 13
``pixel_groups``       embeddings or features -> pixel context, pixel groups    Eq. 4, 5
``contrast``           groups or nodes of many images -> InfoNCE                Eq. 6, 7, 9
``pixel_contrast``     the peers: pixels against pixels, or against prototypes  Eq. 3
``semantic_graph``     groups -> class nodes, passed over the batch's graph     Eq. 8
``dual_stream``        pixels read the class nodes, or classes, of their groups Eq. 10
``pixel_affinity``     embeddings -> affinities of neighbours (AffinityNet)     --
``random_walk``        CAMs walk along the affinities (AffinityNet)             --
``gather``             the global batch: all-gather with gradient               --
``precision``          float32 for all of the above under autocast              --
=====================  =======================================================  ==============

Shape letters: N images, K foreground classes, A = K + 1 slots (slot 0 is background, slot k is
class k), D backbone channels, E embedding channels, h and w feature size, V = h * w pixels,
M key images (the N images, then the class memory as one more image where it is used).

Equation numbers are those of DSCNet (Lai and Vong, arXiv:2405.04913).
"""
