import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/base/clock.ts';
import { isGodwitError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { type Random, seededRandom, systemRandom } from '../../src/base/random.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { IscsiInitiator, IscsiTarget } from '../../src/iscsi/index.ts';
import {
  FAULT_KINDS,
  type Fault,
  type FaultKind,
  IscsiFaultRelay,
  type RecordedPdu,
} from '../support/iscsi-fault-relay.ts';
import { GRANT, initiatorOptions, startInitiator, TARGET_IQN } from '../support/iscsi-pair.ts';
import { inPatience, letPass, NotYet, until } from '../support/patience.ts';
import { reservePorts } from '../support/ports.ts';
import { reached } from '../support/remote-state.ts';
import { scratchDir } from '../support/scratch.ts';
import { testSeed } from '../support/seed.ts';

/**
 * Initiator and target with a bad network between them. A short exchange with every kind of PDU is recorded
 * once; then it is made again and again, each time with one fault at one place of it: at every PDU boundary
 * and in the middle of every part of a PDU, in both directions. Every run has to end, with every byte where
 * it belongs.
 */

const LONG = process.env.GODWIT_LONG === '1';
const KIB = 1024;
const STRIPE_BYTES = 64 * KIB;
const LANES = LONG ? 4 : 2;
const LENGTH_BYTES = LANES * STRIPE_BYTES;
/** Runs side by side: most of a run with a stall is waiting. */
const PARALLEL = 8;
/** Nothing here takes a second; this long means stuck. */
const STUCK_MS = 60_000;
/**
 * Small, so that small transfers have all kinds of PDUs: immediate data, R2T, several Data-Out and Data-In.
 */
const LIMITS = {
  ...{ dataSegmentBytesMax: 4 * KIB, burstBytesMax: 8 * KIB, firstBurstBytesMax: 1 * KIB },
  ...{ loginDelayMs: 1, loginDelayMsMax: 1, loginTimeoutMs: letPass(2_000) },
};
/** Found only where a digest covers them. */
const NEED_DIGESTS: readonly FaultKind[] = ['duplicate', 'garbage'];

/** Writes, zeroes and discards in a stripe of its own, and reads back after each. */
async function lane(device: IscsiInitiator, index: number, expected: Buffer, random: Random): Promise<void> {
  const start = index * STRIPE_BYTES;
  const change = async (lengthBytes: number, how: 'write' | 'zero' | 'discard'): Promise<void> => {
    const at = start + 512 * random.below((STRIPE_BYTES - lengthBytes) / 512);
    const data = how === 'write' ? Buffer.from(random.bytes(lengthBytes)) : Buffer.alloc(lengthBytes);
    if (how === 'write') await device.write(at, data);
    else if (how === 'zero') await device.writeZeroes(at, lengthBytes);
    else await device.discard(at, lengthBytes);
    data.copy(expected, at);
  };
  const check = async (offsetBytes: number, lengthBytes: number): Promise<void> => {
    const read = Buffer.alloc(lengthBytes, 0xee);
    await device.read(offsetBytes, read);
    const right = expected.subarray(offsetBytes, offsetBytes + lengthBytes);
    assert.ok(read.equals(right), `lane ${index}: other bytes than were written`);
  };
  await change(11 * KIB, 'write');
  await check(start, 10 * KIB);
  await change(512, 'write');
  await change(4 * KIB, 'zero');
  await device.flush();
  await change(8 * KIB, 'discard');
  await device.extents(start, STRIPE_BYTES, 4);
  await change(1536, 'write');
  await check(start + 512, 12 * KIB);
}

type Exchange = { fault: Fault | null; digests: boolean; seed: number };
type Outcome = {
  recorded: Record<'out' | 'in', RecordedPdu[]>;
  fired: boolean;
  /** From the fault until there was a connection again. null: the fault did not end it. */
  recoveryMs: number | null;
};

async function exchange({ fault, digests, seed }: Exchange): Promise<Outcome> {
  const content = seededRandom(seed).bytes(LENGTH_BYTES);
  const memory = new MemoryDevice({ lengthBytes: LENGTH_BYTES, content });
  const expected = Buffer.from(content);
  const basics = { clock: systemClock, random: systemRandom, logger: silentLogger };
  const target = await IscsiTarget.listen({ host: '127.0.0.1', port: 0, ...basics, limits: LIMITS });
  target
    .addExport({ targetIqn: TARGET_IQN, device: memory, serial: 'v', generation: 3, readOnly: false })
    .grant(GRANT);
  const corruption = seededRandom(seed + 1);
  const relay = new IscsiFaultRelay({
    upstream: { host: '127.0.0.1', port: target.port },
    ...{ digests, fault, random: (bytes: number) => corruption.bytes(bytes) },
  });
  const port = await relay.listen();
  const initiator = IscsiInitiator.open({
    ...initiatorOptions(port, { digests, queueDepth: 8, chap: { ...GRANT.chap!, algorithms: ['md5'] } }),
    ...{
      keepAliveIntervalMs: letPass(40),
      keepAliveTimeoutMs: letPass(80),
      loginTimeoutMs: letPass(250),
    },
    ...{ backoffMs: 2, backoffMsMax: 10 },
    expected: { lengthBytes: LENGTH_BYTES, serial: 'v' },
  });
  let recoveryMs: number | null = null;
  initiator.onStateChange((state) => {
    if (state === 'connected' && relay.firedAtMs !== null) recoveryMs ??= performance.now() - relay.firedAtMs;
  });
  try {
    const work = async (): Promise<void> => {
      await Promise.all(
        Array.from({ length: LANES }, (_, index) =>
          lane(initiator, index, expected, seededRandom(seed + 10 + index)),
        ),
      );
      const all = Buffer.alloc(LENGTH_BYTES);
      await initiator.read(0, all);
      assert.ok(all.equals(expected), 'the unit reads as it should');
      const stored = Buffer.alloc(LENGTH_BYTES);
      await memory.read(0, stored);
      assert.ok(stored.equals(expected), 'the device behind the target holds what it should');
    };
    const state = () => ({
      state: initiator.state,
      lastError: `${initiator.lastError}`,
      ...initiator.statistics,
    });
    await inPatience('the exchange to end', work(), { patienceMs: STUCK_MS, state });
  } catch (error) {
    throw new Error(`${JSON.stringify({ fault, digests, seed })}: ${error}`, { cause: error });
  } finally {
    await initiator.close();
    await relay.close();
    await target.close();
  }
  return { recorded: relay.recorded, fired: relay.firedAtMs !== null, recoveryMs };
}

/**
 * Every place of the exchange with every `share`-th of the kinds, in turn: neighbouring places, and the parts
 * of one PDU, get different ones. 1: all kinds everywhere.
 */
function faultsOf(recorded: Outcome['recorded'], kinds: readonly FaultKind[], share: number): Fault[] {
  const faults: Fault[] = [];
  let place = 0;
  for (const direction of ['out', 'in'] as const) {
    for (const [pdu, { parts }] of recorded[direction].entries()) {
      for (const part of parts) {
        place += 1;
        for (const [index, kind] of kinds.entries()) {
          if ((place + index) % share === 0) faults.push({ kind, direction, pdu, part });
        }
      }
    }
  }
  return faults;
}

function quantile(sorted: readonly number[], fraction: number): string {
  return sorted.length === 0 ? '-' : `${sorted[Math.floor((sorted.length - 1) * fraction)]!.toFixed(0)} ms`;
}

for (const digests of [true, false]) {
  test(`a fault at every place of an exchange, digests ${digests ? 'on' : 'off'}`, async (t) => {
    const seed = testSeed();
    const { recorded } = await exchange({ fault: null, digests, seed });
    const opcodes = new Set([...recorded.out, ...recorded.in].map(({ opcode }) => opcode));
    // SCSI command, login, Data-Out; SCSI response, login response, Data-In, R2T.
    for (const opcode of [0x01, 0x03, 0x05, 0x21, 0x23, 0x25, 0x31])
      assert.ok(opcodes.has(opcode), `${opcode}`);
    const kinds = FAULT_KINDS.filter(
      (kind) => digests || !NEED_DIGESTS.includes(kind as FaultKind),
    ) as FaultKind[];
    // Without digests only the framing differs.
    const faults = faultsOf(recorded, kinds, LONG ? 1 : digests ? 3 : 7);
    const recoveries = new Map<FaultKind, number[]>();
    let fired = 0;
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < faults.length) {
        const fault = faults[next]!;
        next += 1;
        const outcome = await exchange({ fault, digests, seed });
        if (outcome.fired) fired += 1;
        if (outcome.recoveryMs === null) continue;
        recoveries.set(fault.kind, [...(recoveries.get(fault.kind) ?? []), outcome.recoveryMs]);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, worker));
    t.diagnostic(
      `${recorded.out.length} PDUs out, ${recorded.in.length} in; ${fired} of ${faults.length} faults happened`,
    );
    for (const kind of kinds) {
      const sorted = (recoveries.get(kind) ?? []).sort((left, right) => left - right);
      t.diagnostic(
        `${kind}: connected again ${sorted.length} times after ${quantile(sorted, 0.5)} (median), ${quantile(sorted, 1)} (longest)`,
      );
    }
    // The order of two lanes is not the same every time, and a PDU at the end may not come; most faults must
    // happen.
    assert.ok(fired > faults.length * 0.9, `${fired} of ${faults.length}`);
  });
}

const PROCESS = fileURLToPath(new URL('../support/iscsi-target-process.ts', import.meta.url));

async function startProcess(
  t: TestContext,
  ...words: (string | number)[]
): Promise<{ child: ChildProcess; port: number }> {
  const child = spawn(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', PROCESS, ...words.map(String)],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  t.after(() => kill(child));
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, port: Number(line) };
}

async function kill(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

test('the target process is killed and started again under load; then another unit answers in its place', async (t) => {
  const MIB = KIB * KIB;
  const lengthBytes = 8 * MIB;
  const file = join(scratchDir(t), 'unit.raw');
  writeFileSync(file, '');
  truncateSync(file, lengthBytes);
  const [port] = (await reservePorts(t, 1)) as [number];
  let { child } = await startProcess(t, file, lengthBytes, port, 'unit-1');
  const initiator = await startInitiator(t, port, { digests: true, backoffMs: 5, backoffMsMax: 50 });
  const expected = Buffer.alloc(lengthBytes);
  const outages: number[] = [];
  let running = true;
  let rounds = 0;
  const worker = async (index: number): Promise<void> => {
    const random = seededRandom(index + 100);
    const stripe = lengthBytes / 8;
    while (running) {
      const bytes = 512 * (1 + random.below(256));
      const at = index * stripe + 512 * random.below((stripe - bytes) / 512);
      const data = Buffer.from(random.bytes(bytes));
      await initiator.write(at, data);
      data.copy(expected, at);
      const back = Buffer.alloc(bytes);
      await initiator.read(at, back);
      assert.ok(back.equals(data), `stripe ${index}`);
      rounds += 1;
    }
  };
  const load = Promise.all(Array.from({ length: 8 }, (_, index) => worker(index)));
  load.catch(() => {});
  for (let round = 0; round < (LONG ? 30 : 4); round += 1) {
    const before = rounds;
    await Promise.race([
      load,
      until('20 rounds', () => rounds >= before + 20 || new NotYet(initiator.state)),
    ]);
    const killedMs = performance.now();
    await kill(child);
    ({ child } = await startProcess(t, file, lengthBytes, port, 'unit-1'));
    const done = rounds;
    await Promise.race([load, until('a round', () => rounds > done || new NotYet(initiator.state))]);
    outages.push(performance.now() - killedMs);
  }
  running = false;
  await load;
  const all = Buffer.alloc(lengthBytes);
  await initiator.read(0, all);
  assert.ok(all.equals(expected));
  outages.sort((left, right) => left - right);
  t.diagnostic(
    `${outages.length} kills, ${rounds} rounds of write and read; first answer ${quantile(outages, 0.5)} after the kill (median), the start of the process in it`,
  );

  await kill(child);
  await reached(initiator, 'lost');
  const changed = (error: unknown): boolean => isGodwitError(error, 'ISCSI_TARGET_CHANGED');
  const waiting = [
    assert.rejects(initiator.read(0, Buffer.alloc(4096)), changed),
    assert.rejects(initiator.write(0, Buffer.alloc(4096)), changed),
    assert.rejects(initiator.flush(), changed),
  ];
  await startProcess(t, file, lengthBytes, port, 'unit-2');
  await Promise.all(waiting);
  assert.equal(initiator.state, 'failed');
});
