import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  inPatience,
  mustEndWell,
  NotWorthWaiting,
  NotYet,
  OutOfPatience,
  patient,
  RUN_VARIABLE,
  runToEnd,
  slowness,
  until,
} from './patience.ts';
import { scratchDir } from './scratch.ts';

const MODULE = new URL('./patience.ts', import.meta.url).href;

/** A process of a run of its own, whose measure is in the folder `dir`. */
function inRun(dir: string, script: string) {
  return spawn(
    process.execPath,
    ['--input-type=module', '-e', `const p = await import('${MODULE}'); ${script}`],
    {
      env: { ...process.env, TMPDIR: dir, [RUN_VARIABLE]: 'a-run' },
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
}

async function saidBy(dir: string, script: string): Promise<string> {
  const child = inRun(dir, script);
  child.stdin.end();
  let said = '';
  child.stdout.on('data', (chunk) => (said += chunk));
  await once(child, 'close');
  return said.trim();
}

test('a wait ends with the first value that is it; an error is "not yet"', async () => {
  const values = [null, false, undefined, new NotYet('no'), new Error('away'), 0, 7];
  const look = () => {
    const value = values.shift();
    if (value instanceof Error) throw value;
    return value as number | null;
  };
  assert.equal(await until('seven', look, { is: (value) => value > 0 }), 7);
  assert.equal(await until('a value', () => 0), 0);
});

test('what will not change any more ends a wait at once, and so does its signal', async () => {
  const dead = () => {
    throw new NotWorthWaiting('it is dead');
  };
  await assert.rejects(until('life', dead), /^Error: it is dead$/);
  const signal = AbortSignal.abort(new Error('over'));
  await assert.rejects(
    until('more', () => null, { signal }),
    /^Error: over$/,
  );
});

test('a wait that is given up tells for what, how long, what the state was, and how slow the machine is', async () => {
  const told =
    /^waited [\d.]+ s for the moon; the state was \{"phase":"new"\}; more: 3; the base patience of 0\.03 s was scaled: this machine is [\d.]+ times as slow as a quiet one.*: a process takes [\d.]+ ms \(usual \d+\), a program [\d.]+ ms \(usual \d+\), an fsync [\d.]+ ms/;
  const options = { patienceMs: 30, state: () => 'more: 3' };
  await assert.rejects(
    until('the moon', () => new NotYet({ phase: 'new' }), options),
    (error) => error instanceof OutOfPatience && told.test(error.message),
  );
  await assert.rejects(
    until('the moon', () => ({ phase: 'new' }), { ...options, is: () => false }),
    (error) => error instanceof OutOfPatience && told.test(error.message),
  );
  const broken = () => {
    throw new Error('clouds');
  };
  await assert.rejects(until('the moon', broken, { patienceMs: 1 }), /the state could not be seen: clouds/);
});

test('a promise is waited for with the same patience', async () => {
  assert.equal(await inPatience('it', Promise.resolve(1)), 1);
  await assert.rejects(inPatience('it', Promise.reject(new Error('no'))), /^Error: no$/);
  const state = () => 'at its second step';
  await assert.rejects(
    inPatience('the end', new Promise(() => {}), { patienceMs: 5, state }),
    /for the end; at its second step; the base patience/,
  );
});

test('a program is heard to its end; one that outlives patience is killed, with what it said', async () => {
  assert.equal(await mustEndWell('cat', [], { input: 'hello' }), 'hello');
  const { exitCode, stderr } = await runToEnd('sh', ['-c', 'echo no >&2; exit 3']);
  assert.deepEqual([exitCode, stderr], [3, 'no\n']);
  await assert.rejects(mustEndWell('sh', ['-c', 'echo no >&2; exit 3']), /ended with 3: no/);
  await assert.rejects(mustEndWell('/no/such/program', []), /ENOENT/);
  await assert.rejects(
    runToEnd('sh', ['-c', 'echo $$; exec sleep 1000'], { patienceMs: 200 }),
    /for sh -c echo \$\$; exec sleep 1000 to end; \{"stdout":"\d*/,
  );
});

test('the measure is taken once a run, and again where it is missing or no measure', async (t) => {
  const dir = scratchDir(t);
  const script = 'console.log(JSON.stringify(p.measure()))';
  const first = await saidBy(dir, script);
  const { slowness: slow, processMs, programMs, fsyncMs } = JSON.parse(first);
  assert.ok(slow >= 1 && processMs > 0 && programMs > 0 && fsyncMs > 0, first);
  assert.equal(await saidBy(dir, script), first);
  const [file] = readdirSync(dir);
  assert.deepEqual(readdirSync(dir), ['godwit-measure-a-run.json']);
  for (const text of ['', '{', 'null', '{"processMs":0,"programMs":1,"fsyncMs":1,"slowness":1}']) {
    writeFileSync(join(dir, file!), text);
    assert.ok(JSON.parse(await saidBy(dir, script)).slowness >= 1, text);
    assert.notEqual(readFileSync(join(dir, file!), 'utf8'), text);
  }
});

test('all patience is scaled by the measure', async (t) => {
  const dir = scratchDir(t);
  const measured = { processMs: 1, programMs: 1, fsyncMs: 1, slowness: 7 };
  writeFileSync(join(dir, 'godwit-measure-a-run.json'), JSON.stringify(measured));
  const [scaled, waitedMs] = (
    await saidBy(
      dir,
      `const startedMs = performance.now();
       await p.until('never', () => null, { patienceMs: 50 }).catch(() => {});
       console.log(p.patient(100), performance.now() - startedMs);`,
    )
  ).split(' ');
  assert.equal(scaled, '700');
  assert.ok(Number(waitedMs) >= 350, waitedMs);
  assert.ok(slowness() >= 1 && patient(10) >= 10);
});

test('time in which the process did not run is none in which it waited', async (t) => {
  const dir = scratchDir(t);
  const measured = { processMs: 1, programMs: 1, fsyncMs: 1, slowness: 1 };
  writeFileSync(join(dir, 'godwit-measure-a-run.json'), JSON.stringify(measured));
  // Ample for what comes before the stop and after it, here.
  const patienceMs = patient(1_000);
  const child = inRun(
    dir,
    `let heard = false;
     process.stdin.on('data', () => { heard = true; });
     // In the middle of its wait, and not on the way to it.
     setTimeout(() => console.log('waiting'), 200);
     await p.until('a word', () => heard, { patienceMs: ${patienceMs} });
     console.log('heard');
     process.exit();`,
  );
  let said = '';
  child.stdout.on('data', (chunk) => (said += chunk));
  await until('it to wait', () => said === 'waiting\n');
  child.kill('SIGSTOP');
  // Longer than its patience: a clock that goes on shows it.
  const stoppedMs = performance.now();
  await until('its patience to be over', () => performance.now() - stoppedMs > 1.2 * patienceMs);
  child.stdin.write('x');
  child.kill('SIGCONT');
  await once(child, 'close');
  assert.equal(said, 'waiting\nheard\n');
});
