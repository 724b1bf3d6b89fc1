import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { TestContext } from 'node:test';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';

const PEER_PROGRAM = join(import.meta.dirname, '../fixtures/iscsi_peer.py');

/** Where a peer goes, and what it knows. */
export type PeerTarget = {
  port: number;
  targetIqn: string;
  initiatorIqn: string;
  chap: { user: string; secret: string };
  /** Its own certificate, where the target has TLS. */
  tls: TlsFiles | null;
};

export type Attack = {
  /** When the program says that it is at work. */
  ready: Promise<void>;
  /** What it printed at its end. */
  found: Promise<Record<string, unknown>>;
  stop: () => void;
};

/** Runs a program of test/fixtures/iscsi_peer.py until its end, the end of the test, or `stop`. */
export function iscsiPeer(t: TestContext, target: PeerTarget, program: string, options: object): Attack {
  const { tls } = target;
  const words = {
    port: target.port,
    target: target.targetIqn,
    initiator: target.initiatorIqn,
    ...target.chap,
    ...(tls !== null && { tls: { cert: tls.certFile, key: tls.keyFile, ca: tls.caFile } }),
    ...options,
  };
  const child = spawn('python3', [PEER_PROGRAM, program, JSON.stringify(words)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  let complaint = '';
  child.stderr.on('data', (bytes) => {
    complaint += bytes;
  });
  const ready = Promise.withResolvers<void>();
  const found = Promise.withResolvers<Record<string, unknown>>();
  createInterface(child.stdout).on('line', (line) => {
    if (line === 'ready') ready.resolve();
    else found.resolve(JSON.parse(line));
  });
  child.once('close', () => {
    const error = new Error(`${program} ended without a word: ${complaint.slice(-2000)}`);
    ready.reject(error);
    found.reject(error);
  });
  for (const { promise } of [ready, found]) promise.catch(() => {});
  return { ready: ready.promise, found: found.promise, stop: () => child.kill('SIGKILL') };
}
