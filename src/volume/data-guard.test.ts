import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { FileDevice } from '../block/file-device.ts';
import { acceptDataLoss, DataGuard, GuardedFile, keepDataLoss, readDataLoss } from './data-guard.ts';
import { VOLUME_FILES } from './files.ts';

const BLOCK = 4096;
const lost = (error: unknown) => isGodwitError(error, 'VOLUME_DATA_LOST');
const fails = () => Promise.reject(new Error('the disk refused'));

function guardOf(volumeDir: string, generation = 3): DataGuard {
  return new DataGuard({
    volumeDir,
    volumeId: 'v_1',
    generation,
    clock: new FakeClock(),
    logger: silentLogger,
  });
}

function written(volumeDir: string): Promise<unknown> {
  return until('the loss to be written down', () => existsSync(join(volumeDir, VOLUME_FILES.dataLoss)), {
    is: (there) => there,
  });
}

test('a flush that fails over what the guest wrote is a loss: everything is refused, by later servers too, until the file is removed', async (t) => {
  const dir = scratchDir(t);
  const guard = guardOf(dir);
  let told = 0;
  guard.onLost(() => told++);
  await assert.rejects(guard.flush(fails), lost);
  assert.equal(told, 1);
  await assert.rejects(
    guard.flush(async () => {}),
    lost,
    'a disk that is well again has not what it lost',
  );
  await written(dir);
  const file = await FileDevice.create(join(dir, 'data'), { lengthBytes: 4 * BLOCK });
  t.after(() => file.close());
  const next = new GuardedFile(file, guardOf(dir));
  const block = new Uint8Array(BLOCK);
  await assert.rejects(next.read(0, block), lost);
  await assert.rejects(next.write(0, block), lost);
  await assert.rejects(next.discard(0, BLOCK), lost);
  await assert.rejects(next.flush(), lost);
  assert.equal(next.readNow(0, block), false);
  assert.equal(next.writeNow(0, block), false);
  assert.ok(guardOf(dir, 5).lost, 'a move that is undone makes a later generation of the same data');
  assert.equal(guardOf(dir, 2).lost, null, 'an earlier one is another volume');
  rmSync(join(dir, VOLUME_FILES.dataLoss));
  await new GuardedFile(file, guardOf(dir)).read(0, block);
});

test('a loss that could not be written down is known to a server that is told of it, until it is accepted', async (t) => {
  const dir = scratchDir(t);
  const dataLoss = { atMs: 7, reason: 'flush failed' };
  const options = {
    volumeDir: dir,
    volumeId: 'v_1',
    generation: 3,
    clock: new FakeClock(),
    logger: silentLogger,
  };
  const told = new DataGuard({ ...options, dataLoss });
  assert.throws(() => told.check(), lost);
  await written(dir);
  assert.equal(guardOf(dir).lost?.atMs, 7, 'it is written down now');
  await acceptDataLoss(dir, options, { atMs: 7, nowMs: 9 });
  assert.equal(new DataGuard({ ...options, dataLoss }).lost, null);
  assert.ok(new DataGuard({ ...options, dataLoss: { ...dataLoss, atMs: 8 } }).lost, 'another one');
});

test('who ends the last server that knows of a loss writes it down, or does not end it', async (t) => {
  const dir = scratchDir(t);
  const volume = { volumeId: 'v_1', generation: 3 };
  const told = { atMs: 1_000, reason: 'flush failed: EIO' };
  await assert.rejects(keepDataLoss({ ...volume, volumeDir: join(dir, 'away') }, told), { code: 'ENOENT' });
  await keepDataLoss({ ...volume, volumeDir: dir }, told);
  assert.deepEqual(readDataLoss(dir, volume), { formatVersion: 1, ...volume, ...told });
  // The first word stands; and what was accepted is not lost again.
  await keepDataLoss({ ...volume, volumeDir: dir }, { atMs: 2_000, reason: 'another' });
  assert.equal(readDataLoss(dir, volume)!.atMs, 1_000);
  await acceptDataLoss(dir, volume, { atMs: 1_000, nowMs: 3_000 });
  await keepDataLoss({ ...volume, volumeDir: dir }, told);
  assert.equal(readDataLoss(dir, volume), null);
});

test('a loss that was written down when its server ended is not told again to who has accepted it', async (t) => {
  const dir = join(scratchDir(t), 'refuses at first');
  const volume = { volumeId: 'v_1', generation: 3 };
  const liveMap = new Uint32Array(2);
  const guard = guardOf(dir);
  guard.share(liveMap);
  guard.noteWrite();
  await assert.rejects(guard.flush(fails), lost);
  guard.rest();
  const next = guardOf(join(dir, 'of another'));
  next.share(liveMap);
  assert.ok(next.lost, 'nobody has written it down');
  mkdirSync(dir);
  const { atMs, reason } = guard.lost!;
  await keepDataLoss({ ...volume, volumeDir: dir }, { atMs, reason });
  guard.rest();
  await acceptDataLoss(dir, volume, { atMs, nowMs: 3_000 });
  const last = guardOf(dir);
  last.share(liveMap);
  assert.equal(last.lost, null);
});

test('a flush that fails while the guest has nothing to flush is tried again and loses nothing', async (t) => {
  const guard = guardOf(scratchDir(t));
  guard.share(new Uint32Array(2));
  let flushes = 0;
  await guard.flush(() => (++flushes === 1 ? fails() : Promise.resolve()));
  assert.equal(flushes, 2);
  await assert.rejects(guard.flush(fails), /the disk refused/);
  assert.equal(guard.lost, null);
  guard.noteWrite();
  await assert.rejects(guard.flush(fails), lost);
});

test('a flush of a device that was closed meanwhile asked no disk: nothing is lost, and the next server flushes', async (t) => {
  const dir = scratchDir(t);
  const guard = guardOf(dir);
  const words = new Uint32Array(2);
  guard.share(words);
  guard.noteWrite();
  const file = await FileDevice.create(join(dir, 'data'), { lengthBytes: BLOCK });
  await file.close();
  await assert.rejects(
    guard.flush(() => file.flush()),
    (error) => isGodwitError(error, 'BLOCK_CLOSED'),
  );
  assert.equal(guard.lost, null);
  assert.equal(existsSync(join(dir, VOLUME_FILES.dataLoss)), false);
  const next = guardOf(dir);
  next.share(words);
  assert.equal(next.lost, null);
  await assert.rejects(next.flush(fails), lost, 'what the guest wrote is still to be flushed');
});

test('what is written while a flush runs is for the next one, and those that come meanwhile share it', async (t) => {
  const guard = guardOf(scratchDir(t));
  const words = new Uint32Array(2);
  guard.share(words);
  guard.noteWrite();
  const running = Promise.withResolvers<void>();
  let flushes = 0;
  const flush = () => {
    flushes++;
    return running.promise;
  };
  const all = [guard.flush(flush), guard.flush(flush), guard.flush(flush)];
  assert.deepEqual([...words], [0, 1]);
  guard.noteWrite();
  running.resolve();
  await Promise.all(all);
  assert.equal(flushes, 2);
  assert.deepEqual([...words], [0, 0]);
});

test('a server that is killed in the middle of a flush, or before the loss is written down, leaves the word to the next', async (t) => {
  const dir = scratchDir(t);
  const words = new Uint32Array(2);
  const killed = guardOf(dir);
  killed.share(words);
  killed.noteWrite();
  void killed.flush(() => new Promise(() => {}));
  const next = guardOf(dir);
  next.share(words);
  await assert.rejects(next.flush(fails), lost);
  const gone = join(dir, 'not there');
  const refusing = guardOf(gone);
  const others = new Uint32Array(2);
  refusing.share(others);
  refusing.lose('the disk refused');
  const after = guardOf(gone);
  after.share(others);
  assert.throws(() => after.check(), lost);
});

test('an operator accepts the loss that is meant, once, and it is kept that it was', async (t) => {
  const dir = scratchDir(t);
  const volume = { volumeId: 'v_1', generation: 3 };
  const lossAt = (atMs: number) =>
    writeFileSync(
      join(dir, VOLUME_FILES.dataLoss),
      JSON.stringify({ formatVersion: 1, ...volume, atMs, reason: 'EIO' }),
    );
  assert.equal(await acceptDataLoss(dir, volume, { atMs: 1_000, nowMs: 5_000 }), null, 'nothing was lost');
  lossAt(1_000);
  assert.equal(await acceptDataLoss(dir, volume, { atMs: 999, nowMs: 5_000 }), null, 'another one');
  assert.notEqual(guardOf(dir).lost, null);
  const accepted = { formatVersion: 1, ...volume, atMs: 1_000, reason: 'EIO', acceptedAtMs: 5_000 };
  assert.deepEqual(await acceptDataLoss(dir, volume, { atMs: 1_000, nowMs: 5_000 }), accepted);
  assert.equal(guardOf(dir).lost, null);
  assert.deepEqual(
    await acceptDataLoss(dir, volume, { atMs: 1_000, nowMs: 9_000 }),
    accepted,
    'the answer may have been lost',
  );
  // One that came since stands, whoever asks for the old one again; after a crash in the middle it is asked
  // for once more.
  lossAt(2_000);
  assert.equal(await acceptDataLoss(dir, volume, { atMs: 1_000, nowMs: 9_000 }), null);
  assert.equal(guardOf(dir).lost?.atMs, 2_000);
  assert.equal((await acceptDataLoss(dir, volume, { atMs: 2_000, nowMs: 9_000 }))?.acceptedAtMs, 9_000);
  lossAt(2_000);
  assert.equal((await acceptDataLoss(dir, volume, { atMs: 2_000, nowMs: 9_500 }))?.acceptedAtMs, 9_000);
  const kept = JSON.parse(readFileSync(join(dir, VOLUME_FILES.dataLossAccepted), 'utf8'));
  assert.deepEqual(
    kept.accepted.map(({ atMs }: { atMs: number }) => atMs),
    [1_000, 2_000],
  );
  // What cannot be understood any more can be accepted all the same.
  writeFileSync(join(dir, VOLUME_FILES.dataLoss), '{"formatVersion": 1, "gen');
  writeFileSync(join(dir, VOLUME_FILES.dataLossAccepted), 'torn');
  assert.equal((await acceptDataLoss(dir, volume, { atMs: 0, nowMs: 9_000 }))?.reason, 'not known any more');
  assert.equal(guardOf(dir).lost, null);
});

test('a file that cannot be read counts', (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, VOLUME_FILES.dataLoss), '{"formatVersion": 1, "gen');
  assert.equal(readDataLoss(dir, { volumeId: 'v_1', generation: 3 })?.reason, 'not known any more');
});
