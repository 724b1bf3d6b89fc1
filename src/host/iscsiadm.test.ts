import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type RecordedRun, RecordedTools } from '../../test/support/recorded-tools.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { Iscsiadm, parseSessions, withSettings } from './iscsiadm.ts';

const IFACE = 'godwit-worker.w2.vol-x';
const TARGET = 'iqn.2026-11.dev.godwit:vol-x.g3';
const LOGIN = {
  targetIqn: TARGET,
  host: '10.77.0.1',
  port: 3260,
  initiatorIqn: 'iqn.2026-11.dev.godwit:worker.w2.vol-x',
  chapUser: 'vol_X',
  chapSecret: 'a-secret-that-is-in-no-argument',
};
const NODE = ['iscsiadm', '-m', 'node', '-T', TARGET, '-p', '10.77.0.1:3260,1', '-I', IFACE] as const;
const SESSIONS = ['iscsiadm', '-m', 'session'] as const;
const NO_SESSION: RecordedRun = { argv: SESSIONS, exitCode: 21, stderr: 'iscsiadm: No active sessions.\n' };
const ONE_SESSION: RecordedRun = {
  argv: SESSIONS,
  stdout: `tcp: [1] 10.77.0.1:3260,1 ${TARGET} (non-flash)\n`,
};
// Recorded in the lab, open-iscsi 2.1.8, up to the settings that are made here.
const MAKE_RECORD: RecordedRun[] = [
  { argv: ['iscsiadm', '-m', 'iface', '-I', IFACE, '-o', 'new'], stdout: `New interface ${IFACE} added\n` },
  {
    argv: [
      ...(['iscsiadm', '-m', 'iface', '-I', IFACE, '-o', 'update'] as const),
      ...['-n', 'iface.initiatorname', '-v', LOGIN.initiatorIqn],
    ],
    stdout: `${IFACE} updated.\n`,
  },
  { argv: [...NODE, '-o', 'new'], stdout: 'New iSCSI node added\n' },
];
const RECORD = `# BEGIN RECORD 2.1.8
node.name = ${TARGET}
node.startup = automatic
node.session.auth.authmethod = None
node.session.timeo.replacement_timeout = 120
# END RECORD
`;

async function database(t: TestContext): Promise<{ databaseDir: string; record: string }> {
  const databaseDir = await mkdtemp(join(tmpdir(), 'godwit-iscsi-'));
  t.after(() => rm(databaseDir, { recursive: true }));
  const folder = join(databaseDir, 'nodes', TARGET, '10.77.0.1,3260,1');
  await mkdir(folder, { recursive: true });
  const record = join(folder, IFACE);
  await writeFile(record, RECORD);
  return { databaseDir, record };
}

test('a login has an initiator name of its own, and its secret only in a file', async (t) => {
  const { databaseDir, record } = await database(t);
  const tools = new RecordedTools([
    NO_SESSION,
    ...MAKE_RECORD,
    { argv: [...NODE, '--login'], stdout: 'Login successful.\n' },
    ONE_SESSION,
  ]);
  const iscsi = new Iscsiadm({ tools, clock: systemClock, databaseDir, sysfsDir: databaseDir });
  assert.deepEqual(await iscsi.login(LOGIN), {
    sessionId: 1,
    host: '10.77.0.1',
    port: 3260,
    targetIqn: TARGET,
  });
  const text = await readFile(record, 'utf8');
  assert.match(text, /^node\.session\.auth\.password = a-secret-that-is-in-no-argument$/m);
  assert.match(text, /^node\.session\.timeo\.replacement_timeout = -1$/m);
  assert.doesNotMatch(text, /= None|automatic|= 120/);
  assert.match(text, /# END RECORD\n$/);
  assert.equal((await stat(record)).mode & 0o777, 0o600);
  assert.deepEqual(tools.left, []);
});

test('a source that refuses, and a host without its daemon', async (t) => {
  const { databaseDir } = await database(t);
  const refusing = new RecordedTools([
    NO_SESSION,
    ...MAKE_RECORD,
    {
      argv: [...NODE, '--login'],
      exitCode: 24,
      stderr:
        'iscsiadm: Could not login to [...].\niscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)\niscsiadm: Could not log into all portals\n',
    },
  ]);
  const options = { clock: systemClock, databaseDir, sysfsDir: databaseDir };
  await assert.rejects(new Iscsiadm({ ...options, tools: refusing }).login(LOGIN), (error) => {
    assert.ok(isGodwitError(error, 'HOST_ISCSI_LOGIN_REFUSED'));
    assert.match(error.nextAction, /grant/);
    return true;
  });
  const without = new RecordedTools([
    {
      argv: SESSIONS,
      exitCode: 20,
      stderr: 'iscsiadm: can not connect to iSCSI daemon (111)!\n',
    },
  ]);
  await assert.rejects(new Iscsiadm({ ...options, tools: without }).sessions(), (error) =>
    isGodwitError(error, 'HOST_ISCSI_NO_DAEMON'),
  );
});

test('a logout is asked for twice', async (t) => {
  const { databaseDir } = await database(t);
  const remove: RecordedRun[] = [
    {
      argv: ['iscsiadm', '-m', 'node', '-T', TARGET, '-o', 'delete'],
      exitCode: 21,
      stderr: 'iscsiadm: No records found\n',
    },
    {
      argv: ['iscsiadm', '-m', 'iface', '-I', IFACE, '-o', 'delete'],
      exitCode: 7,
      stderr: 'iscsiadm: Could not read iface info\n',
    },
  ];
  const tools = new RecordedTools([
    ONE_SESSION,
    { argv: ['iscsiadm', '-m', 'node', '-T', TARGET, '--logout'], stdout: 'Logout successful.\n' },
    ...remove,
    NO_SESSION,
    ...remove,
  ]);
  const iscsi = new Iscsiadm({ tools, clock: systemClock, databaseDir, sysfsDir: databaseDir });
  await iscsi.logout(LOGIN);
  await iscsi.logout(LOGIN);
  assert.deepEqual(tools.left, []);
});

test('sessions: those that are known, and none that are guessed', () => {
  assert.deepEqual(parseSessions('tcp: [12] [fd66::1]:3260,1 iqn.a:b (non-flash)\n'), [
    { sessionId: 12, host: 'fd66::1', port: 3260, targetIqn: 'iqn.a:b' },
  ]);
  assert.deepEqual(parseSessions('\n'), []);
  assert.throws(
    () => parseSessions('tcp: something new\n'),
    (error) => isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
  );
});

test('settings replace what is there and stay inside the record', () => {
  assert.equal(withSettings('a = 1\n# END RECORD\n', { b: '2' }), 'a = 1\nb = 2\n# END RECORD\n');
  assert.equal(withSettings('a = 1\n', { a: '2' }), 'a = 2\n');
});
