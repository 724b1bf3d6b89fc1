import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { type ClientAccount, ClientBook, type ClientLimits, type Debt } from './client-account.ts';

const LIMITS: ClientLimits = {
  sharedBytesMax: 1000,
  addressBytesMax: 700,
  connectionBytesMax: 500,
  connectionBytesReserved: 100,
  stallTimeoutMs: 60_000,
  pressureTimeoutMs: 4_000,
  progressBytesMin: 64,
};

type Client = {
  account: ClientAccount;
  debt: Debt;
  moved: number;
  room: number;
  dropped: string | null;
  retry: () => void;
};

function setUp() {
  const clock = new FakeClock();
  const book = new ClientBook(clock, LIMITS);
  const client = (address: string): Client => {
    const made: Omit<Client, 'account'> & { account: ClientAccount | null } = {
      account: null,
      debt: 'nothing',
      moved: 0,
      room: 0,
      dropped: null,
      retry: () => {},
    };
    made.account = book.open({
      address,
      debt: () => made.debt,
      movedBytes: () => made.moved,
      onRoom: () => {
        made.room += 1;
        made.retry();
      },
      drop: (reason) => {
        made.dropped = reason;
        made.account!.close();
      },
    });
    return made as Client;
  };
  return { clock, book, client };
}

test('a connection has its share, an address its own, and all together theirs; the reserve is nobody else’s', async () => {
  const { book, client } = setUp();
  const a = client('10.0.0.1');
  assert.ok(a.account.take(450));
  assert.equal(a.account.take(51), false, 'above the share of the connection');
  assert.equal(a.account.full, false);
  assert.ok(a.account.take(50));
  assert.ok(a.account.full);
  const b = client('10.0.0.1');
  assert.ok(b.account.take(400));
  assert.equal(b.account.take(1), false, 'above the share of the address: 400 + 300 beyond the reserves');
  const c = client('10.0.0.2');
  assert.ok(c.account.take(400));
  assert.equal(book.sharedBytes, 1000);
  assert.equal(c.account.take(1), false, 'above what all have');
  const late = client('10.0.0.3');
  assert.ok(late.account.take(100), 'its own');
  assert.equal(late.account.take(1), false);
  await turn();
  assert.equal(late.room, 0);
  c.account.release(1);
  await turn();
  assert.deepEqual([late.room, c.room], [1, 1]);
  assert.ok(late.account.take(1));
});

test('one request may be larger than the share of its connection, where nothing else of weight is on it', () => {
  const { client } = setUp();
  const a = client('10.0.0.1');
  assert.ok(a.account.take(50));
  assert.ok(a.account.take(650));
  assert.equal(a.account.take(1), false);
});

test('what is there already is counted without asking, and stops the reading', () => {
  const { book, client } = setUp();
  const a = client('10.0.0.1');
  a.account.charge(600);
  assert.ok(a.account.full);
  assert.equal(book.heldBytes, 600);
  a.account.close();
  assert.deepEqual([book.heldBytes, book.sharedBytes, book.connections, book.waiting], [0, 0, 0, 0]);
  a.account.release(600);
  assert.equal(book.heldBytes, 0, 'what a closed account gives back was counted out when it closed');
});

test('who waits for much is not overtaken for ever by those who want little', async () => {
  const { clock, client } = setUp();
  const a = client('10.0.0.1');
  const b = client('10.0.0.2');
  const big = client('10.0.0.3');
  assert.ok(a.account.take(500));
  assert.ok(b.account.take(500));
  assert.ok(client('10.0.0.4').account.take(300));
  let taken = big.account.take(400);
  big.retry = () => {
    taken ||= big.account.take(400);
  };
  clock.advance(1_000);
  a.account.release(50);
  await turn();
  assert.deepEqual([big.room, taken], [1, false]);
  assert.equal(a.account.take(1), false, 'another is before it');
  b.account.release(300);
  await turn();
  assert.ok(taken);
  assert.ok(a.account.take(1), 'the row is gone');
});

test('who is over its own share holds up nobody else, however long it waits', () => {
  const { clock, client } = setUp();
  const a = client('10.0.0.1');
  assert.ok(a.account.take(500));
  assert.equal(a.account.take(100), false);
  clock.advance(10_000);
  assert.ok(client('10.0.0.2').account.take(300));
});

test('a client that owes and does not move is dropped; a client that waits for the device, or moves, is not', () => {
  const { clock, client } = setUp();
  const stalls = client('10.0.0.1');
  const drips = client('10.0.0.1');
  const moves = client('10.0.0.1');
  const waits = client('10.0.0.1');
  stalls.debt = 'output';
  drips.debt = 'input';
  moves.debt = 'output';
  for (let second = 0; second < 70; second += 1) {
    drips.moved += 1;
    moves.moved += 10;
    clock.advance(1_000);
  }
  assert.equal(stalls.dropped, 'the client does not take what it asked for');
  assert.equal(drips.dropped, 'the client does not finish what it began');
  assert.deepEqual([moves.dropped, waits.dropped], [null, null]);
});

test('who only fills its own share is in nobody’s way', () => {
  const { clock, client } = setUp();
  const alone = client('10.0.0.1');
  alone.account.take(500);
  alone.debt = 'output';
  assert.ok(alone.account.full);
  clock.advance(50_000);
  assert.equal(alone.dropped, null);
});

test('a new debt is a new patience', () => {
  const { clock, client } = setUp();
  const a = client('10.0.0.1');
  for (let round = 0; round < 10; round += 1) {
    a.debt = 'input';
    clock.advance(50_000);
    a.debt = 'nothing';
    clock.advance(2_000);
  }
  assert.equal(a.dropped, null);
});

test('while others wait, those that are in the way have less patience; those within their reserve have all of it', async () => {
  const { clock, book, client } = setUp();
  const hogs = [1, 2, 3].map((host) => client(`10.0.0.${host}`));
  for (const hog of hogs) {
    hog.account.take(433);
    hog.debt = 'output';
  }
  const small = client('10.0.0.4');
  small.account.take(50);
  small.debt = 'output';
  const late = client('10.0.0.5');
  clock.advance(20_000);
  assert.deepEqual([hogs.map((hog) => hog.dropped), late.dropped], [[null, null, null], null]);
  assert.equal(late.account.take(300), false);
  clock.advance(2_000);
  await turn();
  assert.deepEqual(
    hogs.map((hog) => hog.dropped !== null),
    [true, false, false],
    'no more of them than it takes',
  );
  assert.equal(small.dropped, null);
  assert.equal(late.room, 1);
  assert.ok(late.account.take(300));
  assert.equal(book.connections, 4);
});

test('whatever is taken, charged, given back and closed, the sums are those of the accounts and within the bounds', () => {
  const action = fc.record({
    client: fc.nat(5),
    kind: fc.constantFrom('take', 'take', 'take', 'release', 'close'),
    bytes: fc.integer({ min: 0, max: 600 }),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
      const { clock, book, client } = setUp();
      const clients = Array.from({ length: 6 }, (_, index) => client(`10.0.0.${index % 3}`));
      for (const { client: index, kind, bytes } of actions) {
        const { account } = clients[index]!;
        const before = book.heldBytes;
        if (kind === 'take') {
          const taken = account.take(bytes);
          assert.equal(book.heldBytes, before + (taken ? bytes : 0));
        } else if (kind === 'release') account.release(Math.min(bytes, account.heldBytes));
        else if (bytes < 60) account.close();
        assert.ok(book.sharedBytes <= LIMITS.sharedBytesMax);
        const beyond = clients.map((one) => Math.max(0, one.account.heldBytes - 100));
        assert.equal(
          book.sharedBytes,
          beyond.reduce((sum, one) => sum + one, 0),
        );
      }
      for (const one of clients) one.account.close();
      assert.deepEqual([book.heldBytes, book.sharedBytes, clock.pendingTimers], [0, 0, 0]);
    }),
  );
});

test('those that have waited long do not give way to each other', async () => {
  const { clock, book, client } = setUp();
  const stalling = client('10.0.0.1');
  assert.ok(stalling.account.take(450));
  const waiters = ['10.0.0.2', '10.0.0.3', '10.0.0.4'].map(client);
  const blocker = client('10.0.0.5');
  assert.ok(blocker.account.take(450));
  const served: Client[] = [];
  for (const waiter of waiters) {
    waiter.retry = () => {
      if (waiter.account.take(450)) served.push(waiter);
    };
    assert.ok(!waiter.account.take(450));
    clock.advance(10);
  }
  clock.advance(1_500);
  stalling.account.close();
  blocker.account.close();
  await turn();
  assert.deepEqual(served, waiters.slice(0, 2), 'in the order in which they came');
  assert.ok(book.sharedBytes <= LIMITS.sharedBytesMax);
});
