"""A Hub on loopback for tests and the demo: what `huggingface_hub` sends, this answers as huggingface.co would.

The library never imports it. It needs the standard library and PyYAML, which `huggingface_hub` brings.

    from tests.hub_server import HubServer, Cut

    with HubServer() as server:
        server.add_repo("acme/lora", {"README.md": b"...", "pytorch_lora_weights.safetensors": path})
        HfApi(endpoint=server.url, token=server.token).model_info("acme/lora")
        server.faults.add(Cut(path="safetensors", times=1))
"""

from .blobs import Hollow
from .faults import Cut, EndlessPages, Fault, RateLimit, ServerError, Slow
from .server import HubServer


__all__ = ["Cut", "EndlessPages", "Fault", "Hollow", "HubServer", "RateLimit", "ServerError", "Slow"]
