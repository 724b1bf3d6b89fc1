import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { NotYet } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { Terminal } from '../support/terminal.ts';
import { TestAuthority } from '../support/test-authority.ts';

/** `godwit machine exec -i` and `-t` on a terminal of another program, against a real worker, over TLS. */

const skip = fleetNeeds || requires('python3', 'openssl', 'stty', 'setsid');

async function fleetWithMachine(t: TestContext) {
  const tls = new TestAuthority(join(scratchDir(t), 'ca')).issue('a');
  const fleet = await Fleet.start(t, ['a'], { tls: { a: tls } });
  const worker = fleet.worker('a');
  const machine = await worker.client.createMachine({
    name: 'm',
    start: true,
    config: {
      command: ['sleep', 'infinity'],
      env: { GREETING: 'hello' },
      restart: { policy: 'no', retriesMax: 0 },
      stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
      resources: {},
      network: 'none',
      metadata: {},
    },
  });
  const execWith = (env: NodeJS.ProcessEnv, ...words: string[]) =>
    new Terminal(t, fleet.command('machine', 'exec', ...words), { ...process.env, ...env });
  const exec = (...words: string[]) => execWith({}, ...words);
  /** Runs a line of shell inside, without a session. */
  const inside = async (line: string) =>
    (await worker.client.execInMachine(machine.id, { command: ['sh', '-c', line], timeoutMs: 60_000 }))
      .stdout;
  return { fleet, worker, machine, exec, execWith, inside };
}

const RAW = { echo: false, canonical: false, signals: false, outputProcessing: false };

/** Writes down that it was hung up; a hangup in mid-test would be seen by nobody. */
const HUNG_UP = `trap 'echo hup >> /tmp/hung-up; exit' HUP; echo ready; while :; do sleep 0.1; done`;

test('a command has a terminal of its machine, of the size of the one outside, which it follows', {
  skip,
}, async (t) => {
  const { exec, fleet, inside } = await fleetWithMachine(t);
  const terminal = exec('-it', 'm', '--', 'bash', '--norc');
  await terminal.says(/bash.*# /);
  assert.deepEqual(await terminal.modes(), RAW);
  terminal.type('tty; stty size; echo "$GREETING $TERM"; readlink /proc/self/fd/0; id -u\n');
  await terminal.says(/\/dev\/pts\/0\r\n30 100\r\nhello \S+\r\n\/dev\/pts\/0\r\n0\r\n/);
  const size = async (wanted: RegExp) => {
    terminal.type('stty size\n');
    const [, found] = await terminal.says(/[\r\n](\d+ \d+)\r\n/);
    return wanted.test(found!) || new NotYet(found);
  };
  terminal.resize(120, 40);
  await fleet.until('the size of the terminal inside to follow', () => size(/^40 120$/));
  // None of the host's: its own instance has this terminal and the multiplexer.
  terminal.type('ls -m /dev/pts\n');
  await terminal.says(/0, ptmx\r\n/);
  terminal.type('sleep 1000\n');
  await terminal.says(/sleep 1000\r\n/);
  // Before it has the terminal the shell would take the key, and then wait for it.
  await fleet.until('the sleep to run', async () => {
    const commands = await inside(`for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $each; echo; done`);
    return /^sleep 1000 $/m.test(commands) || new NotYet(commands);
  });
  terminal.type('\x03');
  await terminal.says(/\^C[\s\S]*# $/);
  terminal.type('echo "ended with $?"\n');
  await terminal.says(/ended with 130/);
  terminal.type('exit 7\n');
  assert.equal(await terminal.ended(), 7);
  const { echo, canonical, signals, outputProcessing } = await terminal.modes();
  assert.ok(echo && canonical && signals && outputProcessing, 'the terminal is as it was');
});

test('nothing is shown before the terminal is raw, however long that takes', { skip }, async (t) => {
  const { execWith } = await fleetWithMachine(t);
  const programs = join(scratchDir(t), 'bin');
  mkdirSync(programs);
  const stty = `#!/bin/sh\nsleep 0.3\nexec ${findProgram('stty')} "$@"\n`;
  writeFileSync(join(programs, 'stty'), stty, { mode: 0o755 });
  const terminal = execWith(
    { PATH: `${programs}:${process.env.PATH}` },
    '-it',
    'm',
    '--',
    'sh',
    '-c',
    HUNG_UP,
  );
  await terminal.says(/ready/);
  assert.deepEqual(await terminal.modes(), RAW);
});

test('the terminal is put back, and the program hung up, whatever ends the command line', {
  skip,
}, async (t) => {
  const { exec, fleet, inside, worker } = await fleetWithMachine(t);
  const hungUp = (times: number) => async () => {
    const count = (await inside('cat /tmp/hung-up 2>/dev/null')).split('\n').length - 1;
    return count === times || new NotYet(count);
  };
  const begun = async () => {
    const terminal = exec('-it', 'm', '--', 'sh', '-c', HUNG_UP);
    await terminal.says(/ready/);
    assert.deepEqual(await terminal.modes(), RAW);
    return terminal;
  };
  const putBack = async (terminal: Terminal) => {
    const modes = { echo: true, canonical: true, signals: true, outputProcessing: true };
    const found = async () => {
      const now = await terminal.modes();
      return JSON.stringify(now) === JSON.stringify(modes) || new NotYet(now);
    };
    await fleet.until('the terminal to be as it was', found);
  };
  let times = 0;
  for (const [signal, status] of [
    ['SIGTERM', 143],
    ['SIGHUP', 129],
    ['SIGINT', 130],
    ['SIGKILL', -9],
    ['SIGQUIT', -3],
    ['SIGABRT', -6],
  ] as const) {
    const terminal = await begun();
    terminal.signal(signal);
    assert.equal(await terminal.ended(), status, signal);
    await putBack(terminal);
    await fleet.until(`the hangup after ${signal}`, hungUp(++times));
  }
  const closed = await begun();
  closed.close();
  await fleet.until('the hangup after the window was closed', hungUp(++times));

  const cut = await begun();
  await worker.kill();
  assert.equal(await cut.ended(), 4);
  assert.match(cut.output, /API_UNREACHABLE/);
  await putBack(cut);
  await worker.start();
  await fleet.until('the hangup after the worker was killed', hungUp(++times));
});

test('a machine that stops ends its sessions, and one that does not run has none', { skip }, async (t) => {
  const { exec, fleet, worker, machine } = await fleetWithMachine(t);
  const terminal = exec('-it', 'm', '--', 'sh', '-c', 'echo ready; sleep 1000');
  await terminal.says(/ready/);
  await worker.client.stopMachine(machine.id);
  assert.equal(await terminal.ended(), 125);
  const refused = await fleet.runWith({ input: '' }, 'machine', 'exec', '-i', 'm', '--', 'cat');
  assert.equal(refused.exitCode, 6, refused.stderr);
  assert.match(refused.stderr, /MACHINE_NOT_RUNNING/);
});

test('-i passes a pipe on, keeps both outputs apart, and ends with the exit code; -t without a terminal is refused', {
  skip,
}, async (t) => {
  const { fleet, inside } = await fleetWithMachine(t);
  const exec = (input: string, ...words: string[]) => fleet.runWith({ input }, 'machine', 'exec', ...words);
  // Many windows of input, and as much output.
  const input = 'a line of input\n'.repeat(100_000);
  const found = await exec(input, '-i', 'm', '--', 'sh', '-c', 'cat; echo err >&2; exit 9');
  assert.equal(found.exitCode, 9, found.stderr);
  assert.equal(found.stderr, 'err\n');
  assert.ok(found.stdout === input, `${found.stdout.length} bytes came back of ${input.length}`);
  const unread = await exec(input, '-i', 'm', '--', 'true');
  assert.equal(unread.exitCode, 0, unread.stderr);
  const daemon = await exec('', '-i', 'm', '--', 'sh', '-c', '(sleep 1000 &) ; echo done');
  assert.deepEqual(
    [daemon.exitCode, daemon.stdout],
    [0, 'done\n'],
    'a daemon that keeps the pipes is not waited for',
  );

  const refused = await exec('', '-it', 'm', '--', 'true');
  assert.equal(refused.exitCode, 2);
  assert.match(refused.stderr, /CLI_NO_TERMINAL/);

  const left = fleet.follow('machine', 'exec', '-i', 'm', '--', 'sh', '-c', HUNG_UP);
  await left.says('ready');
  left.interrupt();
  assert.equal((await left.ended).exitCode, 130);
  await fleet.until('the hangup', async () => (await inside('cat /tmp/hung-up')) === 'hup\n');
});
