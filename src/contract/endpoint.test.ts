import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Type } from 'typebox';
import {
  answering,
  argumentsOf,
  asking,
  type CallOptions,
  type Conversation,
  type Endpoint,
  laterParts,
  parametersOf,
  type Request,
  unsaidParts,
  wordsOf,
} from './endpoint.ts';
import { HEALTH, OPERATOR } from './operator.ts';
import { PEER } from './peer.ts';

const common = { summary: 's', tag: 't', caller: 'operator' } as const;
const SHOP = {
  show: { ...common, method: 'GET', path: '/shops/:city/:name', reply: Type.String(), field: 'shop' },
  find: {
    ...common,
    method: 'GET',
    path: '/shops',
    query: Type.Object({ open: Type.Boolean({ default: false }) }),
  },
  order: {
    ...common,
    method: 'POST',
    path: '/shops/:name/orders',
    body: Type.Object({ what: Type.String(), count: Type.Integer() }),
    given: { count: 1 },
  },
  close: {
    ...common,
    method: 'PUT',
    path: '/shops/:name',
    inBody: 'name',
    body: Type.Object({ name: Type.String(), until: Type.Integer() }),
  },
} as const satisfies Conversation;

/** Keeps what it is asked, and answers with what came as a server would call its handler. */
class Shop extends asking(SHOP) {
  readonly requests: Request[] = [];
  readonly options: CallOptions[] = [];

  override async call(_name: string, endpoint: Endpoint, request: Request, options: CallOptions) {
    this.requests.push(request);
    this.options.push(options);
    const { parameters, query, body } = request;
    return argumentsOf(endpoint, { parameters, query, body });
  }
}

test('a question is a path, a query and a body, and comes out as it went in', async () => {
  const shop = new Shop();
  assert.deepEqual(await shop.show('a b', 'c/d'), ['a b', 'c/d']);
  assert.deepEqual(await shop.find(), [{}]);
  assert.deepEqual(await shop.find({ open: true }), [{ open: true }]);
  assert.deepEqual(await shop.order('x', { what: 'tea' }), ['x', { what: 'tea', count: 1 }]);
  assert.deepEqual(await shop.order('x', { what: 'tea', count: 2 }), ['x', { what: 'tea', count: 2 }]);
  assert.deepEqual(await shop.close({ name: 'x', until: 3 }), [{ name: 'x', until: 3 }]);
  assert.deepEqual(
    shop.requests.map(({ path }) => path),
    ['/shops/a%20b/c%2Fd', '/shops', '/shops', '/shops/x/orders', '/shops/x/orders', '/shops/x'],
  );
  assert.deepEqual(shop.requests.at(-1)!.parameters, { name: 'x' });
});

test('options are the last argument, behind an input that may be left out', async () => {
  const shop = new Shop();
  await shop.show('a', 'b', { timeoutMs: 1 });
  await shop.find(undefined, { timeoutMs: 2 });
  await shop.order('x', { what: 'tea' }, { timeoutMs: 3 });
  await shop.close({ name: 'x', until: 3 }, { timeoutMs: 4 });
  assert.deepEqual(
    shop.options.map(({ timeoutMs }) => timeoutMs),
    [1, 2, 3, 4],
  );
});

test('two that answer parts of a conversation answer it together, each as itself', async () => {
  class Part {
    readonly #name = 'part';
    async show() {
      return this.#name;
    }
  }
  const rest = { name: 'rest', find: async () => {}, order: async () => {}, close: async () => {} };
  const all = answering(SHOP, new Part(), rest);
  assert.equal(await all.show('a', 'b'), 'part');
  assert.deepEqual(Object.keys(all), Object.keys(SHOP));
});

test('in what workers answer no two questions have one name or one route, and every parameter has a schema', () => {
  const rows: [string, Endpoint][] = [HEALTH, OPERATOR, PEER].flatMap((table) => Object.entries(table));
  const names = rows.map(([name]) => name);
  assert.deepEqual(names, [...new Set(names)]);
  const routes = rows.map(([, { method, path }]) => `${method} ${path}`);
  assert.deepEqual(routes, [...new Set(routes)]);
  for (const [name, endpoint] of rows) {
    assert.ok(parametersOf(endpoint).length === 0 || endpoint.parameter !== undefined, name);
    assert.ok(!(endpoint.query && endpoint.body), `${name} has a query and a body`);
    // By the path a server knows whom it asks for a certificate.
    assert.equal(endpoint.path.startsWith('/v1/rpc/'), endpoint.caller === 'worker', name);
    if (endpoint.inBody !== undefined) assert.ok(parametersOf(endpoint).includes(endpoint.inBody), name);
  }
});

test('a part that came later goes to a worker that has said its word, and an operator says it where it means it', async () => {
  const row = { summary: 's', tag: 't', method: 'POST', path: '/x' } as const;
  const LATER = {
    ask: {
      ...row,
      body: Type.Object({ what: Type.String(), why: Type.Optional(Type.String()) }),
      since: { why: 'reasons' },
      caller: 'worker',
    },
    drop: {
      ...row,
      method: 'DELETE',
      query: Type.Object({ force: Type.Boolean({ default: false }), all: Type.Boolean({ default: false }) }),
      since: { all: 'all' },
      caller: 'operator',
    },
  } as const satisfies Conversation;
  const sent: unknown[] = [];
  class Client extends asking(LATER) {
    override async call(_name: string, _endpoint: Endpoint, { body, query }: Request) {
      sent.push(body ?? query);
    }
  }
  const client = new Client();
  const question = { what: 'a', why: 'b' };
  await client.ask(question);
  await client.ask(question, { knows: ['other'] });
  await client.ask(question, { knows: ['reasons'] });
  await client.drop({ all: false });
  await client.drop({ force: true, all: true });
  assert.deepEqual(sent, [{ what: 'a' }, { what: 'a' }, question, {}, { force: true, all: true }]);
  assert.deepEqual(question, { what: 'a', why: 'b' }, 'it is the caller’s');
  assert.deepEqual(wordsOf(LATER), ['reasons', 'all']);
  assert.deepEqual(unsaidParts(LATER.ask, { what: 'a' }), [], 'there is nothing to say');
});

test('what a conversation says to have come later is a part of it', () => {
  for (const row of Object.values({ ...OPERATOR, ...PEER }) as Endpoint[])
    for (const part of Object.keys(laterParts(row)))
      assert.ok(part in ((row.query ?? row.body) as unknown as { properties: object }).properties, part);
});
