"""Every layout that tools write: what a file is, and the weights it stands for.

`detect` judges a file or folder and makes its `artifact`; `checkpoint` loads whole denoisers, `lora` applies adapters.
A kohya key, or any trainer's: `module_names` (which module), `adapter_keys` (which role) and `adapter_algebra` (which formula;
`rotations` for OFT). What is refused by name: `unread_kinds`. A new family of denoisers: `families`. Fit by headers alone: `fit`. Scales and quantisation: `packing`, `gguf`.
"""
