import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, renameSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { mayLack } from './skips.ts';

const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));

/**
 * The last version before errors said whether trying again can help, and before the reserve of a disk had two
 * halves.
 */
const EARLIER = 'c968b3e8d5562503a921aa5987138e282050c9a0';

/** For `skip` of node:test. */
export function lacksEarlierVersion(): string | false {
  const { status } = spawnSync('git', ['-C', CHECKOUT, 'cat-file', '-e', `${EARLIER}^{commit}`]);
  return mayLack('history of the checkout', status === 0);
}

/** Puts the sources of that version into `dir`, on the packages of this one: the path of its command line. */
export function earlierMain(dir: string): string {
  mkdirSync(dir, { recursive: true });
  const archive = execFileSync('git', ['-C', CHECKOUT, 'archive', EARLIER, 'package.json', 'src'], {
    maxBuffer: 2 ** 28,
  });
  execFileSync('tar', ['-x', '-C', dir], { input: archive });
  symlinkSync(join(CHECKOUT, 'node_modules'), join(dir, 'node_modules'));
  return join(dir, 'src/cli/main.ts');
}

/**
 * Puts this version in the place of that one, as a package manager does: what runs goes on, and what is
 * started from now on is this one.
 */
export function upgradeInPlace(dir: string): void {
  renameSync(join(dir, 'src'), join(dir, 'src.earlier'));
  symlinkSync(join(CHECKOUT, 'src'), join(dir, 'src'));
}
