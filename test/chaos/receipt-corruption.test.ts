import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { until } from '../support/patience.ts';
import { ProofPair } from '../support/proof-pair.ts';
import { Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { LAB_NEEDS, type Move, moveVolume, tool, VolumeLab } from '../support/volume-lab.ts';

/**
 * One bit is wrong, somewhere between the sealed file and the disk of the target: what a receipt is for. Real
 * volume servers, iSCSI without digests.
 */

const MIB = 2 ** 20;
const LENGTH_BYTES = 24 * MIB;
const DATA_BYTES = 9 * MIB;
const skip = requires(...LAB_NEEDS, 'fsfreeze');

/** Questions that a volume server answers in order, far more than an activation needs to be done. */
const LOOKS = 100;

/** Something to find on the wire, and all over the place that it names. */
const MARK = Buffer.from('<the block that is changed on its way>');

/** 9 MiB of data and 15 of holes; the 4 KiB at 5 MiB are nothing but marks. */
async function writeData(path: string): Promise<void> {
  const data = randomBytes(DATA_BYTES);
  Buffer.alloc(4096, MARK).copy(data, 5 * MIB);
  const fd = openSync(path, 'r+');
  writeSync(fd, data, 0, data.length, 0);
  closeSync(fd);
}

async function move(
  lab: VolumeLab,
  options: { paused?: boolean; relayed?: boolean; targetDir?: string } = {},
): Promise<Move> {
  return moveVolume(lab, {
    ...(options.targetDir && { targetDir: options.targetDir }),
    lengthBytes: LENGTH_BYTES,
    paused: options.paused ?? false,
    write: writeData,
    ...(options.relayed ? { via: (source) => flippingRelay(lab, source) } : {}),
  });
}

/** Passes everything on, and changes one bit of the first mark that comes from the source. */
async function flippingRelay(
  lab: VolumeLab,
  source: { host: string; port: number },
): Promise<{ host: string; port: number }> {
  const sockets = new Set<Socket>();
  let flipped = false;
  const server = createServer((initiator) => {
    const target = connect(source.port, source.host);
    for (const socket of [initiator, target]) {
      sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.on('close', () => {
        initiator.destroy();
        target.destroy();
      });
    }
    initiator.pipe(target);
    target.on('data', (chunk) => {
      const at = flipped ? -1 : chunk.indexOf(MARK);
      if (at !== -1) {
        chunk[at + 3]! ^= 0x10;
        flipped = true;
      }
      if (!initiator.write(chunk)) target.pause();
    });
    initiator.on('drain', () => target.resume());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  lab.onClose(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return { host: '127.0.0.1', port: address.port };
}

function flipBit(path: string, offsetBytes: number): void {
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, offsetBytes);
  byte[0]! ^= 1;
  writeSync(fd, byte, 0, 1, offsetBytes);
  closeSync(fd);
}

const sourceData = ({ sourceStore, id }: Move) => join(sourceStore.folder(id), 'data.raw');
const targetData = ({ targetStore, id }: Move) => join(targetStore.folder(id), 'data.raw');

function assertSame(moved: Move): void {
  const [here, there] = [readFileSync(targetData(moved)), readFileSync(sourceData(moved))];
  assert.equal(Buffer.compare(here, there), 0, 'source and target differ');
}

function lab(t: TestContext): VolumeLab {
  return new VolumeLab(t);
}

test('nothing is wrong: the receipt says so, and accounts for every byte', { skip }, async (t) => {
  const moved = await move(lab(t));
  await moved.target.until('whole', ({ state }) => state === 'complete');
  const { bytes, ranges, rangesMended } = await new ProofPair(moved).prove();
  assert.deepEqual(bytes, {
    total: LENGTH_BYTES,
    fetched: DATA_BYTES,
    notFetched: LENGTH_BYTES - DATA_BYTES,
    avoided: 0,
    compared: DATA_BYTES,
    readBack: DATA_BYTES,
    writtenSince: 0,
    mended: 0,
    mendedLeft: 0,
  });
  assert.ok(ranges >= 9 && rangesMended === 0);
  assertSame(moved);
  await moved.target.server.call('finish');
  await assert.rejects(moved.target.server.call('fetched', { cursor: 0 }), (error) =>
    isGodwitError(error, 'VOLUME_NO_FETCH_LOG'),
  );
});

test('a bit that was changed on its way is found, and mended without anybody; an activation that is repeated meanwhile does not let the guest in', {
  skip,
}, async (t) => {
  const world = lab(t);
  const disk = await world.smallDisk(96 * MIB);
  const moved = await move(world, { relayed: true, targetDir: 'small-disk' });
  const { server, loop } = moved.target;
  await moved.target.until('whole', ({ state }) => state === 'complete');
  assert.notEqual(
    readFileSync(targetData(moved)).compare(readFileSync(sourceData(moved))),
    0,
    'nothing was changed',
  );
  await server.call('flush');
  // The mend holds the guest back, and cannot write.
  await tool('fsfreeze', '-f', disk);
  const thaw = () => tool('fsfreeze', '-u', disk);
  world.onClose(() => thaw().catch(() => ''));
  const proving = new ProofPair(moved).prove();
  const access = async () => (await moved.target.status()).access;
  await until('the mend', access, { is: (present) => present === 'standby' });
  // A worker that was started again says it once more.
  const said = server.call('activate', { access: 'writable' });
  const read = new Running(world, 'dd', `if=${loop}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct');
  for (let look = 0; look < LOOKS; look++) assert.equal(await access(), 'standby');
  assert.equal(read.over, false);
  await thaw();
  const { bytes, rangesMended } = await proving;
  await said;
  await read.ended;
  assert.equal(await access(), 'writable');
  assert.equal(rangesMended, 1);
  assert.ok(bytes.mended > 0 && bytes.mended <= MIB);
  assert.equal(bytes.readBack, DATA_BYTES);
  assertSame(moved);
});

test('a bit that changes on the disk of the target is found, and mended where nobody wrote', {
  skip,
}, async (t) => {
  const moved = await move(lab(t));
  await moved.target.until('whole', ({ state }) => state === 'complete');
  // The guest's own, in the same MiB as one damage; and a damage where the guest wrote, which is the guest's
  // to find.
  await tool(
    'dd',
    'if=/dev/urandom',
    `of=${moved.target.loop}`,
    'bs=64k',
    'count=1',
    'seek=33',
    'conv=fsync',
  );
  const guest = readFileSync(targetData(moved)).subarray(33 * 65_536, 34 * 65_536);
  flipBit(targetData(moved), 7 * MIB + 12_345);
  const { bytes, rangesMended } = await new ProofPair(moved).prove();
  assert.equal(rangesMended, 1);
  assert.ok(bytes.writtenSince >= 65_536 && bytes.writtenSince <= 2 * MIB, String(bytes.writtenSince));
  const after = readFileSync(targetData(moved));
  assert.deepEqual(after.subarray(33 * 65_536, 34 * 65_536), guest, 'the guest keeps what it wrote');
  const expected = readFileSync(sourceData(moved));
  guest.copy(expected, 33 * 65_536);
  assert.equal(after.compare(expected), 0);
});

test('a bit that changes on the source after its digests were taken stops the release', {
  skip,
}, async (t) => {
  const moved = await move(lab(t), { paused: true });
  const table = join(moved.sourceStore.folder(moved.id), 'region.digests');
  const taken = () => {
    if (!existsSync(table)) return false;
    const bytes = readFileSync(table);
    const digests = Array.from({ length: 9 }, (_, index) =>
      bytes.subarray(32 * (index + 1), 32 * (index + 2)),
    );
    return digests.every((digest) => digest.length === 32 && digest.some((byte) => byte !== 0));
  };
  await until('the digests to be taken', taken);
  flipBit(sourceData(moved), 3 * MIB + 777);
  await moved.target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await moved.target.until('whole', ({ state }) => state === 'complete');
  const pair = new ProofPair(moved);
  for (let attempts = 0; attempts < 2; attempts++) {
    await assert.rejects(pair.prove(), (error: unknown) => {
      assert.ok(isGodwitError(error));
      assert.match(error.code, /^(MIGRATION_CONTENT_DIFFERS|VOLUME_REGION_CHANGED)$/);
      assert.equal(Math.floor(Number(error.values.offsetBytes) / MIB), 3, 'it names the place');
      return true;
    });
  }
});

test('after the death of both servers the proof is the same', { skip }, async (t) => {
  const moved = await move(lab(t));
  await moved.target.until('whole', ({ state }) => state === 'complete');
  await tool('dd', 'if=/dev/urandom', `of=${moved.target.loop}`, 'bs=4k', 'count=1', 'seek=5', 'conv=fsync');
  const before = await new ProofPair(moved).prove();
  await moved.target.killServer();
  const after = await new ProofPair(moved).prove();
  assert.deepEqual([after.root, after.bytes], [before.root, before.bytes]);
});
