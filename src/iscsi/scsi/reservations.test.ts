import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  IN_ACTION,
  OUT_ACTION,
  RESERVATION_TYPE,
  type ReservationOutcome,
  Reservations,
  type ReservationType,
} from './reservations.ts';

const A = 'iqn.x:a,i,0x800000010000';
const B = 'iqn.x:b,i,0x800000010000';
const C = 'iqn.x:c,i,0x800000010000';
const KEYS: Record<string, bigint> = { [A]: 0xan, [B]: 0xbn, [C]: 0xcn };
const TYPES = Object.values(RESERVATION_TYPE);

function out(
  it: Reservations,
  port: string,
  action: number,
  options: { type?: number; scope?: number; key?: bigint; actionKey?: bigint; flags?: number } = {},
): ReservationOutcome {
  const parameters = Buffer.alloc(24);
  parameters.writeBigUInt64BE(options.key ?? KEYS[port]!, 0);
  parameters.writeBigUInt64BE(options.actionKey ?? 0n, 8);
  parameters[20] = options.flags ?? 0;
  return it.out(port, { action, scope: options.scope ?? 0, type: options.type ?? 1 }, parameters);
}
function registered(...ports: string[]): Reservations {
  const it = new Reservations();
  for (const port of ports) {
    assert.equal(out(it, port, OUT_ACTION.register, { key: 0n, actionKey: KEYS[port]! }).kind, 'good');
  }
  return it;
}
function keysOf(it: Reservations): bigint[] {
  const data = it.in(IN_ACTION.readKeys)!;
  return Array.from({ length: data.readUInt32BE(4) / 8 }, (_, index) => data.readBigUInt64BE(8 + 8 * index));
}
function holderOf(it: Reservations): { key: bigint; type: number } | null {
  const data = it.in(IN_ACTION.readReservation)!;
  return data.readUInt32BE(4) === 0 ? null : { key: data.readBigUInt64BE(8), type: data[21]! };
}
function generationOf(it: Reservations): number {
  return it.in(IN_ACTION.readKeys)!.readUInt32BE(0);
}
function attentions(outcome: ReservationOutcome): [string, string][] {
  assert.equal(outcome.kind, 'good');
  return outcome.kind === 'good' ? outcome.notices.map(({ port, attention }) => [port, attention]) : [];
}

/**
 * SPC-4 table 68: the six types, by who asks and what for. Rows: reads and writes of a registered port, then
 * of one that is not.
 */
const ACCESS: Record<
  ReservationType,
  [read: boolean, write: boolean, strangerReads: boolean, strangerWrites: boolean]
> = {
  1: [true, false, true, false],
  3: [false, false, false, false],
  5: [true, true, true, false],
  6: [true, true, false, false],
  7: [true, true, true, false],
  8: [true, true, false, false],
};

for (const type of TYPES) {
  test(`type ${type}: who may read and write`, () => {
    const it = registered(A, B);
    assert.equal(it.active, false);
    assert.equal(out(it, A, OUT_ACTION.reserve, { type }).kind, 'good');
    assert.equal(it.active, true);
    const [read, write, strangerReads, strangerWrites] = ACCESS[type];
    assert.deepEqual([it.conflicts(A, 'read'), it.conflicts(A, 'write')], [false, false]);
    assert.deepEqual([it.conflicts(B, 'read'), it.conflicts(B, 'write')], [!read, !write]);
    assert.deepEqual([it.conflicts(C, 'read'), it.conflicts(C, 'write')], [!strangerReads, !strangerWrites]);
    assert.equal(it.conflicts(C, 'none'), false);
    assert.deepEqual(holderOf(it), { key: type >= 7 ? 0n : KEYS[A], type });
  });

  test(`type ${type}: reserving again, by the others, release, and who is told`, () => {
    const it = registered(A, B, C);
    out(it, A, OUT_ACTION.reserve, { type });
    assert.equal(out(it, A, OUT_ACTION.reserve, { type }).kind, 'good');
    assert.equal(out(it, B, OUT_ACTION.reserve, { type }).kind, type >= 7 ? 'good' : 'conflict');
    const other = TYPES.find((each) => each !== type)!;
    assert.equal(out(it, A, OUT_ACTION.reserve, { type: other }).kind, 'conflict');
    assert.deepEqual(out(it, A, OUT_ACTION.release, { type: other }), {
      kind: 'refused',
      sense: 'invalidReleaseOfReservation',
    });
    if (type < 7) {
      assert.deepEqual(attentions(out(it, B, OUT_ACTION.release, { type })), []);
      assert.notEqual(holderOf(it), null);
    }
    const released = out(it, A, OUT_ACTION.release, { type });
    const told = [B, C].map((port) => [port, 'reservationsReleased']);
    assert.deepEqual(attentions(released), type >= 5 ? told : []);
    assert.equal(holderOf(it), null);
    assert.deepEqual(attentions(out(it, A, OUT_ACTION.release, { type })), []);
  });

  test(`type ${type}: the holder unregisters`, () => {
    const it = registered(A, B);
    out(it, A, OUT_ACTION.reserve, { type });
    const gone = out(it, A, OUT_ACTION.register, { actionKey: 0n });
    assert.deepEqual(attentions(gone), type === 5 || type === 6 ? [[B, 'reservationsReleased']] : []);
    assert.equal(holderOf(it) === null, type < 7);
    out(it, B, OUT_ACTION.register, { actionKey: 0n });
    assert.equal(holderOf(it), null);
  });
}

test('registering: keys must fit, a change is one, ignore needs none, and each counts', () => {
  const it = registered(A);
  assert.equal(generationOf(it), 1);
  assert.equal(out(it, A, OUT_ACTION.register, { key: 0n, actionKey: 5n }).kind, 'conflict');
  assert.equal(out(it, B, OUT_ACTION.register, { key: 5n, actionKey: 5n }).kind, 'conflict');
  assert.equal(out(it, A, OUT_ACTION.register, { actionKey: 5n }).kind, 'good');
  assert.equal(out(it, A, OUT_ACTION.registerAndIgnore, { key: 77n, actionKey: 6n }).kind, 'good');
  assert.equal(out(it, B, OUT_ACTION.registerAndIgnore, { key: 77n, actionKey: 7n }).kind, 'good');
  assert.deepEqual(keysOf(it), [6n, 7n]);
  assert.equal(generationOf(it), 4);
  for (const flags of [0x01, 0x04, 0x08]) {
    const asked = out(it, C, OUT_ACTION.register, { key: 0n, actionKey: 9n, flags });
    assert.deepEqual(asked, { kind: 'refused', sense: 'invalidFieldInParameters' });
  }
  assert.deepEqual(it.out(A, { action: 0, scope: 0, type: 0 }, Buffer.alloc(23)), {
    kind: 'refused',
    sense: 'parameterListLength',
  });
});

test('nobody fills the memory with registrations', () => {
  const it = new Reservations();
  let good = 0;
  for (let index = 0; index < 1000; index += 1) {
    if (out(it, `iqn.x:${index}`, OUT_ACTION.register, { key: 0n, actionKey: 1n }).kind === 'good') good += 1;
  }
  assert.equal(good, 256);
});

test('without a registration nothing is reserved, released, cleared or preempted', () => {
  const it = registered(A);
  for (const action of [OUT_ACTION.reserve, OUT_ACTION.release, OUT_ACTION.clear, OUT_ACTION.preempt]) {
    assert.equal(out(it, B, action, { actionKey: KEYS[A]! }).kind, 'conflict');
    assert.equal(out(it, A, action, { key: 99n, actionKey: KEYS[A]! }).kind, 'conflict');
  }
  for (const wrong of [{ type: 2 }, { type: 9 }, { scope: 1 }]) {
    assert.deepEqual(out(it, A, OUT_ACTION.reserve, wrong), { kind: 'refused', sense: 'invalidFieldInCdb' });
  }
});

test('clear takes everything, and the others are told', () => {
  const it = registered(A, B);
  out(it, A, OUT_ACTION.reserve, { type: 3 });
  assert.deepEqual(attentions(out(it, B, OUT_ACTION.clear)), [[A, 'reservationsPreempted']]);
  assert.deepEqual([keysOf(it), holderOf(it)], [[], null]);
});

test('preempting the holder takes the reservation over', () => {
  const it = registered(A, B, C);
  out(it, A, OUT_ACTION.reserve, { type: 5 });
  const outcome = out(it, B, OUT_ACTION.preemptAndAbort, { type: 3, actionKey: KEYS[A]! });
  assert.deepEqual(outcome, {
    kind: 'good',
    notices: [
      { port: A, attention: 'registrationsPreempted' },
      { port: C, attention: 'reservationsReleased' },
    ],
    abortTasksOf: [A],
  });
  assert.deepEqual(holderOf(it), { key: KEYS[B], type: 3 });
  assert.deepEqual(keysOf(it), [KEYS[B], KEYS[C]]);
});

test('preempting somebody else takes the registration only', () => {
  const it = registered(A, B, C);
  out(it, A, OUT_ACTION.reserve, { type: 1 });
  const outcome = out(it, B, OUT_ACTION.preempt, { type: 1, actionKey: KEYS[C]! });
  assert.deepEqual(outcome.kind === 'good' && outcome.abortTasksOf, []);
  assert.deepEqual(holderOf(it), { key: KEYS[A], type: 1 });
  assert.equal(out(it, B, OUT_ACTION.preempt, { type: 1, actionKey: 99n }).kind, 'conflict');
  assert.deepEqual(out(it, B, OUT_ACTION.preempt, { type: 1, actionKey: 0n }), {
    kind: 'refused',
    sense: 'invalidFieldInParameters',
  });
});

test('key zero preempts all registrants of an all-registrants reservation', () => {
  const it = registered(A, B, C);
  out(it, A, OUT_ACTION.reserve, { type: 8 });
  const outcome = out(it, B, OUT_ACTION.preemptAndAbort, { type: 8, actionKey: 0n });
  assert.deepEqual(outcome.kind === 'good' && outcome.abortTasksOf, [A, C]);
  assert.deepEqual(keysOf(it), [KEYS[B]]);
  assert.equal(it.conflicts(A, 'read'), true);
});

test('RESERVE(6) keeps the others out until release, loss of the nexus or reset', () => {
  for (const end of [
    (it: Reservations) => it.release6(A),
    (it: Reservations) => it.nexusLost(A),
    (it: Reservations) => it.reset(),
  ]) {
    const it = new Reservations();
    assert.equal(it.reserve6(A), true);
    assert.equal(it.reserve6(A), true);
    assert.equal(it.reserve6(B), false);
    assert.deepEqual([it.conflicts6(A), it.conflicts6(B)], [false, true]);
    assert.equal(it.release6(B), true);
    it.nexusLost(B);
    assert.equal(it.conflicts6(B), true);
    end(it);
    assert.equal(it.active, false);
  }
  const it = registered(A);
  assert.deepEqual([it.reserve6(A), it.release6(A)], [false, false]);
});

test('a persistent reservation outlives the session and a reset', () => {
  const it = registered(A);
  out(it, A, OUT_ACTION.reserve, { type: 3 });
  it.nexusLost(A);
  it.reset();
  assert.equal(it.conflicts(B, 'read'), true);
});

test('full status names the ports and the holder', () => {
  const it = registered(A, B);
  out(it, B, OUT_ACTION.reserve, { type: 6 });
  const data = it.in(IN_ACTION.readFullStatus)!;
  const seen: [bigint, number, number, string][] = [];
  for (let at = 8; at < data.length; ) {
    const bytes = data.readUInt32BE(at + 20);
    const name = data.toString('utf8', at + 28, at + 24 + bytes).replace(/\0+$/, '');
    assert.equal(bytes % 4, 0);
    seen.push([data.readBigUInt64BE(at), data[at + 12]!, data[at + 13]!, name]);
    at += 24 + bytes;
  }
  assert.deepEqual(seen, [
    [KEYS[A], 0, 0, A],
    [KEYS[B], 1, 6, B],
  ]);
  assert.equal(it.in(IN_ACTION.reportCapabilities)!.readUInt16BE(4), 0xea01);
  assert.equal(it.in(4), null);
});

test('after any sequence: the holder is registered, keys are never zero, and a sole registrant is never shut out of itself', () => {
  const ports = [A, B, C];
  const step = fc.record({
    port: fc.constantFrom(...ports),
    action: fc.integer({ min: 0, max: 7 }),
    type: fc.constantFrom(...TYPES),
    key: fc.constantFrom(0n, 1n, 2n),
    actionKey: fc.constantFrom(0n, 1n, 2n),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const it = new Reservations();
      for (const { port, action, ...rest } of steps) {
        const before = [keysOf(it), holderOf(it), generationOf(it)];
        const outcome = out(it, port, action, rest);
        if (outcome.kind !== 'good') assert.deepEqual([keysOf(it), holderOf(it), generationOf(it)], before);
        else
          assert.ok(
            outcome.notices.every((notice) => notice.port !== port),
            'nobody is told of its own doing',
          );
        const keys = keysOf(it);
        const holder = holderOf(it);
        assert.ok(!keys.includes(0n));
        if (holder !== null) assert.ok(holder.type >= 7 ? keys.length > 0 : keys.includes(holder.key));
        it.in(IN_ACTION.readFullStatus);
      }
    }),
    { numRuns: 500 },
  );
});
