import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { sha256 } from '../sys/sha256.ts';
import { FetchLog, type FetchRecord, fetchLogLengthBytes } from './fetch-log.ts';

const BLOCK = 4096;
const identity = { volumeId: 'v_1', generation: 4, lengthBytes: 600 * BLOCK - 512 };
const digestOf = (_offset: number, bytes: Uint8Array) => sha256(bytes);
const range = (first: number) => ({ first, blocks: 1, digest: new Uint8Array(32).fill(first % 251) });

async function all(log: FetchLog, limit = 7): Promise<FetchRecord[]> {
  const records: FetchRecord[] = [];
  for (let cursor = 0, ended = false; !ended; ) {
    const page = await log.read(cursor, limit);
    records.push(...page.records);
    ({ next: cursor, ended } = page);
  }
  return records;
}

test('what arrived is in the log with its digest, cut at the borders of regions', async () => {
  const device = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(identity.lengthBytes) });
  await FetchLog.create(device, identity);
  const log = await FetchLog.open(device, identity, digestOf);
  const content = randomBytes(4 * BLOCK);
  const tail = randomBytes(2 * BLOCK - 512);
  await Promise.all([log.record(254, content), log.record(598, tail)]);
  const sha = (bytes: Uint8Array) => new Uint8Array(createHash('sha256').update(bytes).digest());
  const found = (await all(log)).map(({ first, blocks, digest }) => ({ first, blocks, digest }));
  assert.deepEqual(
    found.sort((left, right) => left.first - right.first),
    [
      { first: 254, blocks: 2, digest: sha(content.subarray(0, 2 * BLOCK)) },
      { first: 256, blocks: 2, digest: sha(content.subarray(2 * BLOCK)) },
      { first: 598, blocks: 2, digest: sha(tail) },
    ],
  );
});

test('many records come in pages, once each; retired ones do not come; later ones follow the cursor', async () => {
  const device = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(identity.lengthBytes) });
  await FetchLog.create(device, identity);
  let log = await FetchLog.open(device, identity, digestOf);
  for (let first = 0; first < 100; first++) await log.append(range(first));
  const records = await all(log);
  assert.deepEqual(
    records.map(({ first }) => first),
    [...Array(100).keys()],
  );
  await log.retire(records[3]!.position);
  await log.retire(records[99]!.position);
  const end = (await log.read(0, 1000)).next;
  await log.append(range(200));
  assert.deepEqual(
    (await log.read(end, 10)).records.map(({ first }) => first),
    [200],
  );
  // Another process.
  log = await FetchLog.open(device, identity, digestOf);
  await log.append(range(201));
  const left = (await all(log)).map(({ first }) => first);
  assert.deepEqual(left, [...[...Array(99).keys()].filter((first) => first !== 3), 200, 201]);
});

test('a damaged sector is left out, and nothing else; the log of another clone is refused', async () => {
  const device = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(identity.lengthBytes) });
  await FetchLog.create(device, identity);
  const log = await FetchLog.open(device, identity, digestOf);
  for (let first = 0; first < 36; first++) await log.append(range(first));
  const sector = new Uint8Array(512);
  await device.read(2 * 512, sector);
  sector[300]! ^= 1;
  await device.write(2 * 512, sector);
  const again = await FetchLog.open(device, identity, digestOf);
  assert.deepEqual(
    (await all(again)).map(({ first }) => first),
    [...Array(12).keys(), ...Array.from({ length: 12 }, (_, index) => 24 + index)],
  );
  for (const other of [{ generation: 5 }, { volumeId: 'v_2' }, { lengthBytes: 601 * BLOCK }]) {
    await assert.rejects(FetchLog.open(device, { ...identity, ...other }, digestOf), (error) =>
      isGodwitError(error, 'CLONE_LOG_FOREIGN'),
    );
  }
});

test('after a power cut every record that was flushed is there, and no record is wrong', async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const device = new FaultDevice({ lengthBytes: fetchLogLengthBytes(identity.lengthBytes), power });
    await FetchLog.create(device, identity);
    let log = await FetchLog.open(device, identity, digestOf);
    let flushed = 0;
    let appended = 0;
    power.cutAt = power.operations + 1 + seed;
    try {
      for (; appended < 400; appended++) {
        await log.append(range(appended));
        if (appended % 9 !== 8) continue;
        await log.flush();
        flushed = appended + 1;
      }
    } catch {}
    power.restore();
    log = await FetchLog.open(device, identity, digestOf);
    await log.append(range(500));
    const found = await all(log);
    for (const { first, digest } of found) assert.deepEqual(digest, range(first).digest);
    const firsts = new Set(found.map(({ first }) => first));
    for (let first = 0; first < flushed; first++)
      assert.ok(firsts.has(first), `seed ${seed}: record ${first} is gone`);
    assert.ok(firsts.has(500));
  }
});

test('a log that is full says so', async () => {
  const small = { ...identity, lengthBytes: BLOCK };
  const device = new MemoryDevice({ lengthBytes: 3 * 512 });
  await FetchLog.create(device, small);
  const log = await FetchLog.open(device, small, digestOf);
  for (let count = 0; count < 24; count++) await log.append(range(0));
  await assert.rejects(log.append(range(0)), (error) => isGodwitError(error, 'CLONE_LOG_FULL'));
});

test('a record that was on its way while another flush ran is made durable by the next', async () => {
  let onTheWay = Promise.withResolvers<void>();
  let flushes = 0;
  class SlowDevice extends MemoryDevice {
    override async write(offsetBytes: number, from: Uint8Array): Promise<void> {
      await onTheWay.promise;
      await super.write(offsetBytes, from);
    }
    override async flush(): Promise<void> {
      flushes++;
    }
  }
  const device = new SlowDevice({ lengthBytes: fetchLogLengthBytes(identity.lengthBytes) });
  const created = FetchLog.create(device, identity);
  onTheWay.resolve();
  await created;
  onTheWay = Promise.withResolvers<void>();
  const log = await FetchLog.open(device, identity, digestOf);
  await log.flush(); // what a dead process may have left
  const appended = log.append(range(1));
  await new Promise((resolve) => setImmediate(resolve));
  await log.flush();
  onTheWay.resolve();
  await appended;
  const before = flushes;
  await log.flush();
  assert.equal(flushes, before + 1);
  await log.flush();
  assert.equal(flushes, before + 1, 'nothing new, nothing to flush');
});
