import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { systemClock } from '../src/base/clock.ts';
import { VolumeLab } from '../test/support/volume-lab.ts';

/**
 * Resident memory of a volume server: idle on a plain volume, and just after it opened a clone of 1 TiB whose blocks are all still at
 * the source. Goals: under 80 MiB and under 100 MiB. Prints one line of JSON each.
 */
const TIB = 2 ** 40;
const GIB = 2 ** 30;
const MIB = 2 ** 20;
/** After the start the young generation and the code that ran once are given back. */
const SETTLE_MS = 3_000;

function residentMiB(pid: number): { resident: number; anonymous: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) / 1024;
  return {
    resident: Math.round(field('VmRSS') * 10) / 10,
    anonymous: Math.round(field('RssAnon') * 10) / 10,
  };
}

process.env.NODE_COMPILE_CACHE ??= `${tmpdir()}/godwit-bench-compile-cache`;

async function idle(): Promise<void> {
  const lab = new VolumeLab();
  try {
    const store = await lab.store('plain');
    const record = await store.create({ name: 'data', lengthBytes: GIB, filesystem: 'ext4' });
    // Twice: the first one fills the compile cache.
    const first = await lab.attach(store, record, { access: 'writable' });
    await first.mount();
    await first.killServer();
    await systemClock.sleep(SETTLE_MS);
    const memory = residentMiB(first.server.state.serverPid!);
    console.log(
      JSON.stringify({ bench: 'volume-memory', case: 'idle', ...memory, goal: 80, ok: memory.resident < 80 }),
    );
  } finally {
    await lab.close();
  }
}

async function clone(): Promise<void> {
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
    const memory = residentMiB(attached.server.state.serverPid!);
    console.log(
      JSON.stringify({
        bench: 'volume-memory',
        case: 'clone of 1 TiB',
        ...memory,
        goal: 100,
        ok: memory.resident < 100,
      }),
    );
    await target.apply(record.id, { kind: 'activate', generation: 2 });
    await attached.server.call('activate', { access: 'writable' });
    const whole = await attached.until('every hole is marked', (hydration) => hydration.state === 'complete');
    const after = residentMiB(attached.server.state.serverPid!);
    console.log(
      JSON.stringify({
        bench: 'volume-memory',
        case: 'clone of 1 TiB, whole',
        ...after,
        wireMiB: whole.wireBytes / MIB,
      }),
    );
  } finally {
    await lab.close();
  }
}

await idle();
await clone();
