"""Training of the embedded models: the denoiser of the digits, and the features networks of its images."""
