import { findOccupants } from '../../src/host/mount-occupants.ts';
import { mustEndWell, until } from './patience.ts';

/** Before scaling. */
const LET_GO_MS = 30_000;

/**
 * Unmounts a folder as soon as those that have ended let go of it: the kernel takes a process's memory, and
 * with it all by which a test knows the process, before it closes its files, so a filesystem can be busy for
 * a while after everybody is gone. Rejects with who holds it when patience is out.
 */
export async function unmount(dir: string, patienceMs = LET_GO_MS): Promise<void> {
  const look = () => mustEndWell('umount', [dir]).then(() => true);
  await until(`${dir} to be let go`, look, { patienceMs, state: () => findOccupants(dir, new Set()) });
}
