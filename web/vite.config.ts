import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { constants, gzipSync } from 'node:zlib';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig, type Plugin } from 'vite';

/** Puts `x.gz` beside each file, so that the server packs nothing while it serves. */
function packed(folder: string): Plugin {
  const pack = (path: string) => {
    if (statSync(path).isDirectory()) readdirSync(path).forEach((name) => pack(join(path, name)));
    else writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: constants.Z_BEST_COMPRESSION }));
  };
  return { name: 'packed', apply: 'build', closeBundle: () => pack(folder) };
}

export default defineConfig({
  plugins: [svelte(), packed('dist')],
  // No data: addresses and no inline scripts, so that the server's Content-Security-Policy can be strict.
  build: { target: 'es2023', assetsInlineLimit: 0, modulePreload: { polyfill: false }, reportCompressedSize: false },
  server: { proxy: Object.fromEntries(['/octet', '/v1', '/tokenize', '/detokenize', '/metrics'].map((path) => [path, process.env.OCTET_URL ?? 'http://127.0.0.1:8080'])) },
});
