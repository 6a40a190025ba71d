// An adapter of the small model that changes what it says: LoRA of rank 2 on the query projections, in PEFT's format, with
// numbers that are the same every time.  node adapter.mjs FOLDER
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [DIM, LAYERS, RANK] = [576, 30, 2];
const folder = process.argv[2];
mkdirSync(folder, { recursive: true });

let state = 1;
/** Numbers between -size and size. */
const draw = (n, size) =>
  Float32Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * size;
  });

const header = {};
const parts = [];
let end = 0;
function put(name, shape, numbers) {
  header[name] = { dtype: 'F32', shape, data_offsets: [end, end + numbers.byteLength] };
  end += numbers.byteLength;
  parts.push(Buffer.from(numbers.buffer));
}
for (let layer = 0; layer < LAYERS; layer++) {
  const name = `base_model.model.model.layers.${layer}.self_attn.q_proj`;
  put(`${name}.lora_A.weight`, [RANK, DIM], draw(RANK * DIM, 0.2));
  put(`${name}.lora_B.weight`, [DIM, RANK], draw(DIM * RANK, 0.2));
}
const text = Buffer.from(JSON.stringify(header));
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(text.length));
writeFileSync(join(folder, 'adapter_model.safetensors'), Buffer.concat([length, text, ...parts]));
const config = { peft_type: 'LORA', task_type: 'CAUSAL_LM', r: RANK, lora_alpha: 2 * RANK, lora_dropout: 0, bias: 'none', fan_in_fan_out: false, target_modules: ['q_proj'], base_model_name_or_path: 'small' };
writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(config));
