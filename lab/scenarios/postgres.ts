import assert from 'node:assert/strict';
import { connect, createServer, type Server } from 'node:net';
import { fileURLToPath } from 'node:url';
import { postgresClient, preparePostgres, readPostgres } from '../../demo/clients.ts';
import { postgresMachine } from '../../demo/machines.ts';
import { Lab } from '../lab.ts';
import { LabWorker } from '../lab-worker.ts';
import { type Member, mustRun } from '../member.ts';
import { DATA_DIR, prepareGuest } from '../prepare.ts';
import { splice } from '../splice.ts';
import { assertNothingLeft, until } from './move.ts';

const POSTGRES_PORT = 5432;
const RELAY_PORT = 5433;
const RELAY = fileURLToPath(new URL('../relay.ts', import.meta.url));
const BALLAST_ROWS = 40_000;
const KEY = 'a key of the lab';
const KEY_FILE = '/etc/godwit-keys/volume';

/**
 * A worker of the kernel plane is drained while a client commits into the PostgreSQL of its machine, on an encrypted volume. Held to: every commit that was
 * acknowledged is there, the rest of the database is what it was, nothing is left in the source's kernel, and cryptsetup opens the volume
 * at the target, where e2fsck finds nothing.
 */
export async function postgres(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 32], memoryMib: 640 })),
  });
  let server: Server | null = null;
  try {
    const guests = ['source', 'target'].map((name) => lab.guest(name));
    await Promise.all(guests.map((guest) => prepareGuest(guest)));
    for (const guest of guests) {
      await mustRun(guest, ['mkdir', '-m', '700', '/etc/godwit-keys']);
      await guest.writeFile(KEY_FILE, KEY, 0o600);
      await guest.spawn([process.execPath, RELAY, String(RELAY_PORT), String(POSTGRES_PORT)], {
        logPath: '/tmp/relay.log',
      });
    }
    const [source, target] = guests.map(
      (guest) =>
        new LabWorker(guest, {
          dataDir: DATA_DIR,
          peers: guests.filter((other) => other !== guest),
          flags: ['--plane', 'kernel', '--key-file', KEY_FILE],
        }),
    ) as [LabWorker, LabWorker];
    await Promise.all([source.start(), target.start()]);

    const { volume, machine } = postgresMachine('postgres', 2 ** 30, POSTGRES_PORT);
    const { id: volumeId } = await source.client.createVolume(volume);
    const wanted = machine(volumeId);
    const { id: machineId } = await source.client.createMachine({
      ...wanted,
      config: { ...wanted.config, resources: {} },
    });
    const front = await frontOf(guests);
    server = front.server;
    await until('PostgreSQL to answer', async () => {
      await preparePostgres(front.port);
      return true;
    });
    const client = postgresClient(front.port);
    client.start();
    await until('commits', async () => client.acknowledged > 50);
    say(`PostgreSQL commits, on an encrypted volume; ${client.acknowledged} so far`);

    client.resetGap();
    const startedMs = Date.now();
    await source.cli('drain', source.name, '--wait', '10m');
    say(`drained after ${Date.now() - startedMs} ms`);
    const before = client.acknowledged;
    await until('commits at the target', async () => client.acknowledged > before + 20);
    const report = await client.stop();
    say(`longest time without a commit: ${report.longestGapMs} ms`);

    const { numbers, ballast } = await until('the rows', () => readPostgres(front.port));
    const lost = report.acknowledged.filter((number) => !numbers.has(number));
    assert.deepEqual(lost, [], 'commits that were acknowledged');
    assert.equal(ballast, BALLAST_ROWS);
    await assertNothingLeft(source.member, 'kernel', volumeId);

    await target.client.stopMachine(machineId);
    await until('the stop', async () => (await target.client.showMachine(machineId)).state === 'stopped');
    await target.client.destroyMachine(machineId, { force: true });
    await assertNothingLeft(target.member, 'kernel', volumeId);
    await checkWithCryptsetup(target.member, `${DATA_DIR}/volumes/${volumeId}`);
    say(
      `${report.acknowledged.length} commits, none lost; cryptsetup opens the volume, and its filesystem is clean`,
    );
  } finally {
    server?.close();
    await lab.close();
  }
}

async function checkWithCryptsetup(member: Member, folder: string): Promise<void> {
  const open = ['cryptsetup', 'open', '--type', 'luks2', '--key-file', KEY_FILE];
  await mustRun(member, [...open, '--header', `${folder}/header.luks2`, `${folder}/data.raw`, 'check']);
  try {
    await mustRun(member, ['e2fsck', '-f', '-n', '/dev/mapper/check']);
  } finally {
    await mustRun(member, ['cryptsetup', 'close', 'check']);
  }
}

/** A port of the lab itself that leads to the members in turn: a client that connects again finds the one that answers. */
async function frontOf(members: readonly Member[]): Promise<{ server: Server; port: number }> {
  let turn = 0;
  const server = createServer((socket) => {
    const onward = connect(RELAY_PORT, members[turn++ % members.length]!.address);
    splice(socket, onward);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('no port');
  return { server, port: address.port };
}
