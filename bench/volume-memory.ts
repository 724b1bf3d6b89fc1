import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { systemClock } from '../src/base/clock.ts';
import { VolumeLab } from '../test/support/volume-lab.ts';

/**
 * Resident memory of a volume server: idle on a plain volume, and just after it opened a clone of 1 TiB whose
 * blocks are all still at the source. Goals: under 80 MiB and under 100 MiB. In MiB.
 */
const TIB = 2 ** 40;
const GIB = 2 ** 30;
/** After the start the young generation and the code that ran once are given back. */
const SETTLE_MS = 3_000;

export type Resident = { resident: number; anonymous: number };

function residentMiB(pid: number): Resident {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) / 1024;
  return {
    resident: Math.round(field('VmRSS') * 10) / 10,
    anonymous: Math.round(field('RssAnon') * 10) / 10,
  };
}

process.env.NODE_COMPILE_CACHE ??= `${tmpdir()}/godwit-bench-compile-cache`;

async function idle(): Promise<Resident> {
  const lab = new VolumeLab();
  try {
    const store = await lab.store('plain');
    const record = await store.create({ name: 'data', lengthBytes: GIB, filesystem: 'ext4' });
    // Twice: the first one fills the compile cache.
    const first = await lab.attach(store, record, { access: 'writable' });
    await first.mount();
    await first.killServer();
    await systemClock.sleep(SETTLE_MS);
    return residentMiB(first.server.state.serverPid!);
  } finally {
    await lab.close();
  }
}

async function clone(): Promise<{ opened: Resident; whole: Resident }> {
  const lab = new VolumeLab();
  try {
    const source = await lab.store('source');
    const target = await lab.store('target');
    const record = await source.create({ name: 'data', lengthBytes: TIB, filesystem: 'none' });
    await source.apply(record.id, { kind: 'seal', generation: 1 });
    const exported = await lab.export(source, record.id, 'readonly');
    const incoming = await target.createIncoming({ ...record, generation: 2 });
    const attached = await lab.attach(target, incoming, {
      access: 'standby',
      source: exported.source,
      paused: true,
    });
    await systemClock.sleep(SETTLE_MS);
    const opened = residentMiB(attached.server.state.serverPid!);
    await target.apply(record.id, { kind: 'activate', generation: 2 });
    await attached.server.call('activate', { access: 'writable' });
    await attached.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
    await attached.until('every hole is marked', (hydration) => hydration.state === 'complete');
    return { opened, whole: residentMiB(attached.server.state.serverPid!) };
  } finally {
    await lab.close();
  }
}

/** `clone`: opened, all its blocks at the source. `whole`: every bit of it set. */
export async function measureVolumeMemory(): Promise<{ idle: Resident; clone: Resident; whole: Resident }> {
  const plain = await idle();
  const { opened, whole } = await clone();
  return { idle: plain, clone: opened, whole };
}

if (import.meta.main) process.stdout.write(`${JSON.stringify(await measureVolumeMemory(), null, 2)}\n`);
