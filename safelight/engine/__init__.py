"""The step loop of one device. torch lives here and nowhere else; importing this package alone does not load it.

The letters of shapes:

    B  images of a batch        R  rows of a batch (a guided image has two)
    C  channels of a latent     h, w  its sides
    H, W  sides of the picture in pixels
    L  tokens of an encoded prompt     D  its width

Sigmas are standard deviations of the noise in x = x0 + sigma * n (k-diffusion's coordinates); timesteps are the
model's own, 0 to 999. Times are seconds unless a name says `_ms`.
"""
