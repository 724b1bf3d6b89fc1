import { programPath } from '../test/support/programs.ts';
import type { Guest } from './guest.ts';
import { kind } from './kind.ts';
import { mustRun } from './member.ts';

/** Where a guest's first disk is mounted: what survives its reboot. */
export const DATA_DIR = '/var/lib/godwit';

const SHIM = programPath('machine/shim.ts');

const MODULES = [
  ...['loop', 'dm-mod', 'dm-clone', 'dm-crypt', 'iscsi_tcp', 'sd_mod', 'fuse'],
  ...['target_core_mod', 'target_core_file', 'iscsi_target_mod'],
];

/**
 * What a host of a fleet has after its own boot: modules, iscsid, and its disk mounted (made at the first
 * time).
 */
export async function prepareGuest(guest: Guest): Promise<void> {
  await mustRun(guest, ['modprobe', '-a', ...MODULES]);
  await mustRun(guest, ['mount', '-t', 'configfs', 'configfs', '/sys/kernel/config']);
  await mustRun(guest, ['mkdir', '-p', DATA_DIR, '/etc/iscsi', '/run/lock']);
  await guest.writeFile(
    '/etc/iscsi/initiatorname.iscsi',
    `InitiatorName=iqn.2026-11.dev.godwit:${guest.name}\n`,
  );
  await mustRun(guest, ['iscsid']);
  const [disk] = guest.disks as [string];
  const mounted = await guest.run(['mount', '-t', 'ext4', disk, DATA_DIR]);
  if (mounted.exitCode === 0) return;
  await mustRun(guest, ['mkfs.ext4', '-q', '-E', 'lazy_itable_init=0', disk]);
  await mustRun(guest, ['mount', '-t', 'ext4', disk, DATA_DIR]);
  if (kind.patience > 1) await compileShim(guest);
}

/**
 * A worker waits 30 s for a shim, however slow its processor is. So the first one finds the compiled code of
 * another, which ended for want of arguments.
 */
async function compileShim(guest: Guest): Promise<void> {
  await guest.run([process.execPath, '--max-semi-space-size=1', SHIM]);
}
