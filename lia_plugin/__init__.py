"""LIA (latently invertible autoencoder) as a plugin of a StyleGAN2-ADA host: networks, losses, metrics and commands.

Source: Zhu, Zhao, Zhang, Zhou, "Disentangled Inference for GANs with Latently Invertible Autoencoder", IJCV 130(5),
2022.
"""

__version__ = '0.1.0'
