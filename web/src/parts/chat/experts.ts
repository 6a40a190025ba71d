/** The drawer that shows an answer's experts, where this build has one. */
import type { Component } from 'svelte';
import type { Message } from '../../lib/conversation';
import type { Doc } from '../../lib/library.svelte';

type Experts = Component<{ doc: Doc; message: Message }>;

const files = import.meta.glob<{ default: Experts }>('../ExpertsDrawer.svelte');

/** Loads it; undefined where there is none. */
export const loadExperts = files['../ExpertsDrawer.svelte'];
export const hasExperts = loadExperts !== undefined;
