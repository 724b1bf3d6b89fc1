import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { systemErrorCode } from '../../src/base/errors.ts';
import { mayLack } from './skips.ts';

const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));

/** Commits that tests go on from. */
export const EARLIER = {
  /**
   * The last version before errors said whether trying again can help, and before the reserve of a disk had
   * two halves. It runs from its sources.
   */
  plainErrors: 'c968b3e8d5562503a921aa5987138e282050c9a0',
  /**
   * The last version before what is told to a volume server was a tagged union, and before the steps of moves
   * were files of their own. It runs from dist/, as its package does.
   */
  plainOpenings: 'b44e567765eefafb08e2562c72d07d6ecf4f0854',
} as const;

/** For `skip` of node:test. */
export function lacksEarlierVersion(commit: string): string | false {
  const { status } = spawnSync('git', ['-C', CHECKOUT, 'cat-file', '-e', `${commit}^{commit}`]);
  return mayLack('history of the checkout', status === 0);
}

/** An earlier version of godwit, as it is installed on one host. */
export type EarlierVersion = {
  /** Path of its command line. */
  main: string;
  /**
   * Puts this version in its place, as a package manager does: what runs goes on, and what is started from
   * now on, by whomever, is this one.
   */
  upgrade(): void;
};

/** Installs that version in `dir`, on the npm packages of this one. */
export function earlierVersion(dir: string, commit: string): EarlierVersion {
  const from = checkoutOf(commit);
  const [programs, main] = existsSync(join(from, 'dist')) ? ['dist', 'cli/main.js'] : ['src', 'cli/main.ts'];
  mkdirSync(dir, { recursive: true });
  for (const name of ['package.json', programs])
    cpSync(join(from, name), join(dir, name), { recursive: true });
  symlinkSync(join(CHECKOUT, 'node_modules'), join(dir, 'node_modules'));
  const place = join(dir, programs);
  return {
    main: join(place, main),
    upgrade() {
      // `scripts/test` has made them already.
      if (programs === 'dist' && !process.env.GODWIT_PROGRAMS) execFileSync(join(CHECKOUT, 'scripts/bundle'));
      renameSync(place, `${place}.earlier`);
      symlinkSync(join(CHECKOUT, programs), place);
    },
  };
}

/** That commit's sources and, from when there were any, its programs; made once for all tests. */
function checkoutOf(commit: string): string {
  const folder = join(CHECKOUT, '.cache', 'earlier', commit);
  if (existsSync(folder)) return folder;
  mkdirSync(dirname(folder), { recursive: true });
  const made = mkdtempSync(`${folder}.`);
  const archive = execFileSync('git', ['-C', CHECKOUT, 'archive', commit, 'package.json', 'src', 'scripts'], {
    maxBuffer: 2 ** 28,
  });
  execFileSync('tar', ['-x', '-C', made], { input: archive });
  symlinkSync(join(CHECKOUT, 'node_modules'), join(made, 'node_modules'));
  const bundle = join(made, 'scripts/bundle');
  if (existsSync(bundle)) execFileSync(bundle);
  try {
    renameSync(made, folder);
  } catch (error) {
    // Another test process was there first.
    if (systemErrorCode(error) !== 'ENOTEMPTY' && systemErrorCode(error) !== 'EEXIST') throw error;
    rmSync(made, { recursive: true });
  }
  return folder;
}
