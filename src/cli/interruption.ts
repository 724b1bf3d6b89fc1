/** 128 + the signal's number, as shells have it. */
const EXIT_CODES: Partial<Record<NodeJS.Signals, number>> = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 };
const SIGNALS = Object.keys(EXIT_CODES) as NodeJS.Signals[];

/**
 * Aborts with `Interrupted` at Ctrl-C, at SIGTERM, and when the terminal goes away, so that what a command
 * keeps up for as long as it runs does not stay when its window is closed; `dispose` takes the handlers away
 * again. (Node takes a hangup that nohup ignores for one that it does not: setsid is what detaches.)
 */
export function interruption(): { signal: AbortSignal; dispose: () => void } {
  const abort = new AbortController();
  const onSignal = (name: NodeJS.Signals) => abort.abort(new Interrupted(name));
  for (const name of SIGNALS) process.once(name, onSignal);
  return {
    signal: abort.signal,
    dispose: () => {
      for (const name of SIGNALS) process.off(name, onSignal);
    },
  };
}

export class Interrupted extends Error {
  readonly exitCode: number;
  constructor(name: NodeJS.Signals) {
    super(`interrupted by ${name}`);
    this.exitCode = EXIT_CODES[name] ?? 130;
  }
}
