import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { WriteGate } from './write-gate.ts';

test('many share the gate, and one that is alone is alone', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.scheduler(),
      fc.array(fc.record({ alone: fc.boolean(), fails: fc.boolean() }), { maxLength: 12 }),
      async (scheduler, entries) => {
        const gate = new WriteGate();
        let sharing = 0;
        let alone = 0;
        const work = (one: { alone: boolean; fails: boolean }) => async () => {
          if (one.alone) alone += 1;
          else sharing += 1;
          await scheduler.schedule(Promise.resolve());
          assert.ok(alone === 0 || (alone === 1 && sharing === 0), `${alone} alone, ${sharing} sharing`);
          if (one.alone) alone -= 1;
          else sharing -= 1;
          if (one.fails) throw new Error('disk');
        };
        const done = entries.map((one) => (one.alone ? gate.alone(work(one)) : gate.shared(work(one))));
        const settled = Promise.allSettled(done);
        await scheduler.waitFor(settled);
        const outcomes = (await settled).map(({ status }) => status === 'rejected');
        assert.deepEqual(
          outcomes,
          entries.map(({ fails }) => fails),
        );
      },
    ),
  );
});

test('one that waits to be alone comes before those who come later', async () => {
  const gate = new WriteGate();
  const order: string[] = [];
  const first = Promise.withResolvers<void>();
  const writes = [gate.shared(() => first.promise)];
  const alone = gate.alone(async () => void order.push('alone'));
  writes.push(gate.shared(async () => void order.push('later')));
  first.resolve();
  await Promise.all([...writes, alone]);
  assert.deepEqual(order, ['alone', 'later']);
});
