/** Aborts at Ctrl-C and SIGTERM; `dispose` takes the handlers away again. */
export function interruption(): { signal: AbortSignal; dispose: () => void } {
  const abort = new AbortController();
  const onSignal = (name: NodeJS.Signals) => abort.abort(new Interrupted(name));
  process.once('SIGINT', onSignal);
  process.once('SIGTERM', onSignal);
  return {
    signal: abort.signal,
    dispose: () => {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
    },
  };
}

export class Interrupted extends Error {
  /** 128 + the signal's number, as shells have it. */
  readonly exitCode: number;
  constructor(name: NodeJS.Signals) {
    super(`interrupted by ${name}`);
    this.exitCode = name === 'SIGTERM' ? 143 : 130;
  }
}
