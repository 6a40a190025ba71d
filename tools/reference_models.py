#!/usr/bin/env python3
"""Reference data for Mixtral, computed by PyTorch, transformers and peft.

  reference_models.py OUT [--seed N] [--only NAME ...]

Writes one folder per tiny random model (see MODELS) with
  config.json, model.safetensors     the checkpoint in Hugging Face's layout, float32
  mistral-raw/                        the same weights in Mistral's release layouts:
      stacked/consolidated.00.pth     block_sparse_moe.w1|w2|w3 of all experts in one matrix (the torrent of 8x7B)
      experts/consolidated.safetensors  feed_forward.experts.E.w1|w2|w3.weight (mistral-inference)
      each with params.json
  reference.safetensors               inputs and outputs (names below), float32 / int64
  gradients.safetensors               d loss / d parameter, by the checkpoint's tensor names
  reference.json                      scalars

reference.safetensors, B sequences of T tokens, L layers, E experts, V vocabulary, D width:
  input_ids [B,T]   labels [B,T] (-100 = ignored)   logits [B,T,V]   hidden.0 .. hidden.L [B,T,D] (0 = embeddings; L = after the last norm)
  router_logits.L [B*T,E]   experts.L [B*T,k] (chosen, best first)   expert_weights.L [B*T,k] (renormalised)
  greedy [B,16] the continuation of each sequence without sampling
  dpo.chosen, dpo.rejected [N,T]; dpo.prompt_len [N]; dpo.{policy,reference}.{chosen,rejected}_logps [N]
  dpo.losses [N]  dpo.chosen_rewards, dpo.rejected_rewards [N]  dpo.loss.gradients.NAME for a few parameters
  lora.logits [B,T,V] with the PEFT adapter in lora/ applied
reference.json: loss (cross entropy alone), aux_loss (load balancing, before its coefficient), total_loss, grad_norm, dpo_loss, beta.

Needs torch, transformers>=5, peft, safetensors, numpy.
"""
import argparse
import json
import os
import shutil

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

BASE = dict(rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, sliding_window=None)
MODELS = {
    # the shape of 8x7B in small: 8 experts, 2 per token, grouped-query attention
    "mixtral-8x2": dict(kind="mixtral", vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2),
    # head_dim that is not width / heads, 4 experts, odd sizes, another rope base
    "mixtral-4x3": dict(kind="mixtral", vocab_size=500, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                        num_attention_heads=6, num_key_value_heads=3, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
                        rope_theta=1e4),
    # widths that are multiples of 256, so that every block-quantized format fits
    "mixtral-4x1-wide": dict(kind="mixtral", vocab_size=320, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
                             num_attention_heads=4, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2),
    # sliding window shorter than the sequence, tied embeddings, 3 experts per token
    "mixtral-window": dict(kind="mixtral", vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=4, num_local_experts=6, num_experts_per_tok=3,
                           sliding_window=8, tie_word_embeddings=True),
    # the dense cousins
    "mistral-dense": dict(kind="mistral", vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, sliding_window=16, rope_theta=1e4),
    "llama-dense": dict(kind="llama", vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=4, rope_theta=1e4),
}
KINDS = {"mixtral": (MixtralConfig, MixtralForCausalLM), "mistral": (MistralConfig, MistralForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def build(spec, seed):
    torch.manual_seed(seed)
    spec = {**BASE, **spec}
    config_class, model_class = KINDS[spec.pop("kind")]
    if config_class is LlamaConfig:
        spec.pop("sliding_window")
    if config_class is MixtralConfig:
        spec.update(router_aux_loss_coef=0.02)
    config = config_class(**spec)
    model = model_class(config).float()
    with torch.no_grad():  # larger than the usual initialisation, so that errors show and the router has opinions
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif "gate.weight" in name:
                p.copy_(torch.randn_like(p) * 0.5)
            else:
                p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    model.eval()
    return config, model


def unpermute(w, heads):
    """Hugging Face's half-split rotary layout -> Mistral's interleaved one."""
    return w.view(heads, 2, w.shape[0] // heads // 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def write_raw(folder, config, state):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    moe = hasattr(config, "num_local_experts")
    common, stacked, experts = {}, {}, {}
    common["tok_embeddings.weight"] = state["model.embed_tokens.weight"]
    common["norm.weight"] = state["model.norm.weight"]
    common["output.weight"] = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    for i in range(config.num_hidden_layers):
        hf, raw = f"model.layers.{i}.", f"layers.{i}."
        common[raw + "attention_norm.weight"] = state[hf + "input_layernorm.weight"]
        common[raw + "ffn_norm.weight"] = state[hf + "post_attention_layernorm.weight"]
        common[raw + "attention.wq.weight"] = unpermute(state[hf + "self_attn.q_proj.weight"], config.num_attention_heads)
        common[raw + "attention.wk.weight"] = unpermute(state[hf + "self_attn.k_proj.weight"], config.num_key_value_heads)
        common[raw + "attention.wv.weight"] = state[hf + "self_attn.v_proj.weight"]
        common[raw + "attention.wo.weight"] = state[hf + "self_attn.o_proj.weight"]
        if not moe:
            for w, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                common[f"{raw}feed_forward.{w}.weight"] = state[f"{hf}mlp.{name}.weight"]
            continue
        gate = state[hf + "block_sparse_moe.gate.weight"]
        stacked[raw + "block_sparse_moe.gate.weight"] = gate
        experts[raw + "feed_forward.gate.weight"] = gate
        for w in ("w1", "w2", "w3"):
            each = [state[f"{hf}block_sparse_moe.experts.{e}.{w}.weight"] for e in range(config.num_local_experts)]
            for e, m in enumerate(each):
                experts[f"{raw}feed_forward.experts.{e}.{w}.weight"] = m
            # in the stacked release w2 stands transposed, like w1 and w3: (experts * hidden_dim, dim)
            stacked[f"{raw}block_sparse_moe.{w}"] = torch.cat([m.T if w == "w2" else m for m in each])
    params = dict(dim=config.hidden_size, n_layers=config.num_hidden_layers, head_dim=head_dim, hidden_dim=config.intermediate_size,
                  n_heads=config.num_attention_heads, n_kv_heads=config.num_key_value_heads, norm_eps=config.rms_norm_eps,
                  vocab_size=config.vocab_size, rope_theta=config.rope_parameters["rope_theta"])
    if getattr(config, "sliding_window", None):
        params["sliding_window"] = config.sliding_window
    if moe:
        params["moe"] = dict(num_experts_per_tok=config.num_experts_per_tok, num_experts=config.num_local_experts)
    for name, extra, write in (("stacked", stacked, "pth"), ("experts", experts, "safetensors")):
        if name == "stacked" and not moe:
            continue
        out = os.path.join(folder, name)
        os.makedirs(out, exist_ok=True)
        json.dump(params, open(os.path.join(out, "params.json"), "w"), indent=2)
        tensors = {k: v.contiguous().to(torch.bfloat16) if write == "pth" else v.contiguous().clone() for k, v in {**common, **extra}.items()}
        if write == "pth":  # bfloat16, as released
            torch.save(tensors, os.path.join(out, "consolidated.00.pth"))
        else:
            save_file(tensors, os.path.join(out, "consolidated.safetensors"))


def sequence_logps(model, ids, prompt_len):
    """Sum of log p(token | before) over each sequence's answer tokens (those after the prompt)."""
    logps = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    answer = torch.arange(1, ids.shape[1])[None] >= prompt_len[:, None]
    return (logps * answer).sum(-1)


def checkpoint_gradients(config, model):
    """Gradients by the checkpoint's tensor names (transformers fuses the experts; take them apart again)."""
    out = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        g = p.grad.detach()
        if name.endswith("experts.gate_up_proj"):
            base = name.replace("mlp.experts.gate_up_proj", "block_sparse_moe.experts")
            half = g.shape[1] // 2
            for e in range(g.shape[0]):
                out[f"{base}.{e}.w1.weight"], out[f"{base}.{e}.w3.weight"] = g[e, :half], g[e, half:]
        elif name.endswith("experts.down_proj"):
            base = name.replace("mlp.experts.down_proj", "block_sparse_moe.experts")
            for e in range(g.shape[0]):
                out[f"{base}.{e}.w2.weight"] = g[e]
        elif name.endswith("mlp.gate.weight"):
            out[name.replace("mlp.gate", "block_sparse_moe.gate")] = g
        else:
            out[name] = g
    return {k: v.contiguous().clone() for k, v in out.items()}


def forward(config, model, ids, labels):
    """Everything that one forward pass shows, and the loss with its graph."""
    moe = hasattr(config, "num_local_experts")
    result = model(ids, labels=labels, output_hidden_states=True, **(dict(output_router_logits=True) if moe else {}))
    out, scalars = {"logits": result.logits}, {}
    for i, h in enumerate(result.hidden_states):
        out[f"hidden.{i}"] = h
    if moe:
        for i, r in enumerate(result.router_logits):
            w, e = r.float().softmax(-1).topk(config.num_experts_per_tok)
            out[f"router_logits.{i}"], out[f"experts.{i}"], out[f"expert_weights.{i}"] = r, e, w / w.sum(-1, keepdim=True)
        scalars["aux_loss"] = result.aux_loss.item()
        scalars["aux_coefficient"] = config.router_aux_loss_coef
    cross_entropy = F.cross_entropy(result.logits[:, :-1].reshape(-1, config.vocab_size), labels[:, 1:].reshape(-1))
    scalars.update(loss=cross_entropy.item(), total_loss=result.loss.item())
    return out, scalars, result.loss


def norm(gradients):
    return torch.sqrt(sum((v ** 2).sum() for v in gradients.values())).item()


@torch.no_grad()
def greedy(model, ids, n):
    """The n most likely next tokens of each sequence, one after the other."""
    longer = ids
    for _ in range(n):
        longer = torch.cat([longer, model(longer).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return longer[:, ids.shape[1]:]


def dpo(config, model, reference, chosen, rejected, prompt_len, beta=0.1):
    """Losses, rewards and some gradients of direct preference optimisation."""
    model.zero_grad()
    pc, pr = sequence_logps(model, chosen, prompt_len), sequence_logps(model, rejected, prompt_len)
    with torch.no_grad():
        rc, rr = sequence_logps(reference, chosen, prompt_len), sequence_logps(reference, rejected, prompt_len)
    losses = -F.logsigmoid(beta * ((pc - rc) - (pr - rr)))
    losses.mean().backward()
    gradients = checkpoint_gradients(config, model)
    out = {"dpo.chosen": chosen, "dpo.rejected": rejected, "dpo.prompt_len": prompt_len,
           "dpo.policy.chosen_logps": pc, "dpo.policy.rejected_logps": pr,
           "dpo.reference.chosen_logps": rc, "dpo.reference.rejected_logps": rr, "dpo.losses": losses,
           "dpo.chosen_rewards": beta * (pc - rc), "dpo.rejected_rewards": beta * (pr - rr)}
    for k in list(gradients)[:6]:
        out[f"dpo.loss.gradients.{k}"] = gradients[k]
    return out, dict(dpo_loss=losses.mean().item(), beta=beta, dpo_grad_norm=norm(gradients))


def preference_pairs(vocab_size, length, generator):
    """Four random pairs that share their first prompt_len tokens."""
    chosen, rejected = (torch.randint(3, vocab_size, (4, length), generator=generator) for _ in range(2))
    prompt_len = torch.tensor([4, 8, 12, 5])
    for n, shared in enumerate(prompt_len):
        rejected[n, :shared] = chosen[n, :shared]
    return chosen, rejected, prompt_len


def nearby(spec, seed):
    """The same model a small step away: the reference of DPO."""
    _, model = build(spec, seed)
    torch.manual_seed(seed + 2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p) * p.abs().mean())
    return model


def adapted(model, ids, folder, seed):
    """Saves a LoRA adapter on the attention projections whose weights are not zero, and returns the logits with it."""
    torch.manual_seed(seed + 3)
    lora = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    with torch.no_grad():
        for n, p in lora.named_parameters():
            if "lora_" in n:
                p.copy_(torch.randn_like(p) * 0.1)
        logits = lora(ids).logits
    lora.save_pretrained(folder)
    card = os.path.join(folder, "README.md")  # peft writes a model card; not wanted
    if os.path.exists(card):
        os.remove(card)
    return logits


def make(name, spec, root, seed):
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config, model = build(spec, seed)
    model.save_pretrained(folder)
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as f:
        state = {k: f.get_tensor(k) for k in f.keys()}
    write_raw(os.path.join(folder, "mistral-raw"), config, state)

    g = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, config.vocab_size, (3, 24), generator=g)
    ids[:, 0] = 1
    labels = ids.clone()
    labels[0, :10] = -100
    seen, scalars, loss = forward(config, model, ids, labels)
    model.zero_grad()
    loss.backward()
    gradients = checkpoint_gradients(config, model)
    scalars["grad_norm"] = norm(gradients)
    save_file(gradients, os.path.join(folder, "gradients.safetensors"))

    reference = nearby(spec, seed)
    preferences, dpo_scalars = dpo(config, model, reference, *preference_pairs(config.vocab_size, ids.shape[1], g))
    reference.save_pretrained(os.path.join(folder, "dpo-reference"))
    out = {"input_ids": ids, "labels": labels, **seen, "greedy": greedy(model, ids, 16), **preferences,
           "lora.logits": adapted(model, ids, os.path.join(folder, "lora"), seed)}
    save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, os.path.join(folder, "reference.safetensors"))
    with open(os.path.join(folder, "reference.json"), "w") as f:
        json.dump({**scalars, **dpo_scalars}, f, indent=2)
    print(f"{name}: loss {scalars['loss']:.4f}, dpo {dpo_scalars['dpo_loss']:.4f}")


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=20231211)
    a.add_argument("--only", nargs="*")
    a = a.parse_args()
    for model_name, model_spec in MODELS.items():
        if not a.only or model_name in a.only:
            make(model_name, model_spec, a.out, a.seed)
