import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { toldCommands } from '../support/told-commands.ts';

/*
 * Every command that docs, errors and `why` tell people to type, typed in a fleet of three with a move on its
 * way: it finds what it is about, wherever that is, and does it or says by name why not.
 */

/** Programs that go on, or are for a host and not for a fleet; what is begun by them has tests of its own. */
const NOT_OF_A_FLEET = /^(worker|dev|doctor|machine run|volume import|volume create)\b|^--/;
/** A terminal, another system, or somebody else's key. */
const NEEDS_MORE = /-it |--iscsi|--key |--rekey$/;
/** Spoken of without what they are about. */
const NO_OBJECT =
  /^(machine|volume|runs)( (?!list)[a-z-]+)?( --force)?$|^(move|why|undrain|drain|receipt)( --(dry-run|verify|rekey))?$|^volume recover \S+$/;
/** A refusal that says no more than that nobody looked at the right place, or at the words. */
const LOST = /INTERNAL|_NOT_FOUND|UNKNOWN_RUN|INVALID_OPTIONS|NO_ROUTE|^error: |API_INVALID/m;
/** What changes most comes last. */
const ORDER = [
  ...[/^(why|top|receipt|machine (list|show|logs)|volume (list|show)|runs (list|show))/, /^runs nudge/],
  ...[/^runs/, /^volume (serve|accept|recover|move)/, /^drain .*--dry/, /^undrain/, /^drain/, /^move/],
  ...[/^machine (stop|start|restart)/, /^volume destroy/, /^machine destroy/],
];

test('every command that people are told to type does something in a fleet of three', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], { flags: { b: ['--hydration-rate', '8KiB'] } });
  const a = fleet.worker('a');
  const { godwit } = fleet;
  const disk = ['--size', '64MiB', '--no-encryption'];
  const machine = async (name: string, worker: string, script: string) =>
    godwit(
      0,
      ...['machine', 'run', '--name', name, '--worker', worker, '--volume', `${name}-data`, ...disk],
      ...['--', 'sh', '-c', script],
    );
  await machine('db', 'a', 'head -c 30000000 /dev/urandom >/data/x; sync; exec sleep infinity');
  await machine('old', 'c', 'exec sleep infinity');
  await godwit(0, 'move', 'old', '--to', 'a');
  const receiptFile = join(fleet.dir, 'receipt.json');
  writeFileSync(receiptFile, (await fleet.reply(0, '--json', 'receipt', 'old')).stdout);
  await fleet.until('the ballast', async () => (await a.client.showVolume('db-data')).usedBytes > 30e6);
  await godwit(0, 'volume', 'create', 'disk', '--worker', 'c', ...disk);
  const moving = await a.client.moveMachine('db', { target: 'b' });
  await fleet.until('the move to serve', async () => (await a.client.showRun(moving.id)).step === 'serve');

  let serial = 0;
  /** What stands for something else is that; null: it is not tried. */
  const concrete = (words: readonly string[]): string[] | null => {
    const line = words.join(' ');
    if (NOT_OF_A_FLEET.test(line) || NEEDS_MORE.test(line)) return null;
    if (NO_OBJECT.test(line)) return null;
    const [verb, what] = words;
    const of: Record<string, string> = { runs: moving.id, volume: 'disk', drain: 'c', undrain: 'c' };
    const object = verb === 'receipt' || what === 'recover' ? 'old' : (of[verb!] ?? 'db');
    const named = what === 'recover' ? 'old-data' : object;
    const filled = words.map((word, at) => {
      if (/^unix:/.test(word)) return `unix:${join(fleet.dir, 'told.sock')}`;
      if (words[at - 1] === '--as') return `as-${serial++}`;
      if (words[at - 1] === '--receipts') return join(fleet.dir, 'receipts');
      if (words[at - 1] === '--verify') return receiptFile;
      if (/^(MOVE|RUN)\.in$/.test(word)) return targetRunId(moving.id);
      if (verb === 'runs' && at === 3 && word === 'X') return 'undo';
      return /^(X|NAME|VOLUME|RUN|MOVE|WORKER|db|db-data|disk|worker-1)$/.test(word) ? named : word;
    });
    if (line.includes('--nbd')) filled.push('--detach');
    if (verb === 'top' || (verb === 'drain' && !line.includes('--dry-run')))
      filled.push(...(verb === 'top' ? ['--once'] : ['--wait', '1s']));
    return filled;
  };
  const typed = new Map<string, string[]>();
  for (const { words } of toldCommands()) {
    const filled = concrete(words);
    if (filled !== null) typed.set(filled.filter((word) => !/^as-/.test(word)).join(' '), filled);
  }
  const rank = (line: string) => ORDER.findIndex((pattern) => pattern.test(line));
  const lines = [...typed.keys()].sort((left, right) => rank(left) - rank(right));
  assert.ok(lines.length > 30, `only ${lines.length}: ${lines.join('; ')}`);

  const lost: string[] = [];
  for (const line of lines) {
    if (/^volume destroy/.test(line)) await fleet.run('volume', 'create', 'disk', '--worker', 'c', ...disk);
    const { exitCode, stdout, stderr } = await fleet.run(...typed.get(line)!);
    // Told without the word that makes it so, on purpose; and of a volume that has lost nothing.
    if (/then: godwit runs force .* --yes$|VOLUME_NO_SUCH_LOSS/m.test(stderr)) continue;
    const said = `${line} (${exitCode}): ${stderr}`;
    t.diagnostic(said.split('\n')[0]!);
    const refused = exitCode === 3 || exitCode === 6;
    if (exitCode !== 0 && !refused) lost.push(said);
    else if (LOST.test(stderr)) lost.push(said);
    else if (refused && !/next: ./.test(stderr + stdout)) lost.push(`no next action: ${said}`);
    if (/^drain/.test(line)) await fleet.run('undrain', 'c');
    if (/^volume serve.*--nbd/.test(line)) await fleet.run('volume', 'serve', 'disk', '--stop');
  }
  assert.deepEqual(lost, []);
  const left = await Promise.all(fleet.workers.map(({ client }) => client.listMachines()));
  assert.deepEqual(
    left.flat().filter(({ name, state }) => name === 'db' && state === 'running'),
    [],
  );
});
