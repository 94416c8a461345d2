"""flux-mini: a genuine, tiny FLUX trained from scratch on captioned scenes that it draws itself.

Reading order: `world` (what can be drawn) -> `captions` (how it is said) -> `latents` (what the
VAE's latent means) -> `model` (the stock diffusers parts) -> `denoiser`, `decoder`, `encoder`
(training) -> `folder` (the pipeline on disk) -> `judge` (what a picture shows, by pixels) ->
`report`.
"""
