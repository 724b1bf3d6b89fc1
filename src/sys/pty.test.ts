import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, fstatSync, mkdirSync, readSync, symlinkSync, writeFileSync, writeSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { isatty } from 'node:tty';
import { until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { openPty, resizeTerminal } from './pty.ts';

const skip = requires('root', '/dev/pts/ptmx', 'stty', 'setsid');
const OWNER = { uid: 65534, gid: 65534 };

function open(t: TestContext) {
  const pty = openPty('/', OWNER, { columns: 100, rows: 30 });
  t.after(() => closeSync(pty.master));
  t.after(() => closeSync(pty.slave));
  return pty;
}

const stty = (slave: number) =>
  execFileSync('stty', ['size'], { stdio: [slave, 'pipe', 'inherit'], encoding: 'utf8' }).trim();

test('what is written at one end is read at the other, and the size is told', { skip }, async (t) => {
  const { master, slave } = open(t);
  assert.ok(isatty(slave));
  assert.equal(fstatSync(slave).uid, OWNER.uid);
  assert.equal(stty(slave), '30 100');
  resizeTerminal(master, { columns: 65_535, rows: 1 });
  assert.equal(stty(slave), '1 65535');
  assert.throws(
    () => readSync(master, Buffer.alloc(10)),
    { code: 'EAGAIN' },
    'a read of the master does not wait',
  );
  writeSync(slave, 'out\n');
  const buffer = Buffer.alloc(100);
  const text = await until('the bytes to come through the line discipline', () =>
    buffer.toString('utf8', 0, readSync(master, buffer)),
  );
  assert.equal(text, 'out\r\n');
});

test('a root whose /dev/pts leads elsewhere, or is something else, gets no terminal', { skip }, (t) => {
  const size = { columns: 80, rows: 24 };
  const dir = scratchDir(t);
  const roots = ['absolute', 'parent', 'file', 'none'].map((name) => {
    mkdirSync(`${dir}/${name}/dev`, { recursive: true });
    return `${dir}/${name}`;
  });
  const [absolute, parent, file, none] = roots as [string, string, string, string];
  symlinkSync('/dev/pts', `${absolute}/dev/pts`);
  mkdirSync(`${parent}/dev/pts`);
  symlinkSync('/dev/pts/ptmx', `${parent}/dev/pts/ptmx`);
  mkdirSync(`${file}/dev/pts`);
  writeFileSync(`${file}/dev/pts/ptmx`, '');
  const code = (root: string) => {
    try {
      openPty(root, OWNER, size);
    } catch (error) {
      if (isGodwitError(error)) return `${error.code} ${error.values.errno ?? ''}`.trim();
    }
    return 'opened';
  };
  assert.equal(code(absolute), 'SYS_CALL_FAILED ELOOP');
  assert.equal(code(parent), 'SYS_CALL_FAILED ELOOP');
  assert.equal(code(file), 'SYS_NO_PTY');
  assert.equal(code(none), 'SYS_CALL_FAILED ENOENT');
});
