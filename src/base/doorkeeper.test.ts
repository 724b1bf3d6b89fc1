import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { Doorkeeper, type DoorLimits, type Guest, HANDSHAKES, type Stay } from './doorkeeper.ts';

const LIMITS: DoorLimits = {
  placesMax: 4,
  placesOfKeyMax: 3,
  waitingMax: 3,
  waitingOfKeyMax: 2,
  graceMs: 1_000,
  protectedMsMax: 3_000,
  perSecond: 100,
  waitMsMax: 10_000,
};

/** A door, and who came in and was turned out, in order. */
function door(limits: Partial<DoorLimits> = {}) {
  const clock = new FakeClock();
  const doorkeeper = new Doorkeeper(clock, { ...LIMITS, ...limits });
  const entered: string[] = [];
  const out: string[] = [];
  const come = (name: string, key = 'x', guest: Partial<Guest> = {}): Stay | null =>
    doorkeeper.come({ key, shows: () => 0, turnOut: () => out.push(name), ...guest }, () =>
      entered.push(name),
    );
  return { clock, doorkeeper, entered, out, come };
}

test('who comes gets a free place at once; who waits gets that of the one that has stood still for longest, after its minimum', () => {
  const { clock, doorkeeper, entered, out, come } = door();
  const [a, b] = ['a', 'b', 'c'].map((name) => come(name)!);
  assert.deepEqual(entered, ['a', 'b', 'c']);
  come('d');
  clock.advance(500);
  assert.deepEqual([doorkeeper.waiting, out], [1, []], 'nobody had the time to show anything');
  a!.advances();
  clock.advance(540);
  assert.deepEqual([out, entered.at(-1)], [['b'], 'd']);
  come('e');
  clock.advance(40);
  assert.deepEqual(out, ['b', 'c']);
  b!.end();
  assert.equal(doorkeeper.inside, 3, 'what has ended ends nobody else');
});

test('what goes on moving is not kept for ever, and what shows more stays longer', () => {
  const { clock, out, come } = door();
  const restless = come('restless')!;
  come('shows', 'x', { shows: () => 1 });
  come('works', 'x', { shows: () => null });
  const first = come('first', 'x', { shows: () => 1 })!;
  for (let ms = 0; ms < 3_100; ms += 100) {
    restless.advances();
    first.advances();
    if (ms === 2_000) come('second');
    clock.advance(100);
  }
  assert.deepEqual(out, ['shows', 'restless'], 'the one that stood still, then the one whose time was over');
});

test('bytes that nobody else sees count as a step, while somebody waits', () => {
  const { clock, out, come } = door({ placesOfKeyMax: 2 });
  let movedBytes = 0;
  come('handshake', 'x', { movedBytes: () => movedBytes });
  come('silent', 'x', { movedBytes: () => 0 });
  clock.advance(900);
  come('next');
  clock.advance(80);
  movedBytes += 100;
  clock.advance(60);
  assert.deepEqual(out, ['silent']);
  come('one more');
  clock.advance(800);
  assert.deepEqual(out, ['silent']);
  clock.advance(200);
  assert.deepEqual(out, ['silent', 'handshake']);
});

test('of two addresses the one with more gives the place, and its row is not in the way of the other', () => {
  const { clock, entered, out, come } = door();
  for (const name of ['a', 'b', 'c', 'd', 'e']) come(name, 'crowd');
  assert.equal(come('f', 'crowd'), null, 'its row is full');
  come('one', 'y');
  assert.ok(entered.includes('one'), 'a place that the crowd may not have');
  assert.ok(come('other', 'z') !== null);
  clock.advance(1_000);
  assert.deepEqual(out, ['a', 'b']);
  clock.advance(20);
  assert.deepEqual(out, ['a', 'b', 'c']);
  assert.ok(entered.includes('other') && entered.includes('d'));
});

test('while the process did not run nobody stood still', () => {
  const { clock, out, come } = door({ placesOfKeyMax: 1 });
  come('a');
  come('b');
  clock.advance(30);
  clock.skip(5_000);
  clock.advance(500);
  assert.deepEqual(out, []);
  clock.advance(520);
  assert.deepEqual(out, ['a']);
});

test('who waits for those that work and stay is turned out in the end', () => {
  const { clock, doorkeeper, entered, out, come } = door({ placesOfKeyMax: 1 });
  const works = { shows: () => null };
  come('works', 'x', works);
  come('waits', 'x');
  clock.advance(5_000);
  come('later', 'x');
  assert.equal(doorkeeper.busiestKey, 'x');
  clock.advance(4_980);
  assert.deepEqual(out, []);
  clock.advance(40);
  assert.deepEqual([entered, out, doorkeeper.waiting], [['works'], ['waits'], 1]);
});

test('who waits and goes is forgotten, and after the end nobody comes in', () => {
  const { clock, doorkeeper, entered, out, come } = door({ placesOfKeyMax: 1 });
  const a = come('a')!;
  const b = come('b')!;
  come('c');
  b.end();
  a.end();
  clock.advance(20);
  assert.deepEqual(entered, ['a', 'c']);
  come('d');
  doorkeeper.close();
  assert.equal(come('e'), null);
  clock.advance(5_000);
  assert.deepEqual([entered, out, clock.pendingTimers], [['a', 'c'], ['d'], 0]);
});

/*
 * A server at whose door a crowd from one address is back as soon as it is turned out, and one honest client
 * from that address now and then. The machine does one thing at a time, and takes `slowness` times as long
 * for each.
 */

/** Clients that have asked for something, as the NBD server has them. */
const SESSIONS: DoorLimits = {
  ...HANDSHAKES,
  placesMax: 128,
  placesOfKeyMax: 96,
  graceMs: 1_000,
  protectedMsMax: Number.POSITIVE_INFINITY,
};
/**
 * On a quick machine, in milliseconds: what a connection, a step and a byte cost the server, and how long the
 * crowd and the client take.
 */
const ACCEPT_MS = 0.4;
const STEP_MS = 0.5;
const DRIP_MS = 0.05;
const BACK_MS = 1;
const THINK_MS = 5;
/** Of a handshake over TLS, and of one in the clear. */
const STEPS = 8;
const CLEAR_STEPS = 2;

/**
 * What one of the crowd does in its handshake or after it. All but the silent ones begin one. `knocks`:
 * connections that are closed as soon as they are made, so many a second, beside as many silent ones as one
 * address may have; of one that waits nobody sees that it is closed.
 */
type Crowd = 'silent' | 'half a handshake' | 'drips' | 'idle sessions' | 'asks once' | 'knocks';

class Siege {
  readonly clock = new FakeClock();
  readonly #handshakes = new Doorkeeper(this.clock, HANDSHAKES);
  readonly #sessions = new Doorkeeper(this.clock, SESSIONS);
  readonly #slowness: number;
  readonly #crowd: Crowd;

  constructor(crowd: Crowd, count: number, slowness: number) {
    this.#crowd = crowd;
    this.#slowness = slowness;
    const sitting = crowd === 'knocks' ? HANDSHAKES.placesOfKeyMax : count;
    for (let index = 0; index < sitting; index += 1) this.#hostile();
    if (crowd === 'knocks') this.#knock(1_000 / count);
  }

  #knock(everyMs: number): void {
    this.#after(everyMs, () => this.#knock(everyMs));
    this.#work(ACCEPT_MS / 2);
    this.#handshakes.come({ key: 'x', shows: () => 0, turnOut: () => {} }, (entered) => {
      this.#work(ACCEPT_MS / 2);
      this.#after(1, () => entered.end());
    });
  }

  /** The only processor is at work: everything else is late. */
  #work(ms: number): void {
    this.clock.skip(ms * this.#slowness);
  }

  #after(ms: number, work: () => void): void {
    this.clock.timer(ms * this.#slowness, work);
  }

  #hostile(): void {
    let over = false;
    let agreed = false;
    const turnOut = () => {
      over = true;
      this.#after(BACK_MS, () => this.#hostile());
    };
    const then = (work: () => void) =>
      this.#after(1, () => {
        if (!over) work();
      });
    const stay = this.#handshakes.come({ key: 'x', shows: () => (agreed ? 2 : 0), turnOut }, () => {
      this.#work(ACCEPT_MS);
      if (this.#crowd === 'half a handshake') then(() => this.#work(STEP_MS));
      if (this.#crowd === 'drips') {
        const drip = () => {
          if (over) return;
          stay!.advances();
          this.#work(DRIP_MS);
          this.clock.timer(700, drip);
        };
        this.clock.timer(700, drip);
      }
      if (this.#crowd !== 'idle sessions' && this.#crowd !== 'asks once') return;
      then(() => {
        this.#work(STEP_MS * CLEAR_STEPS);
        agreed = true;
        if (this.#crowd === 'asks once')
          this.#sessions.come({ key: 'x', shows: () => 0, turnOut }, () => stay!.end());
      });
    });
    if (stay === null) this.#after(20, () => this.#hostile());
  }

  /**
   * How long it takes an honest client to be through with its handshake and its first request, tries
   * included.
   */
  honest(): number {
    const cameMs = this.clock.monotonicMs();
    let served = false;
    const attempt = () => {
      let over = false;
      let steps = 0;
      const turnOut = () => {
        over = true;
        this.#after(20, attempt);
      };
      const stay = this.#handshakes.come({ key: 'x', shows: () => (steps < STEPS ? 0 : 2), turnOut }, () => {
        this.#work(ACCEPT_MS);
        const step = () => {
          if (over) return;
          this.#work(STEP_MS);
          steps += 1;
          stay!.advances();
          if (steps < STEPS) {
            this.#after(THINK_MS, step);
            return;
          }
          const session = this.#sessions.come({ key: 'x', shows: () => 0, turnOut }, () => {
            stay!.end();
            this.#after(THINK_MS, () => {
              served = !over;
              session!.end();
            });
          });
        };
        this.#after(THINK_MS, step);
      });
      if (stay === null) this.#after(20, attempt);
    };
    attempt();
    while (!served && this.clock.monotonicMs() - cameMs < 60_000) this.clock.advance(1);
    return Math.round(this.clock.monotonicMs() - cameMs);
  }
}

const WITHIN_MS = 2_000;
/** As many as there are places for those of one address, and more. */
const CROWDS: { crowd: Crowd; slowness: number; counts: number[] }[] = [
  { crowd: 'silent', slowness: 1, counts: [70, 150, 400] },
  { crowd: 'silent', slowness: 10, counts: [70, 150, 250] },
  { crowd: 'half a handshake', slowness: 1, counts: [70, 150, 400] },
  { crowd: 'half a handshake', slowness: 10, counts: [70, 150, 250] },
  { crowd: 'drips', slowness: 1, counts: [70, 150, 250] },
  { crowd: 'drips', slowness: 10, counts: [70, 150, 200] },
  { crowd: 'idle sessions', slowness: 1, counts: [128, 150, 400] },
  { crowd: 'idle sessions', slowness: 10, counts: [128, 150, 250] },
  { crowd: 'asks once', slowness: 1, counts: [128, 150] },
  { crowd: 'knocks', slowness: 1, counts: [193, 400, 1_000, 2_000] },
  { crowd: 'knocks', slowness: 10, counts: [193, 400] },
];

for (const { crowd, slowness, counts } of CROWDS) {
  const machine = slowness === 1 ? '' : `, on a machine ${slowness} times as slow`;
  test(`an honest client is in within 2 s of a crowd (${crowd})${machine}`, (t) => {
    for (const count of counts) {
      const siege = new Siege(crowd, count, slowness);
      const waits: number[] = [];
      for (let round = 0; round < 12; round += 1) {
        siege.clock.advance(round === 0 ? 5 : 700);
        waits.push(siege.honest());
      }
      t.diagnostic(`${count}: ${waits.join(' ')}`);
      assert.ok(Math.max(...waits) < WITHIN_MS, `${count}: ${waits.join(' ')}`);
    }
  });
}

test('one that leaves the row takes nobody else out of it: who was there before comes in before', () => {
  const { clock, entered, come } = door({ waitingOfKeyMax: 3 });
  const [a] = ['a', 'b', 'c'].map((name) => come(name)!);
  const d = come('d')!;
  come('e');
  d.end();
  a!.end();
  come('f');
  assert.equal(entered.length, 3, 'e waits, and so does who comes after it');
  clock.advance(40);
  assert.deepEqual(entered.slice(3), ['e']);
  for (const name of ['g', 'h']) assert.notEqual(come(name, 'x'), null);
  assert.equal(come('i', 'x'), null, 'the row of this key is full');
});
