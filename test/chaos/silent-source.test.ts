import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { startNbdClient } from '../support/nbd-pair.ts';
import { NotYet, until } from '../support/patience.ts';
import { assertSameContent, moveRawVolume, Running } from '../support/raw-clone.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { unmount } from '../support/unmount.ts';
import { digestFiles, LAB_NEEDS, moveVolume, tool, VolumeLab, writeFiles } from '../support/volume-lab.ts';

/**
 * While the source says nothing, what needs it waits, and nothing else does: whatever number and mix of
 * requests wait. Everything that needs no source is asked for meanwhile, also of a server that was killed,
 * before the source comes back.
 */
const MIB = 2 ** 20;
const KIB = 1024;
const LENGTH_BYTES = 104 * MIB;
/** Written by the guest, so it is here. */
const HERE_MIB = 4;
/** Discarded whole, and written whole, so they are here too. */
const GONE_AT_MIB = 20;
const WHOLE_AT_MIB = 24;
const COLD_READS_FROM_MIB = 32;
const PART_WRITES_FROM_MIB = 80;
const CUTS_FROM_MIB = 90;
/**
 * Of 128 requests, which is all that the kernel lets into a loop device (docs/clone.md): where they all wait,
 * nothing else comes as far as the server. Larger reads would be split wherever the memory of the reader is
 * not in one piece (128 segments a request).
 */
const COLD_READS = 90;
const COLD_READ_KIB = 512;
const PART_WRITES = 30;

type World = {
  lab: VolumeLab;
  loop: string;
  expectedPath: string;
  /** From here on no byte comes from the source. */
  silence(): void;
  speak(): void;
  killServer(signal?: NodeJS.Signals): Promise<void>;
  /** Starts a program that waits for the source. */
  waits(program: string, ...args: string[]): Running;
};

async function world(t: { after(work: () => Promise<void>): void }): Promise<World> {
  const lab = new VolumeLab(t);
  let relay!: TcpRelay;
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: LENGTH_BYTES,
    content: { offsetBytes: 0, lengthBytes: LENGTH_BYTES },
    paused: true,
    via: async (source) => {
      relay = new TcpRelay({ host: source.host, port: source.port });
      await relay.listen();
      lab.onClose(() => relay.close());
      return { host: '127.0.0.1', port: relay.port };
    },
  });
  const { loop } = move.target;
  const here = join(lab.dir, 'here');
  await tool('dd', 'if=/dev/urandom', `of=${here}`, 'bs=1M', `count=${HERE_MIB}`, 'status=none');
  for (const path of [loop, expectedPath]) {
    await tool('dd', `if=${here}`, `of=${path}`, 'bs=1M', 'conv=notrunc,fsync', 'status=none');
  }
  return {
    lab,
    loop,
    expectedPath,
    silence: () => relay.stall(),
    speak: () => relay.resume(),
    killServer: (signal) => move.target.killServer(signal),
    waits: (program, ...args) => {
      const running = new Running(lab, program, ...args);
      // It has its answer before it is killed: nothing that waits in the kernel can be.
      lab.onClose(async () => relay.resume());
      return running;
    },
  };
}

/**
 * Reads, writes, flushes and discards that need no source; each has to come to its end. Does the same to the
 * file.
 */
async function everythingElseGoesOn({ lab, loop, expectedPath }: World): Promise<void> {
  const piece = join(lab.dir, 'piece');
  await tool('dd', 'if=/dev/urandom', `of=${piece}`, 'bs=64k', 'count=4', 'status=none');
  const read = (skip: number, count: number) =>
    dd([`if=${loop}`, 'of=/dev/null', `count=${count}`, `skip=${skip}`, 'iflag=direct']);
  const write = async (seek: number) => {
    await dd([`if=${piece}`, `of=${loop}`, `seek=${seek}`, 'oflag=direct', 'conv=fsync,notrunc']);
    await dd([`if=${piece}`, `of=${expectedPath}`, `seek=${seek}`, 'conv=notrunc']);
  };
  await read(8, 16);
  await write(32);
  await tool('blkdiscard', '-f', '-o', String(GONE_AT_MIB * MIB), '-l', String(MIB), loop);
  zero(expectedPath, GONE_AT_MIB * MIB, MIB);
  await write(WHOLE_AT_MIB * 16);
  await read(WHOLE_AT_MIB * 16, 4);
}

function dd(operands: string[]): Promise<string> {
  return tool('dd', 'bs=64k', 'status=none', ...operands);
}

function zero(path: string, offsetBytes: number, lengthBytes: number): void {
  const file = openSync(path, 'r+');
  writeSync(file, Buffer.alloc(lengthBytes), 0, lengthBytes, offsetBytes);
  closeSync(file);
}

/**
 * Direct reads of as many different ranges that are not here, all at once; with a gap between them, or the
 * kernel makes one of two.
 */
function coldReads({ waits, loop }: World): Running {
  return waits(
    'fio',
    ...[
      '--name=cold',
      `--filename=${loop}`,
      '--rw=read:4k',
      `--bs=${COLD_READ_KIB}k`,
      '--direct=1',
      '--readonly',
    ],
    ...['--ioengine=libaio', `--iodepth=${COLD_READS}`, `--iodepth_batch=${COLD_READS}`],
    ...[`--number_ios=${COLD_READS}`, `--offset=${COLD_READS_FROM_MIB * MIB}`],
    ...[`--size=${COLD_READS * (COLD_READ_KIB + 4)}k`, '--output-format=json'],
  );
}

/** Writes that begin and end in the middle of a block that is not here, all at once. */
async function partWrites({ waits, loop, expectedPath }: World): Promise<Running> {
  const lengthBytes = 255 * 512;
  const same = [
    ...[
      '--name=cut',
      `--rw=write:${256 * KIB - lengthBytes}`,
      `--bs=${lengthBytes}`,
      '--buffer_pattern=0x5a',
    ],
    ...[`--offset=${PART_WRITES_FROM_MIB * MIB + 512}`, `--size=${PART_WRITES * 256}k`],
    ...[`--number_ios=${PART_WRITES}`, '--fallocate=none', '--output-format=json'],
  ];
  await tool('fio', ...same, `--filename=${expectedPath}`, '--ioengine=psync');
  const queue = ['--direct=1', '--ioengine=libaio', `--iodepth=${PART_WRITES}`];
  return waits('fio', ...same, `--filename=${loop}`, ...queue);
}

/**
 * Discards and zeroing whose ends are in the middle of a block that is not here, and one with both ends in
 * the same.
 */
async function cuts({ loop, expectedPath }: World): Promise<void> {
  for (const [atMib, lengthBytes, ...zeroing] of [
    [CUTS_FROM_MIB, 2 * MIB + KIB],
    [CUTS_FROM_MIB + 3, 2 * MIB + KIB, '-z'],
    [CUTS_FROM_MIB + 6, 512, '-z'],
  ] as const) {
    const offsetBytes = atMib * MIB + 512;
    await tool('blkdiscard', '-f', ...zeroing, '-o', String(offsetBytes), '-l', String(lengthBytes), loop);
    zero(expectedPath, offsetBytes, lengthBytes);
  }
}

describe('the source is silent', { skip: requires(...LAB_NEEDS, 'fio', 'blkdiscard') }, () => {
  it('through a loop device: cold reads, writes of parts and cut discards, as many as fit with a little room', async (t) => {
    const lost = await world(t);
    lost.silence();
    const waiting = [coldReads(lost), await partWrites(lost)];
    await waitingInLoop(lost.loop, COLD_READS + PART_WRITES);
    await cuts(lost);
    await everythingElseGoesOn(lost);
    await lost.killServer();
    await everythingElseGoesOn(lost);
    // In good order too: what waits then is not answered with an error, but is for the next one.
    await lost.killServer('SIGTERM');
    await everythingElseGoesOn(lost);
    for (const each of waiting) assert.equal(each.over, false, 'it waits for the source');
    lost.speak();
    for (const each of waiting) await each.ended;
    await assertSameContent(lost.loop, lost.expectedPath);
  });

  it('a filesystem whose blocks are smaller than those of the clone is trimmed whole, and all that is here goes on', async (t) => {
    const lab = new VolumeLab(t);
    let relay!: TcpRelay;
    let written = new Map<string, string>();
    const { target } = await moveVolume(lab, {
      lengthBytes: LENGTH_BYTES,
      paused: true,
      write: async (path) => {
        await tool('mkfs.ext4', '-q', '-F', '-b', '1024', path);
        const dir = lab.scratch();
        await tool('mount', '-o', 'loop', path, dir);
        // Full of files of 17 KiB, of which every second one is gone: all that is free is cut out of blocks.
        const names = writeFiles(dir, 'f', 2_000, 17 * KIB);
        for (const [index, name] of [...names.keys()].entries()) if (index % 2) rmSync(join(dir, name));
        written = await digestFiles(dir);
        await unmount(dir);
      },
      via: async (source) => {
        relay = new TcpRelay({ host: source.host, port: source.port });
        await relay.listen();
        lab.onClose(() => relay.close());
        return { host: '127.0.0.1', port: relay.port };
      },
    });
    const dir = await target.mount();
    const here = join(dir, 'here');
    await tool('dd', 'if=/dev/urandom', `of=${here}`, 'bs=64k', 'count=16', 'conv=fsync', 'status=none');
    // Which blocks are free is here.
    await tool('dumpe2fs', target.loop);
    relay.stall();
    lab.onClose(async () => relay.resume());
    const trimming = tool('fstrim', '-v', dir);
    // In place: what the journal has of it are parts of blocks, which wait.
    const direct = ['bs=64k', 'conv=notrunc', 'oflag=direct', 'status=none'];
    await tool('dd', 'if=/dev/urandom', `of=${here}`, 'count=16', ...direct);
    assert.match(await trimming, /trimmed/);
    const { blocksPresent, blocksTotal, wireBytes } = await target.hydration();
    assert.ok(blocksPresent > blocksTotal / 3, 'what is free is here');
    await target.killServer();
    await tool('dd', `if=${here}`, 'of=/dev/null', 'bs=64k', 'iflag=direct', 'status=none');
    assert.equal((await target.hydration()).wireBytes, wireBytes, 'nothing came');
    relay.resume();
    await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
    await target.until('whole', ({ state }) => state === 'complete');
    rmSync(here);
    assert.deepEqual(await digestFiles(await target.remount()), written);
    await target.unmount();
    await tool('e2fsck', '-f', '-n', target.loop);
  });

  it('over NBD: as many cold reads as QEMU sends, cut discards, zeroes and writes hold up nothing that is here', async (t) => {
    const lab = new VolumeLab(t);
    let relay!: TcpRelay;
    const { move, expectedPath } = await moveRawVolume(lab, {
      lengthBytes: 96 * MIB,
      content: { offsetBytes: 0, lengthBytes: 96 * MIB },
      paused: true,
      nbd: 'guest',
      via: async (source) => {
        relay = new TcpRelay({ host: source.host, port: source.port });
        await relay.listen();
        lab.onClose(() => relay.close());
        return { host: '127.0.0.1', port: relay.port };
      },
    });
    const client = await startNbdClient(
      t,
      { path: move.target.socket },
      { readOnly: false, queueDepth: 64, requestTimeoutMs: 2 ** 31 - 1 },
    );
    const expected = readFileSync(expectedPath);
    const change = async (
      call: 'write' | 'discard' | 'writeZeroes',
      offsetBytes: number,
      lengthBytes: number,
    ) => {
      const bytes = call === 'write' ? randomBytes(lengthBytes) : Buffer.alloc(lengthBytes);
      bytes.copy(expected, offsetBytes);
      await (call === 'write' ? client.write(offsetBytes, bytes) : client[call](offsetBytes, lengthBytes));
    };
    await change('write', 0, 4 * MIB);
    relay.stall();
    const reads = Array.from({ length: 16 }, async (_, index) => {
      const into = Buffer.alloc(MIB);
      const offsetBytes = (64 + index) * MIB;
      await client.read(offsetBytes, into);
      assert.ok(into.equals(expected.subarray(offsetBytes, offsetBytes + MIB)));
    });
    const cut = change('write', 10 * MIB + 512, MIB);
    const waiting = Promise.all([...reads, cut]);
    let over = false;
    waiting.then(
      () => (over = true),
      () => (over = true),
    );
    await change('discard', 20 * MIB + 512, MIB);
    await change('writeZeroes', 30 * MIB + 1024, 3 * MIB);
    await change('write', MIB, MIB);
    await change('discard', 2 * MIB, MIB);
    await client.flush();
    const here = Buffer.alloc(4 * MIB);
    await client.read(0, here);
    assert.ok(here.equals(expected.subarray(0, here.length)));
    assert.equal(over, false, 'the others wait for the source');
    relay.resume();
    await waiting;
    for (let offsetBytes = 0; offsetBytes < expected.length; offsetBytes += 16 * MIB) {
      const into = Buffer.alloc(16 * MIB);
      await client.read(offsetBytes, into);
      assert.ok(
        into.equals(expected.subarray(offsetBytes, offsetBytes + into.length)),
        `from ${offsetBytes} on`,
      );
    }
  });
});

/** Resolves when so many requests are inside the device. */
async function waitingInLoop(loop: string, count: number): Promise<void> {
  await until(`${count} requests in the device`, async () => {
    const inflight = await tool('cat', `/sys/block/${loop.slice(5)}/inflight`);
    const [reads, writes] = inflight.trim().split(/\s+/).map(Number);
    return reads! + writes! >= count || new NotYet({ reads, writes });
  });
}
