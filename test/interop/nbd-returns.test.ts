import assert from 'node:assert/strict';
import { appendFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import type { NbdClient } from '../../src/nbd/client.ts';
import type { NbdClientOptions } from '../../src/nbd/client-dialect.ts';
import { startNbdClient } from '../support/nbd-pair.ts';
import { type NbdProgram, startNbdkit } from '../support/nbd-programs.ts';
import { until } from '../support/patience.ts';
import { reached } from '../support/remote-state.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { readPems, TestAuthority } from '../support/test-authority.ts';

/*
 * A server (nbdkit) that comes back able to do less than it was, or more, while requests wait that were made
 * for what it was: none is sent that it does not take, and what was promised is kept or refused by name. In
 * the clear and over TLS.
 */

const KIB = 1024;
const MIB = 1024 * KIB;
const LENGTH_BYTES = 4 * MIB;

/** What it does, and writes down. $3 is the count, $4 the offset, $5 the flags. */
const PLUGIN = (file: string, log: string): string[] => [
  `get_size=stat -c %s ${file}`,
  `pread=dd if=${file} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none`,
  `pwrite=echo "write $4 $3 $5" >> ${log}; dd of=${file} oflag=seek_bytes seek=$4 conv=notrunc status=none`,
  `flush=echo flush >> ${log}`,
  `trim=echo "trim $4 $3" >> ${log}`,
  `zero=echo "zero $4 $3" >> ${log}; fallocate -z -o $4 -l $3 ${file}`,
  'can_write=exit 0',
  'can_trim=exit 0',
  'can_zero=exit 0',
  'can_fua=echo native',
  'can_multi_conn=exit 0',
];

class Returning {
  readonly client: NbdClient;
  readonly #t: TestContext;
  readonly #dir: string;
  readonly #tls: string[];
  #server: NbdProgram;

  private constructor(t: TestContext, dir: string, tls: string[], server: NbdProgram, client: NbdClient) {
    this.#t = t;
    this.#dir = dir;
    this.#tls = tls;
    this.#server = server;
    this.client = client;
  }

  static async start(
    t: TestContext,
    transport: string,
    options: Partial<NbdClientOptions> & { first?: string[] } = {},
  ): Promise<Returning> {
    const dir = scratchDir(t);
    writeFileSync(join(dir, 'disk'), Buffer.alloc(LENGTH_BYTES, 7));
    writeFileSync(join(dir, 'log'), '');
    const { first = [], ...given } = options;
    let tls: string[] = [];
    let pems: Partial<NbdClientOptions> = {};
    if (transport === 'TLS') {
      const authority = new TestAuthority(dir);
      authority.issue('server');
      tls = ['--tls=require', `--tls-certificates=${dir}`, '--tls-verify-peer'];
      pems = { tls: { mode: 'require', ...readPems(authority.issue('client')) } };
    }
    const server = await Returning.#serve(t, dir, tls, first);
    const all = { exportName: '', ...pems, ...given };
    return new Returning(t, dir, tls, server, await startNbdClient(t, server, all));
  }

  /** What is among `words` later counts. */
  static #serve(t: TestContext, dir: string, tls: string[], words: string[]): Promise<NbdProgram> {
    const filters = words.filter((word) => word.startsWith('-'));
    const parameters = words.filter((word) => !word.startsWith('-'));
    const keys = parameters.map((word) => word.split('=')[0]);
    const plugin = PLUGIN(join(dir, 'disk'), join(dir, 'log')).filter(
      (word) => !keys.includes(word.split('=')[0]),
    );
    return startNbdkit(t, join(dir, 's'), ...tls, ...filters, 'eval', ...plugin, ...parameters);
  }

  async leaves(): Promise<void> {
    await this.#server.stop('SIGKILL');
    await until('the client to miss it', () => this.client.state === 'lost');
  }

  async comesBack(...words: string[]): Promise<void> {
    this.#server = await Returning.#serve(this.#t, this.#dir, this.#tls, words);
  }

  /** What it was asked to do since the last time. */
  takeLog(): string[] {
    const file = join(this.#dir, 'log');
    const lines = readFileSync(file, 'utf8').split('\n').filter(Boolean);
    truncateSync(file);
    appendFileSync(file, '');
    return lines.map((line) => line.trim());
  }

  bytes(offsetBytes: number, lengthBytes: number): Buffer {
    return readFileSync(join(this.#dir, 'disk')).subarray(offsetBytes, offsetBytes + lengthBytes);
  }
}

const withoutFlush = (error: unknown): boolean =>
  isGodwitError(error, 'NBD_EXPORT_CHANGED') && error.values.missing === 'FLUSH';

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('nbdkit', 'fallocate', ...(transport === 'TLS' ? ['openssl'] : []));
  const over = transport === 'TLS' ? 'over TLS: ' : '';
  const start = (t: TestContext, options?: Parameters<typeof Returning.start>[2]): Promise<Returning> =>
    Returning.start(t, transport, options);

  test(`${over}a server that comes back without FUA gets writes and flushes`, { skip }, async (t) => {
    const disk = await start(t);
    const { client } = disk;
    await client.write(0, Buffer.alloc(4096, 1), { fua: true });
    assert.deepEqual(disk.takeLog(), ['write 0 4096 fua']);
    await disk.leaves();
    const waiting = client.write(8192, Buffer.alloc(4096, 2), { fua: true });
    await disk.comesBack('can_fua=echo none');
    await waiting;
    assert.deepEqual(disk.takeLog(), ['write 8192 4096', 'flush']);
    await client.write(0, Buffer.alloc(4096, 3), { fua: true });
    assert.deepEqual(disk.takeLog(), ['write 0 4096', 'flush']);
  });

  test(`${over}a server that comes back without TRIM and WRITE_ZEROES gets neither, and zeros are zeros`, {
    skip,
  }, async (t) => {
    const disk = await start(t);
    const { client } = disk;
    await client.trim(MIB, MIB);
    await client.discard(2 * MIB, 4096);
    assert.deepEqual(disk.takeLog(), [`trim ${MIB} ${MIB}`, `zero ${2 * MIB} 4096`]);
    await disk.leaves();
    const waiting = [client.trim(0, MIB), client.discard(MIB, 8192), client.writeZeroes(3 * MIB, 4096)];
    await disk.comesBack('--filter=nozero', 'can_trim=exit 3');
    await Promise.all(waiting);
    await client.trim(0, MIB);
    await client.discard(0, 4096);
    const log = disk.takeLog();
    assert.deepEqual(log.sort(), [`write ${MIB} 8192`, `write ${3 * MIB} 4096`, 'write 0 4096'].sort());
    for (const [at, bytes] of [
      [0, 4096],
      [MIB, 8192],
      [3 * MIB, 4096],
    ] as const)
      assert.ok(disk.bytes(at, bytes).equals(Buffer.alloc(bytes)));
  });

  test(`${over}a server that comes back without FLUSH is refused by name, and so is all that waits`, {
    skip,
  }, async (t) => {
    const disk = await start(t);
    const { client } = disk;
    await client.write(0, Buffer.alloc(4096, 1));
    await disk.leaves();
    disk.takeLog();
    const waiting = [client.flush(), client.write(8192, Buffer.alloc(4096, 2))].map((each) =>
      assert.rejects(each, withoutFlush),
    );
    await disk.comesBack('can_flush=exit 3');
    await Promise.all(waiting);
    assert.equal(client.state, 'failed');
    assert.deepEqual(disk.takeLog(), []);
  });

  test(`${over}who only reads goes on with a server without FLUSH`, { skip }, async (t) => {
    const disk = await start(t, { readOnly: true });
    await disk.leaves();
    const into = Buffer.alloc(4096);
    const reading = disk.client.read(4096, into);
    await disk.comesBack('can_flush=exit 3');
    await reading;
    assert.ok(into.equals(Buffer.alloc(4096, 7)));
  });

  test(`${over}a server that comes back with FLUSH is flushed from then on`, { skip }, async (t) => {
    const disk = await start(t, { first: ['can_flush=exit 3', 'can_fua=echo none'] });
    const { client } = disk;
    await client.flush();
    await disk.leaves();
    await disk.comesBack();
    await reached(client, 'connected');
    await client.write(0, Buffer.alloc(4096, 1));
    await client.flush();
    assert.deepEqual(disk.takeLog(), ['write 0 4096', 'flush']);
  });

  test(`${over}a server that comes back for one connection at a time has one, and again several`, {
    skip,
  }, async (t) => {
    const disk = await start(t, { connections: 3 });
    const { client } = disk;
    await until('three connections', () => client.statistics.connections === 3);
    await disk.leaves();
    const waiting = Array.from({ length: 12 }, (_, index) =>
      client.write(index * 4096, Buffer.alloc(4096, 1)),
    );
    await disk.comesBack('--filter=multi-conn', 'multi-conn-mode=disable');
    await Promise.all(waiting);
    await client.flush();
    assert.equal(client.statistics.connections, 1);
    assert.equal(disk.takeLog().at(-1), 'flush');
    await disk.leaves();
    await disk.comesBack();
    await until('three connections', () => client.statistics.connections === 3);
    await client.read(0, Buffer.alloc(4096));
  });

  test(`${over}a server that comes back for shorter requests gets shorter ones`, { skip }, async (t) => {
    const disk = await start(t);
    const { client } = disk;
    await disk.leaves();
    const data = Buffer.alloc(MIB);
    for (let at = 0; at < MIB; at += 4) data.writeUInt32BE(at, at);
    const into = Buffer.alloc(MIB);
    const waiting = [client.write(0, data), client.read(2 * MIB, into)];
    await disk.comesBack(
      '--filter=blocksize-policy',
      `blocksize-maximum=${64 * KIB}`,
      'blocksize-error-policy=error',
    );
    await Promise.all(waiting);
    assert.ok(disk.bytes(0, MIB).equals(data));
    assert.ok(into.equals(Buffer.alloc(MIB, 7)));
    const lengths = new Set(disk.takeLog().map((line) => line.split(' ')[2]));
    assert.deepEqual([...lengths], [`${64 * KIB}`]);
  });

  test(`${over}a server that comes back and tells no holes has none`, { skip }, async (t) => {
    const disk = await start(t, { readOnly: true });
    const { client } = disk;
    assert.notEqual(client.export?.allocationContextId, null);
    await disk.leaves();
    const waiting = client.extents(0, LENGTH_BYTES, 8);
    await disk.comesBack('--no-sr');
    const all = [{ offsetBytes: 0, lengthBytes: LENGTH_BYTES, kind: 'data' }];
    assert.deepEqual(await waiting, all);
    assert.deepEqual(await client.extents(0, LENGTH_BYTES, 8), all);
  });

  test(`${over}a server that comes back read-only, or smaller, is refused by name`, { skip }, async (t) => {
    for (const words of [['-r'], ['--filter=truncate', `truncate=${2 * MIB}`]]) {
      const disk = await start(t);
      await disk.leaves();
      disk.takeLog();
      const waiting = assert.rejects(disk.client.write(0, Buffer.alloc(4096, 2)), (error) =>
        isGodwitError(error, 'NBD_EXPORT_CHANGED'),
      );
      await disk.comesBack(...words);
      await waiting;
      assert.deepEqual(disk.takeLog(), []);
    }
  });
}
