"""Single files with a whole Stable Diffusion model, or one component, under CompVis' names.

They are read into, and written from, plain dicts in the layout of diffusers' folders. It must not
import any other package of this project but interop and foundation.
"""
