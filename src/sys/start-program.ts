import { ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { Socket } from 'node:net';
import { GodwitError, toWireError } from '../base/errors.ts';

/**
 * As `spawn`. A program that could not be started is told by the event `error`, whatever the reason, and the
 * streams that were asked for are there, and closed. Node makes none where this process has no descriptor
 * left, and throws where there is no memory: whoever listens to a stream then falls over that, and the error
 * that follows, which nobody hears, ends the process.
 */
export const startProgram = ((file: string, args: readonly string[], options: SpawnOptions): ChildProcess => {
  const child = started(file, args, options);
  if (child.pid !== undefined || child.stdio !== undefined) return child;
  const { stdio = 'pipe' } = options;
  const kinds = Array.isArray(stdio) ? stdio : [stdio, stdio, stdio];
  const streams = kinds.map((kind) => (kind === 'pipe' ? new Socket().destroy() : null));
  const [stdin = null, stdout = null, stderr = null] = streams;
  return Object.assign(child, { stdio: streams, stdin, stdout, stderr }) as ChildProcess;
}) as typeof spawn;

function started(file: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  try {
    return spawn(file, args, options);
  } catch (error) {
    if (startError(error) === null) throw error;
    const none = new ChildProcess();
    process.nextTick(() => none.emit('error', error));
    return none;
  }
}

/**
 * What a program could not be started for that is not its own fault: `HOST_NO_DESCRIPTORS`,
 * `HOST_NO_PROCESSES`. Null: another reason, such as that there is no such program.
 */
export function startError(error: unknown): GodwitError | null {
  const { code, message, values, nextAction } = toWireError(error);
  if (code !== 'HOST_NO_DESCRIPTORS' && code !== 'HOST_NO_PROCESSES') return null;
  return new GodwitError(code, message, { values, nextAction, cause: error });
}
