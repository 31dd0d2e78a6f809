"""vLLM servers beside the training: one or several, over their HTTP API.

Where this departs from the interface of ``Engine``: the two points of ``engines.vllm``.
"""

import json
import re
import tempfile
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from warnings import warn

import requests
import torch.distributed as dist
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3.util import Retry

from lit_adaptive.rollout.engines._vllm import (
    LOG_PROBS_MODE,
    Row,
    VLLMSampling,
    check_probe,
    policy_weights,
    probe,
    probe_log_probs,
    save_description,
)

_CONCURRENT = 64  # requests under way at once
_RETRIES = Retry(
    total=2, backoff_factor=0.5, allowed_methods=None, status_forcelist=[502, 503, 504]
)
_START = (
    f"VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode {LOG_PROBS_MODE}"
)


class VLLMServerEngine(VLLMSampling):
    """Generates on servers that were started with ``vllm serve``.

    Servers take prompts in turn. At each ``sync`` the first rank writes the weights, those of a
    LoRA merged, to a folder from which each server loads them; completions that a server made with
    other weights are not used. A server that fails is left out until the next ``sync``, and the
    others take over its prompts.

    Args:
        servers: addresses, such as ``http://localhost:8000``.
        folder: folder for the weights, which the servers must see; by default a temporary one, for
            servers on this machine.
        timeout_s: seconds to wait for the completions of a prompt, or for a server to load the
            weights, above 0.

    Raises:
        ValueError: if there is no server, one has no address of this form, or ``timeout_s`` is not
            above 0.
    """

    def __init__(
        self, servers: list[str], folder: str | None = None, timeout_s: float = 600.0
    ) -> None:
        super().__init__()
        wrong = [each for each in servers if not each.startswith(("http://", "https://"))]
        if not servers or wrong:
            raise ValueError(
                f"servers is {servers}; give one or several addresses such as http://localhost:8000"
            )
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
        self.servers = [each.rstrip("/") for each in servers]
        self.folder, self.timeout_s = folder, timeout_s
        self._alive: list[str] = []
        self._failures: dict[str, str] = {}
        self._tag = ""  # name of the weights at the servers
        self._lock = threading.Lock()
        self._session: Any = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def sync(self, version: int) -> None:
        """See ``Engine``.

        Raises:
            ValueError: if a server has another model or lacks an option.
            RuntimeError: if no server could load the weights.
        """
        super().sync(version)
        weights, expected = policy_weights(self.policy), probe_log_probs(self.policy)
        outcome: list[Any] = [None]
        if not dist.is_initialized() or dist.get_rank() == 0:
            outcome = [self._update_servers(weights, expected)]
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(outcome)
        self._alive, self._failures, self._tag, error = outcome[0]
        if error is not None:
            raise error
        if not self._alive:
            raise self._no_server()

    def _rows(
        self, prompts: list[list[int]], options: dict[str, Any], seeds: Sequence[int]
    ) -> list[Row]:
        each = [options | {"seed": seed} for seed in seeds]
        with ThreadPoolExecutor(min(_CONCURRENT, len(prompts))) as pool:
            groups = pool.map(self._complete, range(len(prompts)), prompts, each)
            return [row for group in groups for row in group]

    def close(self) -> None:
        """Close connections, and remove the temporary folder."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    # Weights -------------------------------------------------------------------------------------

    def _update_servers(
        self, weights: dict[str, Tensor], expected: Tensor
    ) -> tuple[list[str], dict[str, str], str, ValueError | None]:
        """Have all servers load ``weights``.

        Returns:
            The servers that did, why the others did not, the tag of the weights, and an error that
            the user must mend.
        """
        from huggingface_hub import save_torch_state_dict

        if self.folder is None and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lit-adaptive-vllm-")
        folder = Path(self.folder or self._temporary.name)  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        save_description(self.policy, folder)
        # of tied weights only one of a storage would be written
        separate = {name: value.cpu().clone() for name, value in weights.items()}
        save_torch_state_dict(separate, folder)
        tag = f"{uuid.uuid4().hex[:8]}-{self.version}"
        alive: list[str] = []
        failures: dict[str, str] = {}
        for server in self.servers:
            try:
                self._update(server, folder.resolve(), tag, expected)
                alive.append(server)
            except (requests.RequestException, RuntimeError) as error:
                failures[server] = _reason(error)
                warn(
                    f"{server} did not load the weights of step {self.version}: {failures[server]}",
                    stacklevel=2,
                )
            except ValueError as error:
                return alive, failures, tag, error
        return alive, failures, tag, None

    def _update(self, server: str, folder: Path, tag: str, expected: Tensor) -> None:
        """Have a server load the weights in ``folder``, and check that it did."""
        self._check_server(server)
        load = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._post(server, "collective_rpc", load)
        self._post(server, "reset_prefix_cache")
        self._post(server, "update_weight_version", {"new_version": tag})
        prompt, options = probe(self.policy)
        check_probe(self._request(server, prompt, options | {"seed": 0}, tag), expected, server)

    def _check_server(self, server: str) -> None:
        """Check a server's options and model before it loads weights.

        Raises:
            ValueError: naming what is wrong.
        """
        url = f"{server}/server_info?config_format=json"
        response = self._connection.get(url, timeout=self.timeout_s)
        if response.status_code == 404:
            raise ValueError(
                f"{server} does not take weights: start it with {_START} (it must not be reached "
                "from outside: in this mode it obeys everybody)"
            )
        response.raise_for_status()
        config = response.json()["vllm_config"]
        mode = config["model_config"]["logprobs_mode"]
        if mode != LOG_PROBS_MODE:
            raise ValueError(
                f"{server} has logprobs_mode {mode}, which are not log-probabilities at the "
                f"sampling temperature: start it with {_START}"
            )
        model = self.policy.transformer
        weight = model.get_input_embeddings().weight
        shown = self._post(server, "collective_rpc", {"method": "get_model_inspection"})["results"][
            0
        ]
        sizes = re.search(r"embedding_dim=(\d+), org_vocab_size=(\d+)", shown)
        served = (int(sizes[2]), int(sizes[1])) if sizes else tuple(weight.shape)
        if served != tuple(weight.shape):
            raise ValueError(
                f"{server} serves a model with {served[0]} tokens of width {served[1]}, but the "
                f"policy has {weight.shape[0]} of width {weight.shape[1]}: start it with the "
                "policy's model"
            )
        device = config["device_config"]["device"]
        if device == "cpu" and model.config.tie_word_embeddings and _is_tied(config):
            raise ValueError(
                f"{server} runs on a CPU with tied embeddings, of which vLLM keeps a copy "
                "that it does not renew: start it from a folder that has "
                "lm_head.weight, and tie_word_embeddings false in config.json"
            )

    # Requests ------------------------------------------------------------------------------------

    @property
    def _connection(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = requests.Session()
                adapter = HTTPAdapter(pool_maxsize=_CONCURRENT, max_retries=_RETRIES)
                for scheme in ("http://", "https://"):
                    self._session.mount(scheme, adapter)
            return self._session

    def _post(self, server: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._connection.post(f"{server}/{path}", json=body, timeout=self.timeout_s)
        if response.status_code >= 400:
            kind = ValueError if response.status_code < 500 else RuntimeError
            raise kind(f"{server} rejected a request to {path}: {response.text[:500]}")
        return response.json() if response.content else None

    def _request(
        self, server: str, prompt: list[int], options: dict[str, Any], tag: str
    ) -> list[Row]:
        """Completions of a prompt.

        Raises:
            RuntimeError: if they were not all made with the weights ``tag``.
        """
        body = {"token_ids": prompt, "sampling_params": options}
        choices = self._post(server, "inference/v1/generate", body)["choices"]
        versions = {
            span["version"] for choice in choices for span in choice["weight_versions"] or [{}]
        }
        if versions != {tag}:
            raise RuntimeError(
                f"it generated with the weights {sorted(versions)} instead of {tag!r}: it was "
                "started again, or another run has changed its weights"
            )
        return [
            (choice["token_ids"], [step["logprob"] for step in choice["logprobs"]["content"]])
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def _complete(self, position: int, prompt: list[int], options: dict[str, Any]) -> list[Row]:
        """Completions of a prompt by the first server in turn that does not fail."""
        while alive := self._alive:
            server = alive[position % len(alive)]
            try:
                return self._request(server, prompt, options, self._tag)
            except (requests.RequestException, RuntimeError) as error:
                with self._lock:
                    if server in self._alive:
                        self._failures[server] = _reason(error)
                        self._alive = [each for each in self._alive if each != server]
                        warn(f"{server} failed: {self._failures[server]}", stacklevel=2)
        raise self._no_server()

    def _no_server(self) -> RuntimeError:
        reasons = "; ".join(f"{server}: {why}" for server, why in self._failures.items())
        return RuntimeError(
            f"no vLLM server is left ({reasons}). Start them again ({_START}) and resume the run "
            "from its last checkpoint (--ckpt_path)"
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _is_tied(config: dict[str, Any]) -> bool:
    """Whether the folder that a server was started from has tied embeddings."""
    file = Path(config["model_config"]["model"]) / "config.json"
    return not file.is_file() or json.loads(file.read_text())["tie_word_embeddings"] is not False
