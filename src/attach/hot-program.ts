import { fileURLToPath } from 'node:url';
import { Worker, type WorkerOptions } from 'node:worker_threads';
import { entryPoint } from '../base/entry-point.ts';

/** What scripts/bundle puts at the top of the program of the volume server: the text of its thread. */
declare global {
  var godwitHotThread: string | undefined;
}

/**
 * The thread of hot-thread.ts. A program that is one file has its text in that file: who starts while the
 * package is replaced would find a thread of another version beside itself, or none, and the two share memory
 * whose layout is nobody else's business.
 */
export function startHotThread(options: WorkerOptions): Worker {
  const text = globalThis.godwitHotThread;
  if (text === undefined) return new Worker(entryPoint('attach/hot-thread.ts'), options);
  // As a module of that file it finds what is native where the file finds it.
  const path = JSON.stringify(fileURLToPath(import.meta.url));
  const begin = `((require, __filename) => {${text}\n})(require('node:module').createRequire(${path}), ${path});`;
  return new Worker(begin, { ...options, eval: true });
}
