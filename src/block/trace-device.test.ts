import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { FakeClock } from '../base/fake-clock.ts';
import { testConformance } from './conformance.ts';
import { FaultDevice } from './fault-device.ts';
import { MemoryDevice } from './memory-device.ts';
import { StatsDevice } from './stats-device.ts';
import { decodeTraceRecord, encodeTraceRecord, readTrace, replayTrace, TRACE_OPERATIONS } from './trace.ts';
import { TraceDevice } from './trace-device.ts';

testConformance('trace', {
  open: async (_t, { lengthBytes, writable, content }) => {
    const inner = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
    return new TraceDevice(inner, systemClock, () => {});
  },
});

test('every call is a line, failed ones with their code, and the lines replay on another device', async () => {
  const clock = new FakeClock();
  const inner = new FaultDevice({ lengthBytes: 65536 });
  const lines: string[] = [];
  const device = new TraceDevice(inner, clock, (record) => lines.push(encodeTraceRecord(record)));
  const bytes = new Uint8Array(4096);
  await device.write(4096, bytes);
  clock.advance(1.5);
  await device.read(0, bytes);
  assert.equal(device.readNow!(512, bytes), true);
  await device.discard(0, 8192);
  await device.writeZeroes(8192, 4096);
  await device.flush();
  inner.fail({ kinds: ['write'] });
  await assert.rejects(device.write(0, bytes));
  assert.deepEqual(lines, [
    '[0,0,"write",4096,4096]',
    '[1.5,0,"read",0,4096]',
    '[1.5,0,"read",512,4096]',
    '[1.5,0,"discard",0,8192]',
    '[1.5,0,"writeZeroes",8192,4096]',
    '[1.5,0,"flush",0,0]',
    '[1.5,0,"write",0,4096,"BLOCK_IO"]',
  ]);
  const other = new StatsDevice(new MemoryDevice({ lengthBytes: 65536 }), systemClock);
  assert.equal(await replayTrace(readTrace([...lines, '']), other), 6);
  const calls = Object.values(other.statistics).map((each) => each.calls);
  assert.deepEqual(calls, [2, 1, 1, 1, 1]);
});

test('records survive encoding and decoding', () => {
  const bytes = fc.nat({ max: Number.MAX_SAFE_INTEGER });
  const ms = fc.nat().map((microseconds) => microseconds / 1000);
  const record = fc.record({
    startMs: ms,
    tookMs: ms,
    operation: fc.constantFrom(...TRACE_OPERATIONS),
    offsetBytes: bytes,
    lengthBytes: bytes,
    errorCode: fc.option(fc.string()),
  });
  fc.assert(
    fc.property(record, (each) =>
      assert.deepEqual(decodeTraceRecord(encodeTraceRecord(each), 1), { ...each }),
    ),
  );
});

test('any line is a record or a typed error', async () => {
  const bad = (error: unknown) => isGodwitError(error, 'BLOCK_BAD_TRACE');
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        fc.array(fc.jsonValue()).map((each) => JSON.stringify(each)),
      ),
      (line) => {
        try {
          decodeTraceRecord(line, 1);
        } catch (error) {
          assert.ok(bad(error), `${line}: ${error}`);
        }
      },
    ),
  );
  for (const line of [
    '',
    '{}',
    '[1,1,"read",0]',
    '[1,1,"erase",0,512]',
    '[-1,1,"read",0,512]',
    '[1,1,"read",0.5,512]',
  ]) {
    assert.throws(() => decodeTraceRecord(line, 3), bad, line);
  }
  const device = new MemoryDevice({ lengthBytes: 4096 });
  await assert.rejects(replayTrace(readTrace([`[0,0,"read",0,${2 ** 40}]`]), device), bad);
});
