/** How tokens are chosen: what the reader can set, what each means, and what the server is sent. */
import { words } from '../strings';

/** Only what differs from the server's own choice is there. */
export interface Settings {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  max_tokens?: number;
  min_tokens?: number;
  seed?: number;
  /** One a line. */
  stop?: string;
  stop_token_ids?: string;
  logit_bias?: string;
  ignore_eos?: boolean;
  experts_per_token?: number;
  timeout_s?: number;
  priority?: number;
  /** Form of the answer, and the text of the schema, expression or grammar. */
  format?: 'json_object' | 'json_schema' | 'regex' | 'grammar';
  format_text?: string;
  /** JSON of OpenAI's `tools`. */
  tools?: string;
  tool_choice?: string;
}

export const defaults: Settings = { temperature: 0.7, top_p: 0.95 };

/** A number that a slider or a field sets. */
export interface NumberSetting {
  key: keyof Settings & string;
  least: number;
  most?: number;
  step: number;
  /** What the server does where nothing is set, for the reader. */
  unset: string;
  /** Where the slider stands then. */
  rest: number;
}

const w = words.settings;

/** The settings that are numbers, in the order of the drawer. Those without `most` are fields, the others sliders. */
export const numbers: NumberSetting[] = [
  { key: 'temperature', least: 0, most: 2, step: 0.05, unset: '1', rest: 1 },
  { key: 'top_p', least: 0.05, most: 1, step: 0.05, unset: '1', rest: 1 },
  { key: 'top_k', least: 0, most: 200, step: 1, unset: w.off, rest: 0 },
  { key: 'min_p', least: 0, most: 1, step: 0.01, unset: w.off, rest: 0 },
  { key: 'repetition_penalty', least: 0.5, most: 2, step: 0.01, unset: w.off, rest: 1 },
  { key: 'presence_penalty', least: -2, most: 2, step: 0.05, unset: w.off, rest: 0 },
  { key: 'frequency_penalty', least: -2, most: 2, step: 0.05, unset: w.off, rest: 0 },
  { key: 'max_tokens', least: 1, step: 1, unset: w.toContext, rest: 1 },
  { key: 'min_tokens', least: 0, step: 1, unset: '0', rest: 0 },
  { key: 'seed', least: 0, step: 1, unset: w.random, rest: 0 },
  { key: 'experts_per_token', least: 1, step: 1, unset: w.ofModel, rest: 1 },
  { key: 'timeout_s', least: 1, step: 1, unset: w.none, rest: 1 },
  { key: 'priority', least: -100, step: 1, unset: '0', rest: 0 },
];

/** A setting that cannot be sent, by its name and in words. */
export class SettingError extends Error {
  constructor(
    readonly key: string,
    message: string,
  ) {
    super(message);
  }
}

/** The fields of a request. Throws `SettingError` where a text is not what it has to be. */
export function request(settings: Settings): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const { key } of numbers) {
    if (settings[key] !== undefined && settings[key] !== null) fields[key] = settings[key];
  }
  const lines = (text = '') => text.split('\n').filter(Boolean);
  const stop = lines(settings.stop).map((line) => line.replaceAll('\\n', '\n'));
  if (stop.length > 0) fields.stop = stop;
  const ids = (settings.stop_token_ids ?? '').split(/[\s,]+/).filter(Boolean).map(Number);
  if (ids.some((id) => !Number.isInteger(id) || id < 0)) throw new SettingError('stop_token_ids', w.wrong.ids);
  if (ids.length > 0) fields.stop_token_ids = ids;
  const bias = lines(settings.logit_bias).map((line) => line.split(/[\s:=,]+/).map(Number));
  if (bias.some((pair) => pair.length !== 2 || pair.some(Number.isNaN))) throw new SettingError('logit_bias', w.wrong.bias);
  if (bias.length > 0) fields.logit_bias = Object.fromEntries(bias);
  if (settings.ignore_eos) fields.ignore_eos = true;
  const format = responseFormat(settings);
  if (format) fields.response_format = format;
  const tools = readTools(settings);
  if (tools.length > 0) fields.tools = tools;
  if (tools.length > 0 && settings.tool_choice) fields.tool_choice = toolChoice(settings.tool_choice);
  return fields;
}

function toolChoice(choice: string): unknown {
  return ['auto', 'none', 'required'].includes(choice) ? choice : { type: 'function', function: { name: choice } };
}

function responseFormat({ format, format_text = '' }: Settings): unknown {
  switch (format) {
    case 'json_object':
      return { type: format };
    case 'json_schema':
      return { type: format, json_schema: { name: 'answer', strict: true, schema: parse('format_text', format_text, w.wrong.schema) } };
    case 'regex':
      return { type: format, regex: format_text };
    case 'grammar':
      return { type: format, grammar: format_text };
    default:
      return undefined;
  }
}

/** The tools, each as OpenAI writes it; a bare function is put into its envelope. */
export function readTools({ tools = '' }: Settings): { type: 'function'; function: { name: string } }[] {
  if (!tools.trim()) return [];
  const list = parse('tools', tools, w.wrong.tools);
  return (Array.isArray(list) ? list : [list]).map((tool) => (tool?.function ? tool : { type: 'function', function: tool }));
}

function parse(key: string, text: string, message: string) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError(key, `${message} ${(error as Error).message}`);
  }
}

export interface Preset {
  name: string;
  settings: Settings;
  system?: string;
}

export const builtIn: Preset[] = [
  { name: w.presets.balanced, settings: defaults },
  { name: w.presets.exact, settings: { temperature: 0 } },
  { name: w.presets.lively, settings: { temperature: 1.1, min_p: 0.05 } },
];

const PLACE = 'octet.presets';

export function ownPresets(): Preset[] {
  try {
    return JSON.parse(localStorage.getItem(PLACE) ?? '[]') as Preset[];
  } catch {
    return [];
  }
}

export function keepPreset(preset: Preset) {
  const others = ownPresets().filter(({ name }) => name !== preset.name);
  localStorage.setItem(PLACE, JSON.stringify([...others, preset]));
}

export function dropPreset(name: string) {
  localStorage.setItem(PLACE, JSON.stringify(ownPresets().filter((preset) => preset.name !== name)));
}
