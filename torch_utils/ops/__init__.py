"""Image operators with the signatures of the StyleGAN2-ADA host, differentiable twice on every device."""
