import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { promisify } from 'node:util';
import { systemClock } from '../../src/base/clock.ts';
import { messageOf } from '../../src/base/errors.ts';
import { TARGET_IQN } from './iscsi-pair.ts';
import { findProgram } from './requires.ts';

export type Tgt = { port: number; pid: number; close: () => Promise<void> };

/** Debian's tgtd with `file` as LUN 1 of TARGET_IQN, on a port of its own. */
export async function startTgt(options: {
  file: string;
  chap?: { user: string; secret: string };
  /** UNMAP and WRITE SAME punch holes. Default true, as ours does. */
  thin?: boolean;
}): Promise<Tgt> {
  const port = await freePort();
  // Control sockets are numbered and global to the host; the port makes ours unlikely to be anybody else's.
  const control = String(port & 0x7fff);
  const daemon: ChildProcess = spawn(
    findProgram('tgtd')!,
    ['-f', '-C', control, '--iscsi', `portal=127.0.0.1:${port}`],
    { stdio: 'ignore' },
  );
  const close = async (): Promise<void> => {
    daemon.kill('SIGKILL');
    if (daemon.exitCode === null && daemon.signalCode === null) await once(daemon, 'exit');
  };
  const admin = (...args: string[]): Promise<unknown> =>
    promisify(execFile)(findProgram('tgtadm')!, ['-C', control, '--lld', 'iscsi', ...args], {
      timeout: 20_000,
    });
  try {
    for (let attempt = 0; ; attempt += 1) {
      try {
        await admin('--op', 'new', '--mode', 'target', '--tid', '1', '-T', TARGET_IQN);
        break;
      } catch (error) {
        if (attempt === 50) throw new Error(`tgtd does not come up: ${messageOf(error)}`);
        await systemClock.sleep(100);
      }
    }
    const unit = ['--mode', 'logicalunit', '--tid', '1', '--lun', '1'];
    await admin('--op', 'new', ...unit, '-b', options.file);
    if (options.thin ?? true) await admin('--op', 'update', ...unit, '--params', 'thin_provisioning=1');
    await admin('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL');
    if (options.chap !== undefined) {
      const { user, secret } = options.chap;
      await admin('--op', 'new', '--mode', 'account', '--user', user, '--password', secret);
      await admin('--op', 'bind', '--mode', 'account', '--tid', '1', '--user', user);
    }
    return { port, pid: daemon.pid!, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as import('node:net').AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
