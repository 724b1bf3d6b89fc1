import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { findProgram } from './requires.ts';
import { scratchDir } from './scratch.ts';

/**
 * All that goes from and to an address of loopback, by tcpdump. `stop` answers with every byte of it, in
 * packets. With a control beside it: a capture that misses what is there proves nothing.
 */
export async function capturePackets(t: TestContext, host: string): Promise<{ stop: () => Promise<Buffer> }> {
  const file = join(scratchDir(t), 'packets');
  const child = spawn(
    findProgram('tcpdump')!,
    ['-i', 'lo', '-Z', 'root', '-U', '-s', '0', '-B', '65536', '-w', file, 'host', host],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  const exited = once(child, 'exit');
  t.after(() => child.kill('SIGKILL'));
  let said = '';
  await new Promise<void>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', () => reject(new Error(`tcpdump ended: ${said}`)));
    child.stderr.on('data', (chunk) => {
      said += chunk;
      if (said.includes('listening on')) resolve();
    });
  });
  return {
    async stop() {
      child.kill('SIGINT');
      await exited;
      if (!/^0 packets dropped by kernel/m.test(said)) throw new Error(`not every packet was seen: ${said}`);
      return readFileSync(file);
    },
  };
}
