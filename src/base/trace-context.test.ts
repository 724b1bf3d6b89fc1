import assert from 'node:assert/strict';
import test from 'node:test';
import { parseTraceparent, traceIdOf, traceparentOf } from './trace-context.ts';

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const PARENT = '00f067aa0ba902b7';

test('the example of the recommendation is read, and the sampled bit is one of eight', () => {
  assert.deepEqual(parseTraceparent(`00-${TRACE}-${PARENT}-01`), {
    ...{ traceId: TRACE, parentId: PARENT, sampled: true },
  });
  assert.equal(parseTraceparent(`00-${TRACE}-${PARENT}-02`)?.sampled, false);
  assert.equal(parseTraceparent(`00-${TRACE}-${PARENT}-ff`)?.sampled, true);
});

test('of a later version the first four fields count, of this one there are no more', () => {
  assert.equal(parseTraceparent(`cc-${TRACE}-${PARENT}-01`)?.traceId, TRACE);
  assert.equal(parseTraceparent(`cc-${TRACE}-${PARENT}-01-what-comes`)?.traceId, TRACE);
  for (const bad of ['00-', '00']) assert.equal(parseTraceparent(bad), null);
  assert.equal(parseTraceparent(`00-${TRACE}-${PARENT}-01-more`), null);
  assert.equal(parseTraceparent(`00-${TRACE}-${PARENT}-01-`), null);
  assert.equal(parseTraceparent(`cc-${TRACE}-${PARENT}-01.more`), null);
});

test('what is no traceparent counts as none', () => {
  const bad = [
    `ff-${TRACE}-${PARENT}-01`,
    `00-${TRACE.toUpperCase()}-${PARENT}-01`,
    `00-${'0'.repeat(32)}-${PARENT}-01`,
    `00-${TRACE}-${'0'.repeat(16)}-01`,
    `00-${TRACE.slice(1)}-${PARENT}-01`,
    `00-${TRACE}-${PARENT}`,
    `0-${TRACE}-${PARENT}-01`,
    `00_${TRACE}_${PARENT}_01`,
    ` 00-${TRACE}-${PARENT}-01`,
    `00-${TRACE}-${PARENT}-01\n`,
    `cc-${TRACE}-${PARENT}-01-${'x'.repeat(600)}`,
    '',
    undefined,
    [`00-${TRACE}-${PARENT}-01`],
  ];
  for (const header of bad) assert.equal(parseTraceparent(header), null, String(header));
});

test('what is sent for a run is a good header, of the same trace wherever it is made', () => {
  const parsed = parseTraceparent(traceparentOf('r_1'));
  assert.equal(parsed?.traceId, traceIdOf('r_1'));
  assert.equal(parsed?.sampled, true);
  assert.notEqual(traceIdOf('r_2'), traceIdOf('r_1'));
});
