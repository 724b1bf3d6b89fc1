import assert from 'node:assert/strict';
import test from 'node:test';
import { GodwitError } from '../base/errors.ts';
import { MemoryDevice } from './memory-device.ts';
import { SparedFlushes } from './spared-flushes.ts';

/** One whose flushes and writes end when the test lets them. */
class HeldDevice extends MemoryDevice {
  flushes = 0;
  gate: Promise<void> = Promise.resolve();
  failure: Error | null = null;

  override async flush(): Promise<void> {
    this.flushes += 1;
    await this.gate;
    if (this.failure !== null) throw this.failure;
  }

  override async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.gate;
    await super.write(offsetBytes, from);
  }
}

function opened(): { below: HeldDevice; device: SparedFlushes } {
  const below = new HeldDevice({ lengthBytes: 8192 });
  return { below, device: new SparedFlushes(below) };
}

const BLOCK = new Uint8Array(4096).fill(7);

test('the first flush covers what an earlier server may have left; then only changes are flushed', async () => {
  const { below, device } = opened();
  for (let index = 0; index < 100; index++) await device.flush();
  assert.equal(below.flushes, 1);
  for (const change of [
    () => device.write(0, BLOCK),
    () => device.discard(0, 4096),
    () => device.writeZeroes(0, 4096),
    () => device.writeNow?.(0, BLOCK) ?? device.write(0, BLOCK),
  ]) {
    const before: number = below.flushes;
    await change();
    await Promise.all(Array.from({ length: 100 }, () => device.flush()));
    await device.flush();
    assert.equal(below.flushes, before + 1);
  }
});

test('a write that resolved while a flush was on is covered by the next', async () => {
  const { below, device } = opened();
  const gate = Promise.withResolvers<void>();
  const first = device.flush();
  below.gate = gate.promise;
  const write = device.write(0, BLOCK);
  await first;
  gate.resolve();
  await write;
  assert.equal(below.flushes, 1);
  await device.flush();
  assert.equal(below.flushes, 2);
});

test('a flush waits for the one that is on, which covers its writes', async () => {
  const { below, device } = opened();
  const gate = Promise.withResolvers<void>();
  below.gate = gate.promise;
  const first = device.flush();
  let over = false;
  const second = device.flush().then(() => {
    over = true;
  });
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  assert.equal(over, false);
  gate.resolve();
  await Promise.all([first, second]);
  assert.equal(below.flushes, 1);
});

test('after one that failed nothing counts as flushed', async () => {
  const { below, device } = opened();
  below.failure = new GodwitError('BLOCK_IO_FAILED', 'the disk is gone', { nextAction: 'Look at it.' });
  await assert.rejects(device.flush(), { code: 'BLOCK_IO_FAILED' });
  await assert.rejects(device.flush(), { code: 'BLOCK_IO_FAILED' });
  below.failure = null;
  await device.flush();
  await device.flush();
  assert.equal(below.flushes, 3);
});
