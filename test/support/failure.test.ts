import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { runToEnd } from './patience.ts';
import { scratchDir } from './scratch.ts';

const SUPPORT = fileURLToPath(new URL('.', import.meta.url));

/** A file of tests of its own, whose folders are in `dir`. */
async function runFixture(dir: string, text: string, env: Record<string, string> = {}): Promise<string> {
  const file = join(dir, 'fixture.test.ts');
  writeFileSync(
    file,
    `import assert from 'node:assert/strict';
     import { writeFileSync } from 'node:fs';
     import { join } from 'node:path';
     import { describe, it, test } from 'node:test';
     import { scratchDir } from '${SUPPORT}scratch.ts';
     import { testSeed } from '${SUPPORT}seed.ts';
     ${text}`,
  );
  mkdirSync(join(dir, 'state'), { recursive: true });
  const { NODE_TEST_CONTEXT: _, ...inherited } = process.env;
  const words = ['--disable-warning=ExperimentalWarning', '--test', '--test-reporter=spec', file];
  const { stdout, stderr } = await runToEnd(process.execPath, words, {
    cwd: dir,
    env: { ...inherited, TMPDIR: join(dir, 'state'), GODWIT_LONG: '', ...env },
  });
  return stdout + stderr;
}

test('a test that fails tells its seed, its folder, which stays, the ends of its logs, and the command that repeats it', async (t) => {
  const dir = scratchDir(t);
  const said = await runFixture(
    dir,
    `test("it's the one that fails", (t) => {
       const folder = scratchDir(t);
       writeFileSync(join(folder, 'worker.log'), Array.from({ length: 40 }, (_, index) => 'line ' + index).join('\\n'));
       writeFileSync(join(folder, 'data.raw'), 'not a log');
       writeFileSync(join(folder, 'fetch.log'), Buffer.from([1, 0, 2, 10]));
       assert.equal(testSeed(), 1);
     });`,
    { GODWIT_SEED: '4711', GODWIT_LONG: '1' },
  );
  assert.match(said, /^FAILED: it's the one that fails$/m);
  assert.match(said, /^ {2}seed: 4711$/m);
  assert.ok(
    said.includes(`--name 'it'\\''s the one that fails'`) &&
      /again: GODWIT_LONG=1 GODWIT_SEED=4711 scripts\/test .*fixture\.test\.ts --name/.test(said),
    said,
  );
  assert.match(said, /times as slow as a quiet one/);
  const folder = /state kept: (\S+)/.exec(said)?.[1];
  assert.ok(folder?.startsWith(join(dir, 'state')) && existsSync(join(folder, 'data.raw')), said);
  assert.match(said, /--- the end of \S+worker\.log\nline 25\n(line \d+\n){13}line 39\n/);
  assert.doesNotMatch(said, /not a log|fetch\.log/);
});

test('a seed that was drawn is told too; tests in tests and suites keep their folders; what passes leaves nothing', async (t) => {
  const dir = scratchDir(t);
  const said = await runFixture(
    dir,
    `test('outer', async (t) => {
       writeFileSync(join(scratchDir(t), 'outer.log'), 'outer log');
       await t.test('inner', () => assert.equal(testSeed(), -1));
     });
     describe('suite', () => {
       it('bad', (t) => { scratchDir(t); assert.fail('no'); });
       it('good', (t) => { writeFileSync(join(scratchDir(t), 'good.log'), 'good log'); });
     });
     test('good alone', (t) => { writeFileSync(join(scratchDir(t), 'good.log'), 'good log'); });`,
  );
  assert.match(said, /^FAILED: outer > inner$/m);
  const seed = /^ {2}seed: (\d+)$/m.exec(said)?.[1];
  assert.match(said, new RegExp(`again: GODWIT_SEED=${seed} scripts/test \\S+ --name 'outer'\n`));
  assert.match(said, /^FAILED: suite > bad$/m);
  assert.match(said, /--- the end of \S+outer\.log\nouter log\n/);
  assert.doesNotMatch(said, /good log|FAILED: .*good/);
  const kept = readdirSync(join(dir, 'state')).filter((name) => name.startsWith('gw-'));
  assert.equal(kept.length, 2, `${kept}`);
  rmSync(join(dir, 'state'), { recursive: true });
  const quiet = await runFixture(dir, "test('good', (t) => { scratchDir(t); testSeed(); });");
  assert.doesNotMatch(quiet, /FAILED|again:|state kept/);
  assert.deepEqual(
    readdirSync(join(dir, 'state')).filter((name) => name.startsWith('gw-')),
    [],
  );
});
