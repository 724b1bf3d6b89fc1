import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { HeldDevice } from '../../test/support/held-device.ts';
import { turnsOf } from '../../test/support/loop-turns.ts';
import { RawNbdClient } from '../../test/support/nbd-raw-client.ts';
import { until } from '../../test/support/patience.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { readPems, TestAuthority } from '../../test/support/test-authority.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ClientBook } from '../base/client-account.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import type { NbdExportOptions } from './export.ts';
import * as protocol from './protocol.ts';
import { NbdServer, type NbdServerOptions } from './server.ts';

const { CHUNK, COMMAND, COMMAND_FLAG, NBD_ERROR, OPTION, OPTION_REPLY, TRANSMISSION_FLAG } = protocol;
const KIB = 1024;
const MIB = KIB * KIB;

async function start(
  t: TestContext,
  exports: NbdExportOptions[],
  options: Partial<NbdServerOptions> = {},
): Promise<{ server: NbdServer; client: () => RawNbdClient }> {
  const server = await NbdServer.listen({
    address: { host: '127.0.0.1', port: 0 },
    clock: systemClock,
    logger: silentLogger,
    ...options,
  });
  t.after(() => server.close());
  for (const share of exports) server.addExport(share);
  const client = () => {
    const { address } = server;
    const socket = connect('path' in address ? address : { port: address.port, host: address.host });
    t.after(() => socket.destroy());
    return new RawNbdClient(socket);
  };
  return { server, client };
}

function memory(lengthBytes = 4 * MIB): MemoryDevice {
  return new MemoryDevice({ lengthBytes });
}

function typesOf(replies: { type: number }[]): number[] {
  return replies.map(({ type }) => type);
}

test('every reply mode reads what it wrote, in small and in large', async (t) => {
  for (const mode of ['simple', 'structured', 'extended'] as const) {
    const { client } = await start(t, [{ name: '', device: memory(), readOnly: false }]);
    const raw = client();
    await raw.begin({ mode });
    const flags = mode === 'extended' ? COMMAND_FLAG.payloadLength : 0;
    for (const lengthBytes of [512, 4 * KIB, 32 * KIB, 96 * KIB, MIB]) {
      const data = randomBytes(lengthBytes);
      assert.equal((await raw.call({ type: COMMAND.write, offsetBytes: MIB, flags }, data)).error, 0);
      assert.ok((await raw.read(MIB, lengthBytes)).data.equals(data), `${mode} ${lengthBytes}`);
    }
  }
});

test('requests are answered as they finish, each once', async (t) => {
  const { client } = await start(t, [{ name: '', device: memory(), readOnly: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  const expected = new Set<number>();
  for (let index = 0; index < 300; index += 1) {
    const offsetBytes = (index % 64) * 4 * KIB;
    expected.add(raw.send({ type: COMMAND.write, offsetBytes }, Buffer.alloc(4 * KIB, index)));
    expected.add(raw.send({ type: COMMAND.read, offsetBytes, lengthBytes: 40 * KIB }));
    expected.add(raw.send({ type: COMMAND.flush, lengthBytes: 0 }));
  }
  while (expected.size > 0) {
    const { cookie, error } = await raw.reply();
    assert.equal(error, 0);
    assert.ok(expected.delete(cookie), `cookie ${cookie}`);
  }
});

test('a large read tells holes, and data only under DF and without structured replies', async (t) => {
  const device = memory();
  await device.write(128 * KIB, Buffer.alloc(64 * KIB, 5));
  const { client } = await start(t, [{ name: '', device }]);
  const expected = Buffer.alloc(512 * KIB);
  expected.fill(5, 128 * KIB, 192 * KIB);
  for (const mode of ['structured', 'extended'] as const) {
    const raw = client();
    await raw.begin({ mode });
    const sparse = await raw.read(0, 512 * KIB);
    assert.deepEqual(sparse.types, [CHUNK.offsetHole, CHUNK.offsetData, CHUNK.offsetHole]);
    assert.ok(sparse.data.equals(expected));
    const whole = await raw.read(0, 512 * KIB, COMMAND_FLAG.dontFragment);
    assert.deepEqual(whole.types, [CHUNK.offsetData]);
    assert.ok(whole.data.equals(expected));
    assert.deepEqual((await raw.read(0, 64 * KIB)).types, [CHUNK.offsetHole]);
  }
  const raw = client();
  await raw.begin();
  assert.ok((await raw.read(0, 512 * KIB)).data.equals(expected));
});

test('zeroes that must have a place are written in whole blocks, and for the rest of a block nobody waits', async (t) => {
  const device = memory();
  const writes: [number, number][] = [];
  const write = device.write.bind(device);
  device.write = (offsetBytes, from) => {
    writes.push([offsetBytes, from.length]);
    return write(offsetBytes, from);
  };
  const { client } = await start(t, [{ name: '', device, readOnly: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  const expected = Buffer.alloc(MIB, 1);
  await raw.call({ type: COMMAND.write }, expected);
  writes.length = 0;
  for (const [offsetBytes, lengthBytes] of [
    [512, 512],
    [8 * KIB + 512, 9 * KIB],
    [64 * KIB, 8 * KIB],
    [128 * KIB, 3 * KIB],
    [160 * KIB + 1024, 3 * KIB],
  ] as const) {
    const zeroing = { type: COMMAND.writeZeroes, offsetBytes, lengthBytes, flags: COMMAND_FLAG.noHole };
    assert.equal((await raw.call(zeroing)).error, 0);
    expected.fill(0, offsetBytes, offsetBytes + lengthBytes);
  }
  assert.ok((await raw.read(0, MIB)).data.equals(expected));
  assert.deepEqual(writes, [
    [12 * KIB, 4 * KIB],
    [64 * KIB, 8 * KIB],
  ]);
});

test('zeroes, trims, cache and flush do what they say', async (t) => {
  const device = memory();
  const { client } = await start(t, [{ name: '', device, readOnly: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  await raw.call({ type: COMMAND.write }, Buffer.alloc(MIB, 1));
  const allocated = device.allocatedBytes;
  const call = async (type: number, offsetBytes: number, lengthBytes: number, flags = 0) =>
    (await raw.call({ type, offsetBytes, lengthBytes, flags })).error;
  assert.equal(await call(COMMAND.writeZeroes, 0, 256 * KIB, COMMAND_FLAG.noHole), 0);
  assert.equal(device.allocatedBytes, allocated);
  assert.equal(
    await call(COMMAND.writeZeroes, 256 * KIB, 256 * KIB, COMMAND_FLAG.fastZero | COMMAND_FLAG.fua),
    0,
  );
  assert.equal(device.allocatedBytes, allocated - 256 * KIB);
  assert.equal(await call(COMMAND.trim, 512 * KIB, 256 * KIB), 0);
  assert.equal(device.allocatedBytes, allocated - 512 * KIB);
  const { data } = await raw.read(0, MIB);
  assert.ok(data.subarray(0, 768 * KIB).every((byte) => byte === 0));
  assert.ok(data.subarray(768 * KIB).every((byte) => byte === 1));
  assert.equal(
    await call(COMMAND.writeZeroes, 0, 4 * KIB, COMMAND_FLAG.fastZero | COMMAND_FLAG.noHole),
    NBD_ERROR.ENOTSUP,
  );
  assert.equal(await call(COMMAND.cache, 0, 2 * MIB), 0);
  assert.equal(await call(COMMAND.flush, 0, 0), 0);
});

test('FUA is answered after the flush, and an error of the flush is told', async (t) => {
  const calls: string[] = [];
  const inner = memory();
  const device: BlockDevice = {
    lengthBytes: inner.lengthBytes,
    blockBytes: inner.blockBytes,
    writable: true,
    read: (offset, into) => inner.read(offset, into),
    write: async () => void calls.push('write'),
    flush: async () => void calls.push('flush'),
    discard: async () => void calls.push('discard'),
    writeZeroes: async () => void calls.push('writeZeroes'),
    close: async () => {},
  };
  const { client } = await start(t, [{ name: '', device, readOnly: false, fastZeroes: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  await raw.call({ type: COMMAND.write, flags: COMMAND_FLAG.fua }, Buffer.alloc(512));
  await raw.call({ type: COMMAND.trim, lengthBytes: 512, flags: COMMAND_FLAG.fua });
  await raw.call({ type: COMMAND.writeZeroes, lengthBytes: 512 });
  assert.deepEqual(calls, ['write', 'flush', 'discard', 'flush', 'writeZeroes']);
  const fast = await raw.call({ type: COMMAND.writeZeroes, lengthBytes: 512, flags: COMMAND_FLAG.fastZero });
  assert.equal(fast.error, NBD_ERROR.ENOTSUP);
  device.flush = () => Promise.reject(new Error('lost'));
  const failed = await raw.call({ type: COMMAND.write, flags: COMMAND_FLAG.fua }, Buffer.alloc(512));
  assert.equal(failed.error, NBD_ERROR.EIO);
});

test('what is wrong with a request is told in its error, and the next one is served', async (t) => {
  const { client } = await start(t, [
    { name: 'rw', device: memory(), readOnly: false },
    { name: 'ro', device: memory() },
  ]);
  const cases: [string, string, Partial<protocol.Request> & { type: number }, number, number][] = [
    [
      'rw',
      'read past the end',
      { type: COMMAND.read, offsetBytes: 4 * MIB, lengthBytes: 512 },
      0,
      NBD_ERROR.EINVAL,
    ],
    [
      'rw',
      'read at 2^63',
      { type: COMMAND.read, offsetBytes: 2 ** 63, lengthBytes: 512 },
      0,
      NBD_ERROR.EINVAL,
    ],
    ['rw', 'write past the end', { type: COMMAND.write, offsetBytes: 4 * MIB - 512 }, 1024, NBD_ERROR.ENOSPC],
    ['rw', 'zeroes past the end', { type: COMMAND.writeZeroes, lengthBytes: 5 * MIB }, 0, NBD_ERROR.ENOSPC],
    ['rw', 'trim past the end', { type: COMMAND.trim, lengthBytes: 5 * MIB }, 0, NBD_ERROR.EINVAL],
    ['rw', 'unaligned', { type: COMMAND.read, offsetBytes: 1, lengthBytes: 512 }, 0, NBD_ERROR.EINVAL],
    ['rw', 'unaligned write', { type: COMMAND.write, offsetBytes: 0 }, 100, NBD_ERROR.EINVAL],
    ['rw', 'nothing', { type: COMMAND.read, lengthBytes: 0 }, 0, NBD_ERROR.EINVAL],
    ['rw', 'unknown command', { type: 77, lengthBytes: 0 }, 0, NBD_ERROR.EINVAL],
    ['rw', 'resize', { type: COMMAND.resize, lengthBytes: 512 }, 0, NBD_ERROR.EINVAL],
    ['rw', 'unknown flag', { type: COMMAND.read, lengthBytes: 512, flags: 1 << 9 }, 0, NBD_ERROR.EINVAL],
    [
      'rw',
      'foreign flag',
      { type: COMMAND.read, lengthBytes: 512, flags: COMMAND_FLAG.reqOne },
      0,
      NBD_ERROR.EINVAL,
    ],
    ['rw', 'too long', { type: COMMAND.read, lengthBytes: 3 * MIB }, 0, NBD_ERROR.EINVAL],
    ['rw', 'too long a write', { type: COMMAND.write }, 3 * MIB, NBD_ERROR.EINVAL],
    ['rw', 'flush of a range', { type: COMMAND.flush, lengthBytes: 512 }, 0, NBD_ERROR.EINVAL],
    ['rw', 'status without context', { type: COMMAND.blockStatus, lengthBytes: 512 }, 0, NBD_ERROR.EINVAL],
    ['ro', 'write', { type: COMMAND.write }, 512, NBD_ERROR.EPERM],
    ['ro', 'trim', { type: COMMAND.trim, lengthBytes: 512 }, 0, NBD_ERROR.EPERM],
    ['ro', 'zeroes', { type: COMMAND.writeZeroes, lengthBytes: 512 }, 0, NBD_ERROR.EPERM],
  ];
  const limited = await start(
    t,
    [
      { name: 'rw', device: memory(), readOnly: false },
      { name: 'ro', device: memory() },
    ],
    { limits: { requestBytesMax: 2 * MIB, payloadBytesMax: 4 * MIB } },
  );
  assert.ok(client);
  for (const mode of ['simple', 'structured', 'extended'] as const) {
    for (const [exportName, what, request, payloadBytes, error] of cases) {
      const raw = limited.client();
      await raw.begin({ mode, exportName });
      const reply = await raw.call(request, Buffer.alloc(payloadBytes));
      assert.equal(reply.error, error, `${mode}: ${what}`);
      assert.equal((await raw.read(0, 512)).data.length, 512);
    }
  }
});

test('errors of the device are told as the protocol names them', async (t) => {
  const device = memory();
  const { client } = await start(t, [{ name: '', device, readOnly: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  await device.close();
  assert.equal((await raw.call({ type: COMMAND.read, lengthBytes: 64 * KIB })).error, NBD_ERROR.ESHUTDOWN);
  assert.equal((await raw.call({ type: COMMAND.write }, Buffer.alloc(512))).error, NBD_ERROR.ESHUTDOWN);
});

test('block status tells holes and hydration, at once or one by one', async (t) => {
  const device = memory();
  await device.write(MIB, Buffer.alloc(MIB, 1));
  const asked: number[] = [];
  const { client } = await start(t, [
    {
      name: 'clone',
      device,
      hydration: (offsetBytes, lengthBytes, limitExtents) => {
        asked.push(limitExtents);
        return [
          { offsetBytes, lengthBytes: lengthBytes / 2, kind: 'hydrated' as const },
          {
            offsetBytes: offsetBytes + lengthBytes / 2,
            lengthBytes: lengthBytes / 2,
            kind: 'remote' as const,
          },
        ].slice(0, limitExtents);
      },
    },
  ]);
  const contexts = [protocol.ALLOCATION_CONTEXT, protocol.HYDRATION_CONTEXT];
  for (const mode of ['structured', 'extended'] as const) {
    const raw = client();
    await raw.begin({ mode, contexts, exportName: 'clone' });
    const status = async (flags = 0, payload?: Buffer) => {
      const { chunks, error } = await raw.call(
        { type: COMMAND.blockStatus, flags, lengthBytes: payload?.length ?? 4 * MIB },
        payload,
      );
      return {
        error,
        chunks: chunks
          .filter(({ type }) => type !== CHUNK.error)
          .map(({ type, payload }) => protocol.decodeBlockStatus(type, payload)),
      };
    };
    const allocation = [
      { lengthBytes: MIB, state: 3 },
      { lengthBytes: MIB, state: 0 },
      { lengthBytes: 2 * MIB, state: 3 },
    ];
    const hydration = [
      { lengthBytes: 2 * MIB, state: 0 },
      { lengthBytes: 2 * MIB, state: 1 },
    ];
    assert.deepEqual((await status()).chunks, [
      { contextId: 0, extents: allocation },
      { contextId: 1, extents: hydration },
    ]);
    assert.deepEqual((await status(COMMAND_FLAG.reqOne)).chunks, [
      { contextId: 0, extents: allocation.slice(0, 1) },
      { contextId: 1, extents: hydration.slice(0, 1) },
    ]);
    if (mode === 'structured') continue;
    const only = protocol.encodeBlockStatusPayload(4 * MIB, [1]);
    assert.deepEqual((await status(COMMAND_FLAG.payloadLength, only)).chunks, [
      { contextId: 1, extents: hydration },
    ]);
    for (const ids of [[], [2], [1, 1], [0, 1, 0]]) {
      const payload = protocol.encodeBlockStatusPayload(4 * MIB, ids);
      assert.equal((await status(COMMAND_FLAG.payloadLength, payload)).error, NBD_ERROR.EINVAL, `${ids}`);
    }
    assert.equal((await status(COMMAND_FLAG.payloadLength, Buffer.alloc(3))).error, NBD_ERROR.EINVAL);
  }
});

test('exports are listed, found by name, and described', async (t) => {
  const { client } = await start(t, [
    { name: 'one', description: 'the first', device: memory() },
    { name: 'two', device: memory(8 * MIB), readOnly: false },
  ]);
  const raw = client();
  await raw.greet();
  const list = await raw.option(OPTION.list);
  assert.deepEqual(typesOf(list), [OPTION_REPLY.server, OPTION_REPLY.server, OPTION_REPLY.ack]);
  assert.deepEqual(protocol.decodeListed(list[0]!.data), { name: 'one', description: 'the first' });
  const everything = Object.values(protocol.INFO);
  const info = await raw.option(OPTION.info, protocol.encodeInfoRequest('one', everything));
  assert.equal(info.at(-1)!.type, OPTION_REPLY.ack);
  const infos = info.slice(0, -1).map(({ data }) => protocol.decodeInfo(data));
  const readOnly = infos.find((item) => item?.type === 'export')!;
  assert.ok(readOnly.type === 'export' && readOnly.transmissionFlags & TRANSMISSION_FLAG.readOnly);
  assert.ok(infos.some((item) => item?.type === 'description' && item.description === 'the first'));
  assert.ok(infos.some((item) => item?.type === 'blockSize' && item.minimumBytes === 512));
  // Two exports: no name is no answer.
  for (const name of ['', 'three']) {
    const refused = await raw.option(OPTION.go, protocol.encodeInfoRequest(name, []));
    assert.deepEqual(typesOf(refused), [OPTION_REPLY.errorUnknown]);
  }
  assert.deepEqual(typesOf(await raw.option(99)), [OPTION_REPLY.errorUnsupported]);
  assert.deepEqual(typesOf(await raw.option(OPTION.list, Buffer.from('x'))), [OPTION_REPLY.errorInvalid]);
  assert.deepEqual(typesOf(await raw.option(OPTION.info, Buffer.alloc(3))), [OPTION_REPLY.errorInvalid]);
  assert.deepEqual(typesOf(await raw.option(98, Buffer.alloc(1_000_000))), [OPTION_REPLY.errorTooBig]);
  assert.deepEqual(typesOf(await raw.option(OPTION.startTls)), [OPTION_REPLY.errorPolicy]);
  const go = await raw.option(OPTION.go, protocol.encodeInfoRequest('two', []));
  assert.equal(go.at(-1)!.type, OPTION_REPLY.ack);
  assert.equal((await raw.call({ type: COMMAND.write }, Buffer.alloc(512))).error, 0);
});

test('structured replies, extended headers and contexts are agreed on in their order', async (t) => {
  const { client } = await start(t, [{ name: '', device: memory() }]);
  const raw = client();
  await raw.greet();
  const contexts = (...queries: string[]) => protocol.encodeMetaContextRequest('', queries);
  const set = OPTION.setMetaContext;
  const list = OPTION.listMetaContext;
  assert.deepEqual(typesOf(await raw.option(set, contexts('base:allocation'))), [OPTION_REPLY.errorInvalid]);
  assert.deepEqual(typesOf(await raw.option(OPTION.structuredReply)), [OPTION_REPLY.ack]);
  assert.deepEqual(typesOf(await raw.option(OPTION.structuredReply)), [OPTION_REPLY.errorInvalid]);
  const { metaContext, ack, errorInvalid } = OPTION_REPLY;
  assert.deepEqual(typesOf(await raw.option(set, contexts('base:allocation', 'x-other:thing'))), [
    metaContext,
    ack,
  ]);
  assert.deepEqual(typesOf(await raw.option(set, contexts())), [ack]);
  assert.deepEqual(typesOf(await raw.option(set, contexts('base:'))), [ack]);
  assert.deepEqual(typesOf(await raw.option(list, contexts())), [metaContext, ack]);
  assert.deepEqual(typesOf(await raw.option(list, contexts('base:'))), [metaContext, ack]);
  assert.deepEqual(typesOf(await raw.option(list, contexts('godwit:'))), [ack]);
  assert.deepEqual(typesOf(await raw.option(list, contexts('noNamespace'))), [errorInvalid]);
  assert.deepEqual(typesOf(await raw.option(OPTION.extendedHeaders)), [ack]);
  assert.deepEqual(typesOf(await raw.option(OPTION.extendedHeaders)), [errorInvalid]);
  assert.deepEqual(typesOf(await raw.option(OPTION.structuredReply)), [
    OPTION_REPLY.errorExtendedHeadersRequired,
  ]);
  assert.deepEqual(typesOf(await raw.option(OPTION.abort)), [ack]);
  assert.ok(await raw.closed());
});

test('the old export name option gets size and flags, with and without zeroes', async (t) => {
  const { client } = await start(t, [{ name: 'disk', device: memory() }]);
  for (const [flags, zeroBytes] of [
    [0, 124],
    [3, 0],
  ] as const) {
    const raw = client();
    await raw.greet(flags);
    raw.write(protocol.encodeOption(OPTION.exportName, Buffer.from('disk')));
    const reply = protocol.decodeExportNameReply(await raw.take(10));
    assert.equal(reply.lengthBytes, 4 * MIB);
    assert.equal(reply.transmissionFlags & TRANSMISSION_FLAG.sendDontFragment, 0);
    await raw.take(zeroBytes);
    assert.equal((await raw.read(0, 512)).data.length, 512);
  }
  const unknown = client();
  await unknown.greet();
  unknown.write(protocol.encodeOption(OPTION.exportName, Buffer.from('other')));
  assert.ok(await unknown.closed());
});

test('a client that breaks the protocol is dropped, and only that one', async (t) => {
  const { client } = await start(t, [{ name: '', device: memory() }]);
  const good = client();
  await good.begin();
  const unknownFlags = client();
  await unknownFlags.greet(1 << 7);
  assert.ok(await unknownFlags.closed());
  const badMagic = client();
  await badMagic.greet();
  badMagic.write(Buffer.alloc(16));
  assert.ok(await badMagic.closed());
  const badRequest = client();
  await badRequest.begin();
  badRequest.write(Buffer.alloc(28));
  assert.ok(await badRequest.closed());
  const endless = client();
  await endless.begin();
  endless.send({ type: COMMAND.write, lengthBytes: 0xffffffff });
  assert.ok(await endless.closed());
  assert.equal((await good.read(0, 512)).data.length, 512);
});

test('a disconnect answers what came before it', async (t) => {
  const { server, client } = await start(t, [{ name: '', device: memory(), readOnly: false }]);
  const raw = client();
  await raw.begin({ mode: 'structured' });
  const cookies = new Set<number>();
  for (let index = 0; index < 20; index += 1) {
    cookies.add(raw.send({ type: COMMAND.write, offsetBytes: index * 64 * KIB }, Buffer.alloc(64 * KIB)));
  }
  raw.send({ type: COMMAND.disconnect });
  while (cookies.size > 0) cookies.delete((await raw.reply()).cookie);
  assert.ok(await raw.closed());
  await until('no connection', () => server.connections === 0);
});

test('of those that have asked for nothing the one that stands still goes for who comes, and a handshake that moves stays', async (t) => {
  const clock = new FakeClock();
  const { server, client } = await start(t, [{ name: '', device: memory() }], {
    clock,
    limits: { handshakesMax: 3 },
  });
  const begun = client();
  await begun.begin();
  const silent = client();
  await silent.take(protocol.GREETING_BYTES);
  const moving = client();
  await moving.greet();
  await moving.option(OPTION.list);
  const next = client();
  await until('a newcomer to wait', () => server.waiting === 1);
  clock.advance(700);
  await moving.option(OPTION.list);
  assert.equal(server.connections, 3, 'nobody had the time to show anything');
  clock.advance(120);
  assert.ok(await silent.closed());
  await next.begin();
  // Of those with the same to show, and none of them moves.
  clock.advance(1_000);
  await next.read(0, 512);
  const third = client();
  await third.begin();
  const fourth = client();
  await until('a newcomer to wait', () => server.waiting === 1);
  clock.advance(20);
  assert.ok(await moving.closed());
  await fourth.begin();
  assert.equal((await begun.read(0, 512)).data.length, 512);
  assert.equal((await next.read(0, 512)).data.length, 512);
});

test('the time of a handshake is limited, and who does not take its answers is not read from', async (t) => {
  const clock = new FakeClock();
  const description = 'd'.repeat(4000);
  const names = Array.from({ length: 16 }, (_, index) => `disk-${index}`);
  const shares = names.map((name) => ({ name, device: memory(), description }));
  const clients = new ClientBook(clock);
  const { server, client } = await start(t, shares, { clock, clients });
  const greedy = client();
  await greedy.greet();
  greedy.pause();
  // 16 MiB of answers, of which the kernel takes some.
  const options = 255;
  greedy.write(Buffer.concat(Array.from({ length: options }, () => protocol.encodeOption(OPTION.list))));
  await until('answers that nobody takes', () => clients.heldBytes > 64 * KIB);
  assert.ok(clients.heldBytes < 256 * KIB, `${clients.heldBytes} bytes`);
  greedy.resume();
  for (let asked = 0; asked < options; asked += 1) {
    for (let told = 0; told <= names.length; told += 1) {
      const { dataBytes } = protocol.decodeOptionReplyHeader(await greedy.take(20));
      await greedy.take(dataBytes);
    }
  }
  await until('nothing to be held any more', () => clients.heldBytes === 0);
  clock.advance(15_001);
  assert.ok(await greedy.closed());
  await until('no connection', () => server.connections === 0);
});

test('of a crowd that asks once and sits there one goes for who asks, after a second; a disk that was in use stays', async (t) => {
  const clock = new FakeClock();
  const { server, client } = await start(t, [{ name: '', device: memory() }], {
    clock,
    limits: { connectionsMax: 4 },
  });
  const disk = client();
  await disk.begin();
  for (let turn = 0; turn < 1024; turn += 1) await disk.read(0, 512);
  // Longer idle than any of the crowd.
  clock.advance(500);
  let crowd: RawNbdClient[] = [];
  for (let index = 0; index < 3; index += 1) {
    const raw = client();
    await raw.begin();
    await raw.read(0, 512);
    crowd.push(raw);
  }
  for (let round = 0; round < 4; round += 1) {
    clock.advance(1_001);
    const comer = client();
    await comer.begin();
    const reading = comer.read(0, 512);
    await until('a client to wait', () => server.waiting === 1);
    clock.advance(20);
    await reading;
    assert.ok(await crowd[0]!.closed());
    crowd = [...crowd.slice(1), comer];
  }
  assert.equal((await disk.read(0, 512)).data.length, 512);
});

test('where all places belong to clients that work, who asks first waits for so long as a handshake may take', async (t) => {
  const clock = new FakeClock();
  const { server, client } = await start(t, [{ name: '', device: memory() }], {
    clock,
    limits: { connectionsMax: 2, handshakeTimeoutMs: 2_000 },
  });
  const working = [client(), client()];
  for (const raw of working) await raw.begin();
  const work = async () => {
    for (const raw of working) assert.equal((await raw.read(0, 512)).data.length, 512);
  };
  await work();
  const late = client();
  await late.begin();
  late.send({ type: COMMAND.read, lengthBytes: 512 });
  await until('a client to wait', () => server.waiting === 1);
  for (let turn = 0; turn < 4; turn += 1) {
    clock.advance(499);
    await work();
  }
  assert.equal(server.connections, 3);
  clock.advance(20);
  assert.ok(await late.closed());
  await work();
});

test('a peer that stalls within a request or does not take its answers is dropped; an idle one is not', async (t) => {
  const clock = new FakeClock();
  const { client } = await start(t, [{ name: '', device: memory(8 * MIB), readOnly: false }], {
    clock,
    clients: new ClientBook(clock, { stallTimeoutMs: 1000 }),
  });
  const idle = client();
  await idle.begin();
  const halfway = client();
  await halfway.begin();
  halfway.send({ type: COMMAND.write, lengthBytes: 64 * KIB });
  halfway.write(Buffer.alloc(1000));
  await idle.read(0, 512);
  await systemClock.sleep(50);
  clock.advance(1001);
  clock.advance(1001);
  assert.ok(await halfway.closed());
  assert.equal((await idle.read(0, 512)).data.length, 512);
});

test('memory stays bounded when a peer asks and does not take', async (t) => {
  let readBytes = 0;
  const inner = memory(64 * MIB);
  const device: BlockDevice = {
    lengthBytes: inner.lengthBytes,
    blockBytes: 512,
    writable: false,
    async read(_offset, into) {
      readBytes += into.length;
    },
    write: () => assert.fail(),
    flush: async () => {},
    discard: () => assert.fail(),
    writeZeroes: () => assert.fail(),
    close: async () => {},
  };
  const { server, client } = await start(t, [{ name: '', device }], {
    clients: new ClientBook(systemClock, { connectionBytesMax: 4 * MIB, sharedBytesMax: 6 * MIB }),
    limits: { requestBytesMax: 2 * MIB },
  });
  const { address } = server;
  assert.ok('port' in address);
  const sockets = Array.from({ length: 4 }, () => connect(address.port, address.host));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
  });
  for (const socket of sockets) {
    const raw = new RawNbdClient(socket);
    await raw.begin();
    socket.pause();
    for (let index = 0; index < 100; index += 1) raw.send({ type: COMMAND.read, lengthBytes: MIB });
  }
  await systemClock.sleep(300);
  // 400 MiB are asked for. What went into the buffers of the kernel is ours no more.
  assert.ok(readBytes < 6 * MIB + sockets.length * 9 * MIB, `${readBytes}`);
  for (const socket of sockets) socket.destroy();
  const live = client();
  await live.begin();
  assert.equal((await live.read(0, MIB)).data.length, MIB);
});

test('peers that hold the buffers of the server do not hold up others', async (t) => {
  const { server, client } = await start(t, [{ name: '', device: memory(), readOnly: false }], {
    clients: new ClientBook(systemClock, { sharedBytesMax: 2 * MIB }),
    limits: { requestBytesMax: 2 * MIB },
  });
  const greedy = [client(), client(), client()];
  for (const raw of greedy) {
    await raw.begin();
    raw.send({ type: COMMAND.write, lengthBytes: 2 * MIB });
    raw.write(Buffer.alloc(512));
  }
  const live = client();
  await live.begin();
  for (let turn = 0; turn < 3; turn += 1) {
    const data = randomBytes(MIB);
    assert.equal((await live.call({ type: COMMAND.write }, data)).error, 0);
    assert.ok((await live.read(0, MIB)).data.equals(data));
  }
  // And a request that has to wait for them goes on when they do.
  const waiting = live.call({ type: COMMAND.write }, Buffer.alloc(2 * MIB, 9));
  for (const raw of greedy) raw.write(Buffer.alloc(2 * MIB - 512));
  for (const raw of greedy) assert.equal((await raw.reply()).error, 0);
  assert.equal((await waiting).error, 0);
  assert.equal(server.connections, 4);
});

test('closing waits for the calls of the device, and an export that is removed takes its connections along', async (t) => {
  const gate = Promise.withResolvers<void>();
  const started = Promise.withResolvers<void>();
  const inner = memory();
  const device: BlockDevice = {
    lengthBytes: inner.lengthBytes,
    blockBytes: 512,
    writable: true,
    read: (offset, into) => inner.read(offset, into),
    write: async () => {
      started.resolve();
      await gate.promise;
    },
    flush: async () => {},
    discard: async () => {},
    writeZeroes: async () => {},
    close: async () => {},
  };
  const { server, client } = await start(t, [
    { name: 'slow', device, readOnly: false },
    { name: 'other', device: memory() },
  ]);
  const slow = client();
  await slow.begin({ exportName: 'slow' });
  const other = client();
  await other.begin({ exportName: 'other' });
  slow.send({ type: COMMAND.write }, Buffer.alloc(512));
  await started.promise;
  let removed = false;
  const removal = server.removeExport('slow').then(() => {
    removed = true;
  });
  assert.ok(await slow.closed());
  await systemClock.sleep(20);
  assert.equal(removed, false);
  assert.equal((await other.read(0, 512)).data.length, 512);
  gate.resolve();
  await removal;
  assert.equal(removed, true);
});

test("a unix socket is the owner's, replaces one of the dead, and is not taken from the living", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'gw-nbd-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'socket');
  const { server, client } = await start(t, [{ name: '', device: memory() }], { address: { path } });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  const raw = client();
  await raw.begin();
  await assert.rejects(start(t, [], { address: { path } }), { code: 'NBD_LISTEN_FAILED' });
  await server.close();
  assert.ok(!existsSync(path));
});

test('names of exports are unique and fit the protocol', async (t) => {
  const { server } = await start(t, [{ name: 'a', device: memory() }]);
  assert.throws(() => server.addExport({ name: 'a', device: memory() }), { code: 'NBD_EXPORT_EXISTS' });
  assert.throws(() => server.addExport({ name: 'x'.repeat(4097), device: memory() }), {
    code: 'NBD_BAD_EXPORT_NAME',
  });
});

test('a device that is sealed under its clients refuses their writes, and tells the next client', async (t) => {
  const device = memory();
  const { client } = await start(t, [{ name: '', device, readOnly: false }]);
  const raw = client();
  await raw.begin();
  const write = (byte: number) => raw.call({ type: COMMAND.write, offsetBytes: 0 }, Buffer.alloc(512, byte));
  assert.equal((await write(1)).error, 0);
  (device as { writable: boolean }).writable = false;
  assert.equal((await write(2)).error, NBD_ERROR.EPERM);
  assert.equal((await raw.read(0, 512)).data[0], 1);
  const next = client();
  await next.greet();
  const replies = await next.option(OPTION.go, protocol.encodeInfoRequest('', []));
  const info = protocol.decodeInfo(replies[0]!.data);
  assert.ok(info?.type === 'export' && info.transmissionFlags & TRANSMISSION_FLAG.readOnly);
});

test('a path that is too long for a unix socket is refused with its length', async () => {
  const address = { path: `/tmp/${'x'.repeat(103)}` };
  await assert.rejects(NbdServer.listen({ address, clock: systemClock, logger: silentLogger }), (error) =>
    isGodwitError(error, 'NBD_PATH_TOO_LONG'),
  );
});

test('bytes in the clear behind STARTTLS end the connection', { skip: requires('openssl') }, async (t) => {
  const { certificate, key } = readPems(new TestAuthority(scratchDir(t)).issue('server'));
  const tls = { certificate, privateKey: key };
  const { client } = await start(t, [{ name: '', device: memory() }], { tls });
  const go = protocol.encodeOption(OPTION.go, protocol.encodeInfoRequest('', []));
  const startTls = protocol.encodeOption(OPTION.startTls);
  // In one piece with the option, and after its answer.
  for (const pieces of [[Buffer.concat([startTls, go])], [startTls, go]]) {
    const raw = client();
    await raw.greet();
    raw.write(pieces[0]!);
    const answer = protocol.decodeOptionReplyHeader(await raw.take(protocol.OPTION_REPLY_HEADER_BYTES));
    assert.equal(answer.type, OPTION_REPLY.ack);
    if (pieces.length > 1) raw.write(pieces[1]!);
    // TLS may still send an alert.
    await assert.rejects(raw.take(1024), /closed/);
  }
});

test('a device that is slow is not the debt of its client', async (t) => {
  for (const { count, lengthBytes } of [
    { count: 40, lengthBytes: MIB },
    { count: 300, lengthBytes: 4 * KIB },
  ]) {
    const clock = new FakeClock();
    const device = new HeldDevice(memory(8 * MIB));
    const { server, client } = await start(t, [{ name: '', device }], { clock });
    const raw = client();
    await raw.begin();
    for (let index = 0; index < count; index += 1) raw.send({ type: COMMAND.read, lengthBytes });
    // More than the server takes at once: the rest waits for room.
    await until('the device to be asked', () => device.asked >= 12);
    for (let turn = 0; turn < 34; turn += 1) {
      clock.advance(5_000);
      await systemClock.sleep(0);
    }
    assert.equal(server.connections, 1);
    device.release();
    for (let index = 0; index < count; index += 1) assert.equal((await raw.reply()).error, 0);
  }
});

test('peers that drip do not cost a stranger his large request', async (t) => {
  const clock = new FakeClock();
  const device = memory(64 * MIB);
  const deviceRead = device.read.bind(device);
  let begun = false;
  device.read = (offset, into) => {
    begun = true;
    return deviceRead(offset, into);
  };
  const { client } = await start(t, [{ name: '', device, readOnly: false }], { clock });
  const drippers = Array.from({ length: 14 }, () => client());
  for (const raw of drippers) {
    await raw.begin();
    raw.send({ type: COMMAND.write, lengthBytes: 9 * MIB });
    raw.write(Buffer.alloc(MIB));
  }
  const stranger = client();
  await stranger.begin();
  const read = stranger.read(0, 32 * MIB);
  // Each sends a byte now and then, for as long as it takes.
  while (!begun) {
    for (const raw of drippers) raw.write(Buffer.alloc(1));
    clock.advance(500);
    await systemClock.sleep(2);
  }
  assert.equal((await read).data.length, 32 * MIB);
});

test('a buffer of a request that is cut off goes to nobody else before it is whole or gone', async (t) => {
  const pool = new BufferPool(32 * MIB, { checked: true });
  const random = seededRandom(12);
  const device = memory(8 * MIB);
  const { server, client } = await start(t, [{ name: '', device, readOnly: false }], { pool });
  const live = client();
  await live.begin();
  for (let round = 0; round < 60; round += 1) {
    const address = server.address;
    assert.ok('port' in address);
    const socket = connect(address.port, address.host);
    const cut = new RawNbdClient(socket);
    await cut.begin();
    const lengthBytes = (1 + random.below(8)) * 64 * KIB;
    if (random.below(3) === 0) {
      // It asks, and goes without its answer.
      for (let index = 0; index < 8; index += 1) cut.send({ type: COMMAND.read, lengthBytes });
    } else {
      cut.send({ type: COMMAND.write, offsetBytes: 4 * MIB, lengthBytes });
      cut.write(Buffer.alloc(1 + random.below(lengthBytes - 1), 0xaa));
    }
    if (random.below(2) === 0) await systemClock.sleep(1);
    // What is written by others meanwhile is theirs, whatever still arrives.
    const data = Buffer.from(random.bytes(lengthBytes));
    const writing = live.call({ type: COMMAND.write, offsetBytes: 0 }, data);
    socket.destroy();
    assert.equal((await writing).error, 0);
    assert.ok((await live.read(0, lengthBytes)).data.equals(data), `round ${round}`);
    pool.check();
  }
  await until('one connection', () => server.connections === 1);
  pool.check();
});

test('the status of 64 TiB is told in every mode', async (t) => {
  const TIB = 2 ** 40;
  const inner = memory();
  const lengthBytes = 64 * TIB;
  // Data at the very end, and in the middle.
  const extents: Extent[] = [
    { offsetBytes: 0, lengthBytes: 32 * TIB, kind: 'hole' },
    { offsetBytes: 32 * TIB, lengthBytes: MIB, kind: 'data' },
    { offsetBytes: 32 * TIB + MIB, lengthBytes: 32 * TIB - 2 * MIB, kind: 'hole' },
    { offsetBytes: 64 * TIB - MIB, lengthBytes: MIB, kind: 'data' },
  ];
  const device: BlockDevice = {
    lengthBytes,
    blockBytes: 512,
    writable: false,
    read: async (_offset, into) => void into.fill(0),
    write: () => assert.fail(),
    flush: async () => {},
    discard: () => assert.fail(),
    writeZeroes: () => assert.fail(),
    close: () => inner.close(),
    async extents(offset, length, limit) {
      const end = offset + length;
      return extents
        .filter((one) => one.offsetBytes < end && one.offsetBytes + one.lengthBytes > offset)
        .slice(0, limit)
        .map((one) => {
          const from = Math.max(one.offsetBytes, offset);
          const to = Math.min(one.offsetBytes + one.lengthBytes, end);
          return { offsetBytes: from, lengthBytes: to - from, kind: one.kind };
        });
    },
  };
  const { client } = await start(t, [{ name: '', device }]);
  const status = async (mode: 'structured' | 'extended', offsetBytes: number, length: number) => {
    const raw = client();
    await raw.begin({ mode, contexts: ['base:allocation'] });
    const { chunks, error } = await raw.call({ type: COMMAND.blockStatus, offsetBytes, lengthBytes: length });
    assert.equal(error, 0);
    const [{ payload } = assert.fail()] = chunks;
    const found: [lengthBytes: number, state: number][] = [];
    // Context and, extended, the count; then pairs of 32 or 64 bits (doc/proto.md,
    // NBD_REPLY_TYPE_BLOCK_STATUS).
    if (mode === 'structured') {
      for (let at = 4; at < payload.length; at += 8)
        found.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
    } else {
      for (let at = 8; at < payload.length; at += 16)
        found.push([Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))]);
    }
    return found;
  };
  assert.deepEqual(await status('extended', 0, lengthBytes), [
    [32 * TIB, 3],
    [MIB, 0],
    [32 * TIB - 2 * MIB, 3],
    [MIB, 0],
  ]);
  const most = 2 ** 32 - 512;
  assert.deepEqual(await status('structured', 0, most), [[most, 3]]);
  assert.deepEqual(await status('structured', lengthBytes - most, most), [
    [most - MIB, 3],
    [MIB, 0],
  ]);
});

test('a flush over one connection is one for all', async (t) => {
  const power = new PowerSupply(seededRandom(5));
  const supply = new FaultDevice({ lengthBytes: 4 * MIB, power });
  const { client } = await start(t, [{ name: '', device: supply, readOnly: false }]);
  const raws = Array.from({ length: 4 }, () => client());
  for (const raw of raws) await raw.begin();
  const written = raws.map(() => randomBytes(64 * KIB));
  for (const [index, raw] of raws.entries()) {
    const call = { type: COMMAND.write, offsetBytes: index * 64 * KIB };
    assert.equal((await raw.call(call, written[index]!)).error, 0);
  }
  assert.equal((await raws[3]!.call({ type: COMMAND.flush, lengthBytes: 0 })).error, 0);
  power.cut();
  power.restore();
  for (const [index, bytes] of written.entries()) {
    const found = Buffer.alloc(bytes.length);
    await supply.read(index * 64 * KIB, found);
    assert.ok(found.equals(bytes), `what connection ${index} wrote`);
  }
});

test('what a client had sent and nobody has read is not done after another one has begun', async (t) => {
  const device = new MemoryDevice({ lengthBytes: 4 * MIB });
  const gate = Promise.withResolvers<void>();
  t.after(() => gate.resolve());
  let atDevice = 0;
  const write = device.write.bind(device);
  const slow = Object.assign(device, {
    async write(...words: Parameters<typeof write>) {
      if (words[0] < MIB) {
        atDevice += 1;
        await gate.promise;
      }
      return write(...words);
    },
  });
  const { server, client } = await start(t, [{ name: '', device: slow, readOnly: false }]);
  const old = client();
  await old.begin();
  // More than a connection may have at a time: the last one waits in the socket, or before the parser.
  const requestsMax = 128;
  for (let index = 0; index < requestsMax; index += 1) {
    old.send({ type: COMMAND.write, offsetBytes: index * 4096, lengthBytes: 4096 });
    old.write(Buffer.alloc(4096, 'o'));
  }
  old.send({ type: COMMAND.write, offsetBytes: 2 * MIB, lengthBytes: 4096 });
  old.write(Buffer.alloc(4096, 'o'));
  await until('as many as it may have', () => atDevice === requestsMax);
  old.destroy();
  const next = client();
  await next.begin();
  const fresh = Buffer.alloc(4096, 'n');
  assert.equal((await next.call({ type: COMMAND.write, offsetBytes: 2 * MIB }, fresh)).error, 0);
  gate.resolve();
  await until('the old one to be over', () => server.connections === 1);
  assert.ok((await next.read(2 * MIB, 4096)).data.equals(fresh));
  assert.ok((await next.read(0, 4096)).data.equals(Buffer.alloc(4096, 'o')), 'what the device had goes on');
});

test('many small requests of one client leave the others their turns of the loop', async (t) => {
  const { client } = await start(t, [
    { name: '', device: new MemoryDevice({ lengthBytes: MIB }), readOnly: false },
  ]);
  const requests = 20_000;
  const kinds = {
    done: { type: COMMAND.flush, offsetBytes: 0, lengthBytes: 0 },
    refused: { type: COMMAND.read, offsetBytes: 2 * MIB, lengthBytes: 512 },
    skipped: { type: COMMAND.write, offsetBytes: 2 * MIB, lengthBytes: 16 },
  };
  for (const [kind, request] of Object.entries(kinds)) {
    const raw = client();
    await raw.begin();
    const bytes = Buffer.alloc(28 + (request.type === COMMAND.write ? request.lengthBytes : 0));
    protocol.encodeRequest(bytes, 0, false, { flags: 0, cookieHigh: 1, cookieLow: 1, ...request });
    const turns = await turnsOf(async () => {
      raw.write(Buffer.alloc(requests * bytes.length, bytes));
      await raw.take(requests * protocol.SIMPLE_REPLY_BYTES);
    });
    t.diagnostic(`${requests} requests (${kind}) in ${turns} turns`);
    assert.ok(turns >= requests / 256, `${requests} requests (${kind}) in ${turns} turns`);
  }
});

for (const writesNow of [false, true]) {
  test(`a change that a connection left behind at the device comes before what others change there${writesNow ? ', also at once' : ''}`, async (t) => {
    const device = memory();
    const { write, discard, writeZeroes } = device;
    const gates: PromiseWithResolvers<void>[] = [];
    /** The first change of each MiB hangs. */
    const hung = new Set<number>();
    const pass = async (offsetBytes: number): Promise<void> => {
      const region = Math.floor(offsetBytes / MIB);
      if (hung.has(region)) return;
      hung.add(region);
      const gate = Promise.withResolvers<void>();
      gates.push(gate);
      await gate.promise;
    };
    t.after(() => {
      for (const gate of gates) gate.resolve();
    });
    const slow = Object.assign(device, {
      write: async (...words: Parameters<typeof write>) =>
        pass(words[0]).then(() => write.apply(device, words)),
      discard: async (...words: [number, number]) => pass(words[0]).then(() => discard.apply(device, words)),
      writeZeroes: async (...words: [number, number]) =>
        pass(words[0]).then(() => writeZeroes.apply(device, words)),
      writeNow: (offsetBytes: number, from: Uint8Array) => {
        void write.call(device, offsetBytes, from);
        return true;
      },
    });
    const { client } = await start(t, [{ name: '', device: slow, readOnly: false, writesNow }]);
    const reader = client();
    await reader.begin();
    for (const [region, type] of [COMMAND.write, COMMAND.trim, COMMAND.writeZeroes].entries()) {
      const offsetBytes = region * MIB;
      const before = Buffer.alloc(4096, 'o');
      const old = client();
      await old.begin();
      const call = { type, offsetBytes, lengthBytes: 4096, flags: COMMAND_FLAG.fua };
      old.send(call);
      if (type === COMMAND.write) old.write(before);
      await until('it to be at the device', () => gates.length === region + 1);
      old.destroy();
      const live = client();
      await live.begin();
      // It has its place then.
      assert.ok((await live.read(offsetBytes, 4096)).data.equals(Buffer.alloc(4096)));
      let isDone = false;
      const writing = live
        .call({ type: COMMAND.write, offsetBytes: offsetBytes + 512 }, Buffer.alloc(1024, 'n'))
        .then(({ error }) => {
          isDone = true;
          return error;
        });
      for (let times = 0; times < 3; times += 1)
        assert.ok((await reader.read(offsetBytes, 4096)).data.equals(Buffer.alloc(4096)));
      assert.equal(isDone, false);
      gates[region]!.resolve();
      assert.equal(await writing, 0);
      const expected = type === COMMAND.write ? Buffer.from(before) : Buffer.alloc(4096);
      expected.fill('n', 512, 512 + 1024);
      assert.ok((await live.read(offsetBytes, 4096)).data.equals(expected), `command ${type}`);
    }
  });
}
