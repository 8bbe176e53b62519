# SPDX-License-Identifier: Apache-2.0
"""Attention of every layer together with the gradient of the model's loss there, through transformers.

SGLang's engine has no gradients, so this is a pass of its own: one forward and one backward per document.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Logits of so many tokens are held at a time: 0.5 GB at 128K words in float32, with their gradient 1 GB.
_TOKENS_AT_ONCE = 1024

#: (layer, q, k, v, gradient, sm_scale): q and gradient [num_tokens, num_qo_heads, head_dim], k and v [num_tokens,
#: num_kv_heads, head_dim], after the rotary embedding; heads in the model's own order.
Observer = Callable[[int, Any, Any, Any, Any, float], None]


class GradientModel:
    """A causal language model of which only attention is looked at: no gradient of any weight is made or kept."""

    def __init__(self, model_dir: Path, device: str) -> None:
        """Loads the model in float32 on the CPU, in its own dtype on a GPU."""
        import torch
        from transformers import AttentionInterface, AutoModelForCausalLM

        name = f"shplb_gradients_{id(self)}"
        AttentionInterface.register(name, self._attend)
        dtype = torch.float32 if device == "cpu" else "auto"
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation=name).to(device)
        self.model.requires_grad_(False)
        # Checkpointing is on in training mode alone; a dropout that a config asks for must not come with it.
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.device = device
        self._observe: Observer | None = None

    def output_weights(self) -> list[Any]:
        """The o_proj weight of every layer, [hidden_size, num_qo_heads * head_dim]."""
        return [layer.self_attn.o_proj.weight for layer in self.model.base_model.layers]

    def run(self, token_ids: list[int], seed: int, observe: Observer) -> None:
        """One forward and backward pass; ``observe`` is called once per layer, from the last to the first.

        The loss is the NLL of labels drawn from the model's own prediction at every position, summed. The second moment
        of its gradients is the Fisher information: how much the prediction changes (Martens, JMLR 21, 2020). Gradients
        of the true labels would say how wrong it is.
        """
        import torch

        generator = torch.Generator(self.device).manual_seed(seed)
        tokens = torch.tensor([token_ids], device=self.device)
        embedded = self.model.get_input_embeddings()(tokens).detach().requires_grad_()
        self._observe = observe
        try:
            hidden = self.model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            slope = torch.cat([self._slope(part, generator) for part in hidden[0].detach().split(_TOKENS_AT_ONCE)])
            hidden.backward(slope[None])
        finally:
            self._observe = None

    def _slope(self, hidden: Any, generator: Any) -> Any:
        """Gradient of the NLL of drawn labels with respect to the last hidden states [num_tokens, hidden_size]."""
        import torch

        hidden = hidden.requires_grad_()
        logits = self.model.get_output_embeddings()(hidden).float()
        labels = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)[:, 0]
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), hidden)[0]

    def _attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
    ) -> tuple[Any, None]:
        """Dense causal attention; the hook on its output fires in the backward pass, where checkpointing's second
        forward pass has none.
        """
        import torch

        group = query.shape[1] // key.shape[1]
        keys, values = (each.repeat_interleave(group, dim=1) for each in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling)
        out = out.transpose(1, 2)
        if out.requires_grad and self._observe is not None:
            q, k, v = (each.detach()[0].transpose(0, 1) for each in (query, key, value))
            out.register_hook(partial(_tell, self._observe, module.layer_idx, q, k, v, scaling))
        return out, None


def _tell(observe: Observer, layer: int, q: Any, k: Any, v: Any, sm_scale: float, gradient: Any) -> None:
    observe(layer, q, k, v, gradient[0], sm_scale)
