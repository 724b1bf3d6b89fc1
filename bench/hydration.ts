import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { systemRandom } from '../src/base/random.ts';
import type { Grant, ImportedSourceSpec, SourceSpec } from '../src/opening/spec.ts';
import { newGrant } from '../src/volume/specs.ts';
import { type Attachment, type Export, tool, VolumeLab } from '../test/support/volume-lab.ts';

/**
 * How fast a clone becomes whole, and what its guest feels meanwhile.
 *   throughput   a clone of DATA_BYTES of random bytes, until its last block is durable, against `qemu-img convert` of the same export to a raw
 *                file (page cache warm, loopback iSCSI, CHAP), in turn, several rounds. Goal: at least 0.8 of qemu-img.
 *   latency      p99 of 4 KiB random reads, depth 1, of the guest on a cold clone: hydration running against hydration paused, each on a
 *                clone of its own, in turn, several rounds. Goal: at most 1.5.
 */
const GIB = 2 ** 30;
const MIB = 2 ** 20;
const DATA_BYTES = 1 * GIB;
const LATENCY_DATA_BYTES = 2 * GIB;
const LATENCY_SECONDS = 4;

export type HydrationBench = {
  rounds: number;
  dataBytes: number;
  throughput: { godwitMiBps: number; qemuImgMiBps: number; ratio: number; goal: 0.8 };
  latency: {
    pausedP99Ms: number;
    runningP99Ms: number;
    ratio: number;
    goal: 1.5;
    /** What was copied in the background meanwhile. */
    runningMiBps: number;
  };
};

export type Source = { lab: VolumeLab; exported: Export; id: string; lengthBytes: number };

/** Also for receipts.ts. */
export async function makeSource(lab: VolumeLab, lengthBytes: number): Promise<Source> {
  const store = await lab.store(`source-${lengthBytes}`);
  const record = await store.create({ name: 'data', lengthBytes, filesystem: 'none' });
  const data = join(store.folder(record.id), 'data.raw');
  await tool(
    'dd',
    'if=/dev/urandom',
    `of=${data}`,
    'bs=4M',
    `count=${lengthBytes / (4 * MIB)}`,
    'conv=notrunc',
  );
  await store.apply(record.id, { kind: 'seal', generation: 1 });
  const exported = await lab.export(store, record.id, 'readonly');
  // Warm.
  await tool('dd', `if=${data}`, 'of=/dev/null', 'bs=4M');
  return { lab, exported, id: record.id, lengthBytes };
}

/** A fresh clone of the source, attached, hydration paused. */
export async function makeClone(
  source: Source,
  name: string,
  from: SourceSpec | ImportedSourceSpec = source.exported.source,
): Promise<{ target: Attachment; lab: VolumeLab }> {
  const lab = new VolumeLab();
  const store = await lab.store(name);
  const incoming = await store.createIncoming({
    id: source.id,
    name: 'data',
    lengthBytes: source.lengthBytes,
    filesystem: 'none',
    generation: 2,
  });
  const target = await lab.attach(store, incoming, {
    access: 'standby',
    source: from,
    paused: true,
  });
  await store.apply(source.id, { kind: 'activate', generation: 2 });
  await target.server.call('activate', { access: 'writable' });
  return { target, lab };
}

export async function hydrateSeconds(
  source: Source,
  from?: SourceSpec | ImportedSourceSpec,
  whole: (target: Attachment) => Promise<void> = async () => {},
): Promise<number> {
  const { target, lab } = await makeClone(source, 'target', from);
  try {
    const startMs = performance.now();
    await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
    await target.until('hydrated', () => target.events.some(([event]) => event === 'hydrated'));
    const seconds = (performance.now() - startMs) / 1000;
    const { wireBytes } = await target.hydration();
    if (wireBytes !== source.lengthBytes) throw new Error(`${wireBytes} bytes crossed the wire`);
    await whole(target);
    return seconds;
  } finally {
    await lab.close();
  }
}

/** qemu-img has an initiator name of its own; fsync included (-t none would need O_DIRECT on the target). */
async function convertSeconds(source: Source, grant: Grant): Promise<number> {
  const { host, port, targetIqn, lun } = source.exported.source;
  const into = join(source.lab.dir, 'qemu.raw');
  await rm(into, { force: true });
  const image = `json:${JSON.stringify({
    driver: 'raw',
    file: {
      driver: 'iscsi',
      transport: 'tcp',
      portal: `${host}:${port}`,
      target: targetIqn,
      lun,
      user: grant.chapUser,
      'password-secret': 'chap',
      'initiator-name': grant.initiatorIqn,
    },
  })}`;
  const startMs = performance.now();
  await promisify(execFile)(
    'qemu-img',
    [
      'convert',
      '--object',
      `secret,id=chap,data=${grant.chapSecret}`,
      '-t',
      'writeback',
      '-O',
      'raw',
      image,
      into,
    ],
    { timeout: 120_000 },
  );
  await tool('sync', into);
  const seconds = (performance.now() - startMs) / 1000;
  await rm(into);
  return seconds;
}

export async function readP99Ms(
  source: Source,
  running: boolean,
  from?: SourceSpec | ImportedSourceSpec,
): Promise<{ p99Ms: number; mibps: number }> {
  const { target, lab } = await makeClone(source, 'target', from);
  try {
    const before = await target.hydration();
    await target.server.call('hydration', { paused: !running, rateBytesPerSecondMax: 0 });
    const { stdout } = await promisify(execFile)('fio', [
      ...[
        '--name=guest',
        `--filename=${target.loop}`,
        '--rw=randread',
        '--bs=4k',
        '--direct=1',
        '--readonly',
      ],
      ...[
        '--ioengine=psync',
        `--runtime=${LATENCY_SECONDS}`,
        '--time_based',
        '--norandommap',
        '--output-format=json',
      ],
    ]);
    const after = await target.hydration();
    const read = (JSON.parse(stdout) as FioOutput).jobs[0]!.read;
    return {
      p99Ms: read.clat_ns.percentile['99.000000'] / 1e6,
      mibps: (after.wireBytes - before.wireBytes) / MIB / LATENCY_SECONDS,
    };
  } finally {
    await lab.close();
  }
}

type FioOutput = { jobs: { read: { clat_ns: { percentile: { '99.000000': number } } } }[] };

export function median(values: number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.floor(sorted.length / 2)]!;
}

export async function benchHydration(rounds = 3): Promise<HydrationBench> {
  process.env.NODE_COMPILE_CACHE ??= join(tmpdir(), 'godwit-bench-compile-cache');
  const lab = new VolumeLab();
  try {
    const source = await makeSource(lab, DATA_BYTES);
    const grant = newGrant(
      await (await lab.store(`source-${DATA_BYTES}`)).get(source.id),
      'qemu',
      systemRandom,
    );
    await source.exported.server.call('grant', grant);
    const godwit: number[] = [];
    const qemu: number[] = [];
    for (let round = 0; round < rounds; round++) {
      godwit.push(DATA_BYTES / MIB / (await hydrateSeconds(source)));
      qemu.push(DATA_BYTES / MIB / (await convertSeconds(source, grant)));
    }
    const large = await makeSource(lab, LATENCY_DATA_BYTES);
    const paused: number[] = [];
    const running: number[] = [];
    const background: number[] = [];
    for (let round = 0; round < rounds; round++) {
      paused.push((await readP99Ms(large, false)).p99Ms);
      const { p99Ms, mibps } = await readP99Ms(large, true);
      running.push(p99Ms);
      background.push(mibps);
    }
    return {
      rounds,
      dataBytes: DATA_BYTES,
      throughput: {
        godwitMiBps: median(godwit),
        qemuImgMiBps: median(qemu),
        ratio: median(godwit.map((value, round) => value / qemu[round]!)),
        goal: 0.8,
      },
      latency: {
        pausedP99Ms: median(paused),
        runningP99Ms: median(running),
        ratio: median(running.map((value, round) => value / paused[round]!)),
        goal: 1.5,
        runningMiBps: median(background),
      },
    };
  } finally {
    await lab.close();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  console.log(JSON.stringify(await benchHydration(), null, 2));
}
