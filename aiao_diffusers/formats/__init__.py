"""Every layout that tools write: what a file is, and the weights it stands for.

`detect` judges a file or folder and makes its `artifact`; `checkpoint` loads whole denoisers, `lora` applies adapters.
A kohya key, or any trainer's: `module_names` (which module) and `adapter_algebra` (which role, which formula). A new family
of denoisers: `families`. Fit by headers alone: `fit`. Scales and quantisation: `packing`, `gguf`.
"""
