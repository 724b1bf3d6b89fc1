import assert from 'node:assert/strict';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { postgresClient, preparePostgres, readPostgres } from '../../demo/clients.ts';
import { postgresMachine } from '../../demo/machines.ts';
import { Lab } from '../lab.ts';
import type { LabWorker } from '../lab-worker.ts';
import { type Member, mustRun } from '../member.ts';
import { splice } from '../splice.ts';
import {
  assertNothingLeft,
  endHostWorker,
  GUEST_KEY_FILE,
  isGuest,
  leftOn,
  type Plane,
  tellStates,
  until,
  workerPair,
} from './move.ts';

const POSTGRES_PORT = 5432;
const RELAY_PORT = 5433;
const RELAY = fileURLToPath(new URL('../relay.ts', import.meta.url));
const BALLAST_ROWS = 40_000;

/**
 * A worker is drained while a client commits into the PostgreSQL of its machine, on an encrypted volume. Held
 * to: every commit that was acknowledged is there, the rest of the database is what it was, nothing is left
 * of it on either worker but the source's retained volume, and cryptsetup and dm-crypt open that one and the
 * target's, where e2fsck finds nothing.
 */
export async function postgres(
  { from, to }: { from: Plane; to: Plane },
  say: (line: string) => void,
): Promise<void> {
  const members = [
    { name: 'source', plane: from },
    { name: 'target', plane: to },
  ] as const;
  const ofPlane = (plane: Plane) => members.filter((member) => member.plane === plane);
  const lab = await Lab.start({
    hosts: ofPlane('userspace'),
    guests: ofPlane('kernel').map(({ name }) => ({ name, diskBytes: [2 ** 32], memoryMib: 640 })),
  });
  const workers: LabWorker[] = [];
  let server: Server | null = null;
  try {
    const [source, target] = await workerPair(lab, { from, to, encrypted: true });
    for (const { member } of [source, target])
      await member.spawn([process.execPath, RELAY, String(RELAY_PORT), String(POSTGRES_PORT)], {
        logPath: join(isGuest(member) ? '/tmp' : lab.folder, `${member.name}-relay.log`),
      });
    workers.push(source, target);
    await Promise.all([source.start(), target.start()]);

    const { volume, machine } = postgresMachine('postgres', 2 ** 30, POSTGRES_PORT);
    const { id: volumeId } = await source.client.createVolume({ ...volume, dmCrypt: true });
    const wanted = machine(volumeId);
    const { id: machineId } = await source.client.createMachine({
      ...wanted,
      config: { ...wanted.config, resources: {} },
    });
    const front = await frontOf([source.member, target.member]);
    server = front.server;
    await until('PostgreSQL to answer', async () => {
      await preparePostgres(front.port);
      return true;
    });
    const client = postgresClient(front.port);
    client.start();
    await until('commits', async () => client.acknowledged > 50);
    say(`PostgreSQL commits, on an encrypted volume; ${client.acknowledged} so far`);

    const ids = { machineId, volumeId };
    const there = await leftOn(source, from, ids);
    for (const what of [/\/godwit\/machine-/, /shim\.[jt]s/, /\/fs rw/, /^\/\S+(data\.raw|fuse\/\S+)$/])
      assert.ok(
        there.some((line) => what.test(line)),
        `${what} of a machine that runs`,
      );
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
    await assertNothingLeft(source, from, ids);
    assert.deepEqual(await source.client.listMachines(), []);
    assert.equal((await source.client.showVolume(volumeId)).state, 'retained');

    await target.client.stopMachine(machineId);
    await until('the stop', async () => (await target.client.showMachine(machineId)).state === 'stopped');
    await target.client.destroyMachine(machineId, { force: true });
    await assertNothingLeft(target, to, ids);
    for (const worker of [source, target]) await checkWithCryptsetup(lab, worker, volumeId);
    say(
      `${report.acknowledged.length} commits, none lost; cryptsetup opens the volume and the retained one, and their filesystems are clean`,
    );
  } catch (error) {
    await tellStates(workers);
    throw error;
  } finally {
    server?.close();
    for (const worker of workers) if (!isGuest(worker.member)) await endHostWorker(worker);
    await lab.close();
  }
}

/**
 * With the dm-crypt of a guest, where this machine has none: guests see its files below /host, and cannot
 * write them.
 */
async function checkWithCryptsetup(
  lab: Lab,
  { member, dataDir }: LabWorker,
  volumeId: string,
): Promise<void> {
  const guest = isGuest(member) ? member : lab.guests[0]!;
  const folder = `${guest === member ? '' : '/host'}${dataDir}/volumes/${volumeId}`;
  const open = ['cryptsetup', 'open', '--readonly', '--type', 'luks2', '--key-file', GUEST_KEY_FILE];
  await mustRun(guest, [...open, '--header', `${folder}/header.luks2`, `${folder}/data.raw`, 'check']);
  try {
    await mustRun(guest, ['e2fsck', '-f', '-n', '/dev/mapper/check'], { timeoutMs: 120_000 });
  } finally {
    await mustRun(guest, ['cryptsetup', 'close', 'check']);
  }
}

/**
 * A port of the lab itself that leads to the members in turn: a client that connects again finds the one that
 * answers.
 */
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
