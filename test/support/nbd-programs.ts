import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import type { TestContext } from 'node:test';
import { NotWorthWaiting, NotYet, until } from './patience.ts';
import { findProgram } from './requires.ts';

/** Other people's NBD servers on Unix sockets. */
export type NbdProgram = {
  path: string;
  process: ChildProcess;
  stop: (signal?: NodeJS.Signals) => Promise<void>;
};

export function startNbdkit(t: TestContext, path: string, ...args: string[]): Promise<NbdProgram> {
  return start(t, path, 'nbdkit', ['-f', '-U', path, ...args]);
}

/** For up to 8 clients at once, until it is stopped. */
export function startQemuNbd(t: TestContext, path: string, ...args: string[]): Promise<NbdProgram> {
  return start(t, path, 'qemu-nbd', ['-t', '-e', '8', '-k', path, ...args]);
}

async function start(t: TestContext, path: string, name: string, args: string[]): Promise<NbdProgram> {
  // What a server that was killed left behind.
  rmSync(path, { force: true });
  const child = spawn(findProgram(name) ?? name, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr!.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-4096);
  });
  const exited = once(child, 'exit');
  const stop = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    await exited;
  };
  t.after(() => stop('SIGKILL'));
  await until(`${name} to listen`, async () => {
    if (child.exitCode !== null) throw new NotWorthWaiting(`${name} ended: ${said}`);
    return (existsSync(path) && (await answers(path))) || new NotYet(`it says: ${said}`);
  });
  return { path, process: child, stop };
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once('error', () => resolve(false));
    socket.once('data', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('close', () => resolve(false));
  });
}
