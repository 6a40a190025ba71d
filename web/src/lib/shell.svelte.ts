/** What is open around the rooms, and the actions that several places offer. */
import { router } from './router.svelte';

/** What the drawer holds. */
export type Drawer = 'settings' | 'prompt' | 'experts';

class Shell {
  /** Only on a phone: whether the rail slides over. */
  rail = $state(false);
  drawer = $state<Drawer | null>(null);
  /** Of the conversation that is shown. */
  title = $state('');
  finder = $state(false);
  keys = $state(false);
  /** The message whose experts or prompt the drawer shows; the last one if null. */
  message = $state<string | null>(null);

  toggle(drawer: Drawer, message: string | null = null) {
    const isSame = this.drawer === drawer && this.message === message;
    this.drawer = isSame ? null : drawer;
    this.message = message;
  }

  newChat() {
    this.rail = false;
    router.go('/chat');
    requestAnimationFrame(() => document.getElementById('composer')?.focus());
  }
}

export const shell = new Shell();
