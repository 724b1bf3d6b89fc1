import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { TARGET_IQN } from './iscsi-pair.ts';
import { mustEndWell, NotWorthWaiting, until } from './patience.ts';
import { reservePorts } from './ports.ts';
import { findProgram } from './requires.ts';

export type Tgt = { port: number; pid: number; close: () => Promise<void> };

/** Debian's tgtd with `file` as LUN 1 of TARGET_IQN, on a port of its own. */
export async function startTgt(options: {
  file: string;
  chap?: { user: string; secret: string };
  /** What tgt proves itself with to initiators that ask. */
  mutualChap?: { user: string; secret: string };
  /** UNMAP and WRITE SAME punch holes. Default true, as ours does. */
  thin?: boolean;
}): Promise<Tgt> {
  let giveBack = () => {};
  const [port] = (await reservePorts({ after: (work) => (giveBack = work as () => void) }, 1)) as [number];
  // Control sockets are numbered up to 32767 and global to the host; who has the port has its number too.
  const control = String(port);
  const daemon: ChildProcess = spawn(
    findProgram('tgtd')!,
    ['-f', '-C', control, '--iscsi', `portal=127.0.0.1:${port}`],
    { stdio: 'ignore' },
  );
  const close = async (): Promise<void> => {
    daemon.kill('SIGKILL');
    if (daemon.exitCode === null && daemon.signalCode === null) await once(daemon, 'exit');
    giveBack();
  };
  const admin = (...args: string[]): Promise<string> =>
    mustEndWell(findProgram('tgtadm')!, ['-C', control, '--lld', 'iscsi', ...args]);
  try {
    await until('tgtd to come up', async () => {
      if (daemon.exitCode !== null) throw new NotWorthWaiting(`tgtd ended with ${daemon.exitCode}`);
      await admin('--op', 'new', '--mode', 'target', '--tid', '1', '-T', TARGET_IQN);
      return true;
    });
    const unit = ['--mode', 'logicalunit', '--tid', '1', '--lun', '1'];
    await admin('--op', 'new', ...unit, '-b', options.file);
    if (options.thin ?? true) await admin('--op', 'update', ...unit, '--params', 'thin_provisioning=1');
    await admin('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL');
    if (options.chap !== undefined) {
      const { user, secret } = options.chap;
      await admin('--op', 'new', '--mode', 'account', '--user', user, '--password', secret);
      await admin('--op', 'bind', '--mode', 'account', '--tid', '1', '--user', user);
    }
    if (options.mutualChap !== undefined) {
      const { user, secret } = options.mutualChap;
      await admin('--op', 'new', '--mode', 'account', '--user', user, '--password', secret);
      await admin('--op', 'bind', '--mode', 'account', '--tid', '1', '--user', user, '--outgoing');
    }
    return { port, pid: daemon.pid!, close };
  } catch (error) {
    await close();
    throw error;
  }
}
