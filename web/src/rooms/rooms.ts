/** The rooms: each a file of this folder, loaded when somebody enters, and shown in the rail once it exists. */
import type { Component } from 'svelte';
import { words } from '../strings';

const files = import.meta.glob<{ default: Component }>('./*.svelte');

export interface Room {
  /** As in its address. */
  name: string;
  title: string;
  open: () => Promise<{ default: Component }>;
}

export const rooms: Room[] = (['chat', 'compare', 'experts', 'plan', 'server'] as const).flatMap((name) => {
  const open = files[`./${name[0]!.toUpperCase()}${name.slice(1)}.svelte`];
  return open ? [{ name, title: words.rooms[name], open }] : [];
});
