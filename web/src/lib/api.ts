/** Calls to the server, typed. A key that it asks for is asked once of the reader and kept in this browser. */
import { askForKey, key } from './key.svelte';
import { words } from '../strings';

/** A refusal in the server's words, or the network's failure in ours. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

export interface Options {
  method?: 'GET' | 'POST' | 'PUT' | 'DELETE';
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** One request; resolves with a response of status 2xx or 304 only. */
export async function call(path: string, options: Options = {}): Promise<Response> {
  for (;;) {
    const shown = key.value;
    const headers: Record<string, string> = { accept: 'application/json', ...options.headers };
    if (shown) headers.authorization = `Bearer ${shown}`;
    if (options.body !== undefined) headers['content-type'] = 'application/json';
    const response = await fetch(path, {
      method: options.method ?? (options.body === undefined ? 'GET' : 'POST'),
      headers,
      body: options.body === undefined ? null : JSON.stringify(options.body),
      signal: options.signal ?? null,
    }).catch((error: unknown) => {
      if (error instanceof DOMException && error.name === 'AbortError') throw error;
      throw new ApiError(words.errors.unreachable, 0);
    });
    if (response.ok || response.status === 304) return response;
    if (response.status !== 401) throw await refusal(response);
    // Another call may have got a key in the meantime; else the reader is asked.
    if (key.value === shown) await askForKey(shown !== '');
  }
}

/** The JSON of one request. */
export async function json<T>(path: string, options: Options = {}): Promise<T> {
  return (await call(path, options)).json() as Promise<T>;
}

async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error: { message: string; param?: string | null } | string };
    if (typeof error === 'string') return new ApiError(error, response.status);
    return new ApiError(error.message, response.status, error.param ?? null);
  } catch {
    return new ApiError(text || `${response.status} ${response.statusText}`, response.status);
  }
}

/** What a model is; sizes in bytes. */
export interface Facts {
  path: string;
  file_bytes: number;
  weights_bytes: number;
  parameters: number;
  active_parameters: number;
  quantization: string;
  context: number;
  layers: number;
  experts: number;
  experts_per_token: number;
  dim: number;
  vocab_size: number;
}

/** What a model's engine has done since it was loaded. */
export interface EngineStats {
  waiting: number;
  running: number;
  kv_pages_used: number;
  kv_pages_cached: number;
  kv_pages: number;
  requests: number;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  drafted_tokens: number;
  accepted_tokens: number;
  steps: number;
  step_s: number;
}

export interface ModelState {
  name: string;
  path: string;
  state: 'ready' | 'unloaded' | 'loading' | 'failed';
  error?: string;
  /** It failed because it is predicted not to fit in memory: it may be loaded anyway. */
  does_not_fit?: boolean;
  /** Names under which it answers with an adapter. */
  adapters?: string[];
  /** These are there when it is ready. */
  facts?: Facts;
  can_chat?: boolean;
  chat_format?: string | null;
  engine?: EngineStats;
}

export interface Standing {
  limit: number;
  remaining: number;
  reset_s: number;
}

export interface KeyState {
  name: string;
  running: number;
  requests: Standing | null;
  tokens: Standing | null;
  /** Since the key was read. */
  used_requests: number;
  used_tokens: number;
}

export interface ServerState {
  version: string;
  uptime_s: number;
  needs_key: boolean;
  keeps_history: boolean;
  models: ModelState[];
  aliases: Record<string, string>;
  keys: KeyState[];
}

/** What `octet plan` says; bytes, bytes per second, tokens per second. */
export interface Plan {
  model: string;
  quantize: string | null;
  users: number;
  kv: string;
  threads: number;
  memory: { total: number; available: number } | null;
  fit: {
    context: number;
    footprint: { weights: number; kv_cache: number; buffers: number };
    fits: boolean | null;
    advice: string | null;
  };
  speed: {
    read_bandwidth: number;
    multiply_adds: number;
    active_bytes: number;
    generate: number;
    prompt: number;
  };
}

export interface Tokenized {
  count: number;
  max_model_len: number;
  tokens: number[];
  pieces?: string[];
  prompt?: string;
}

/** A message as the chat endpoints read it. */
export interface ApiMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string;
  name?: string;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
}

export interface ToolCall {
  id?: string;
  type?: 'function';
  function: { name: string; arguments: string };
}

const at = encodeURIComponent;

export const getState = () => json<ServerState>('/octet/state');
/** With `anyway` also where it is predicted not to fit in memory. */
export const loadModel = (name: string, anyway = false) => json<ServerState>(`/octet/models/${at(name)}/load`, { body: { load_anyway: anyway } });
export const unloadModel = (name: string) => json<ServerState>(`/octet/models/${at(name)}/unload`, { method: 'POST' });
export const getPlan = (ask: { model: string; quantize?: string; context?: number; kv?: string; users?: number }) =>
  json<Plan>('/octet/plan', { body: ask });
/** What a model's experts did since it was loaded. */
export interface RoutingStats {
  model: string;
  experts_per_token: number;
  /** Tokens that each expert has seen, `[layers][experts]`. */
  tokens: number[][];
  /** Pairs of consecutive tokens in each layer, and those with the same first choice, and with any expert in common. */
  neighbours: number;
  repeats_first: number[];
  repeats_any: number[];
}

export const getRouting = (name: string) => json<RoutingStats>(`/octet/models/${at(name)}/experts`);
export const tokenize = (
  ask: { model: string; messages?: ApiMessage[]; content?: string; tools?: unknown[]; with_pieces?: boolean; add_special?: boolean },
  signal?: AbortSignal,
) => json<Tokenized>('/tokenize', signal ? { body: ask, signal } : { body: ask });

/** Another server that ours may ask, with its models; or why it cannot be asked. */
export interface Peer {
  name: string;
  models: string[];
  error?: string;
}

export const getPeers = () => json<{ peers: Peer[] }>('/octet/peers');
/** Where a peer's answers come from. */
export const peerPath = (name: string) => `/octet/peers/${at(name)}/chat/completions`;

/** What may be planned besides the models of the server. */
export const getPlanChoices = () => json<{ shapes: string[]; mixes: string[]; kv: string[] }>('/octet/plan');

export interface Times {
  mean_ms: number;
  worst_ms: number;
}

export interface ModelLoad {
  waiting: number;
  running: number;
  prompt_per_s: number;
  generated_per_s: number;
  kv_used: number;
  kv_cached: number;
}

/** How the server was at a time. */
export interface Sample {
  at_ms: number;
  first_token: Times | null;
  inter_token: Times | null;
  models: Record<string, ModelLoad>;
}

export const getHistory = (afterMs: number) => json<{ every_ms: number; samples: Sample[] }>(`/octet/history?after_ms=${afterMs}`);

/** A line of the log. */
export type LogLine = { at_ms: number; key: string } & (
  | { kind: 'request'; method: string; path: string; status: number; ms: number; request_id: string }
  | {
      kind: 'answer';
      model: string;
      outcome: 'done' | 'failed' | 'cancelled';
      fault: string | null;
      prompt_tokens: number;
      cached_tokens: number;
      completion_tokens: number;
      first_token_ms: number | null;
      ms: number;
      request_id: string;
    }
);

export const getLogs = (lines = 200) => json<{ lines: LogLine[] }>(`/octet/logs?lines=${lines}`);
