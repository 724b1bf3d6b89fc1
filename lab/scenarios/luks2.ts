import { fileURLToPath } from 'node:url';
import { Lab } from '../lab.ts';
import { mustRun } from '../member.ts';
import { DATA_DIR, prepareGuest } from '../prepare.ts';

const PROGRAM = fileURLToPath(new URL('../luks2-program.ts', import.meta.url));

/** Our LUKS2 and the kernel's dm-crypt read one another's volumes. */
export async function luks2(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({ guests: [{ name: 'guest', diskBytes: [2 ** 30] }] });
  try {
    const guest = lab.guest('guest');
    await prepareGuest(guest);
    const argv = [process.execPath, '--disable-warning=ExperimentalWarning', PROGRAM, DATA_DIR];
    for (const line of (await mustRun(guest, argv, { timeoutMs: 240_000 })).split('\n')) say(line);
  } finally {
    await lab.close();
  }
}
