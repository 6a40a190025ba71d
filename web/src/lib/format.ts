/** Numbers for people: three significant digits, with their unit. */

/** `87.8`, `1.24`, `12,400`. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const digits = value === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: Math.abs(value) < 1000 ? Math.min(digits, 2) : 0 });
}

export const count = (value: number) => Math.round(value).toLocaleString('en');

/** `3.46 GiB`. */
export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const step = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return step === 0 ? `${count(value)} B` : `${number(value / 1024 ** step)} ${units[step]}`;
}

/** `692 M`, `46.7 B`: parameters as the field counts them. */
export function parameters(value: number): string {
  return value >= 1e9 ? `${number(value / 1e9)} B` : `${number(value / 1e6)} M`;
}

/** `1.24 s`, `36.0 ms`, `2 min 5 s`. */
export function duration(ms: number): string {
  if (ms < 1000) return `${number(ms)} ms`;
  if (ms < 120_000) return `${number(ms / 1000)} s`;
  const s = Math.round(ms / 1000);
  return s < 7200 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export const speed = (perSecond: number) => `${number(perSecond)} tok/s`;

/** A share for people: `98.2%`, `0.01%`. */
export function percent(probability: number): string {
  const value = probability * 100;
  return `${value >= 99.95 ? '100' : value >= 10 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : value > 0 ? '<0.01' : '0'}%`;
}

/** A token's text for the eye: spaces and line breaks are seen, and so is nothing. */
export const named = (text: string) => text.replaceAll('\n', '⏎').replaceAll(' ', '␣') || '∅';
