// A model of one layer that is wider than any memory, in Hugging Face's layout; its weights are a hole in the file.
//   node giant.mjs FOLDER
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [DIM, HIDDEN, VOCAB] = [4096, 2 ** 27, 256];
const folder = process.argv[2];
mkdirSync(folder, { recursive: true });

const layer = 'model.layers.0.';
const shapes = {
  'model.embed_tokens.weight': [VOCAB, DIM],
  'lm_head.weight': [VOCAB, DIM],
  'model.norm.weight': [DIM],
  [`${layer}input_layernorm.weight`]: [DIM],
  [`${layer}post_attention_layernorm.weight`]: [DIM],
  [`${layer}mlp.gate_proj.weight`]: [HIDDEN, DIM],
  [`${layer}mlp.up_proj.weight`]: [HIDDEN, DIM],
  [`${layer}mlp.down_proj.weight`]: [DIM, HIDDEN],
};
for (const part of 'qkvo') shapes[`${layer}self_attn.${part}_proj.weight`] = [DIM, DIM];
const header = {};
let end = 0;
for (const [name, shape] of Object.entries(shapes)) {
  const bytes = 2 * shape.reduce((all, n) => all * n, 1);
  header[name] = { dtype: 'BF16', shape, data_offsets: [end, (end += bytes)] };
}
const text = Buffer.from(JSON.stringify(header));
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(text.length));
const file = join(folder, 'model.safetensors');
writeFileSync(file, Buffer.concat([length, text]));
truncateSync(file, 8 + text.length + end);
const config = {
  architectures: ['MistralForCausalLM'], model_type: 'mistral', torch_dtype: 'bfloat16', hidden_size: DIM, intermediate_size: HIDDEN, vocab_size: VOCAB, num_hidden_layers: 1, num_attention_heads: 32,
  num_key_value_heads: 32, head_dim: 128, rms_norm_eps: 1e-5, rope_theta: 1e6, max_position_embeddings: 32768, hidden_act: 'silu', sliding_window: null, tie_word_embeddings: false,
};
writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
