import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { leisurely, until } from '../support/patience.ts';
import { assertSameContent, BlockWriter, moveRawVolume, Running } from '../support/raw-clone.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';
import { LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const LENGTH_BYTES = 128 * MIB;
/** What the source has; around it are holes. */
const CONTENT = { offsetBytes: 16 * MIB, lengthBytes: 64 * MIB };
/** Written all the time: content of the source, partly here when the network goes, and a hole. */
const WRITTEN = { offsetBytes: 8 * MIB, lengthBytes: 40 * MIB };
/** The linear copy comes here last, and nobody else does: still missing when the network goes. */
const MISSING_AT_MIB = 72;
const CUT_AT_MIB = 74;

/** A status that says the source is lost needs more than two seconds of silence. */
const TOLD_FROM_MS = 10_000;

const KINDS = ['refused', 'stalled'] as const;
const OUTAGES_MS = [1_000, 10_000, 60_000];

describe('the network between source and clone is away in mid-hydration', {
  concurrency: true,
  skip: requires(...LAB_NEEDS),
}, () => {
  for (const kind of KINDS) {
    for (const outageMs of OUTAGES_MS) {
      it(`connections ${kind} for ${outageMs / 1000} s: reads wait, writes go on, everything ends right`, async (t) => {
        const lab = new VolumeLab(t);
        await outage(lab, kind, outageMs, testSeed());
      });
    }
  }
});

async function outage(
  lab: VolumeLab,
  kind: (typeof KINDS)[number],
  outageMs: number,
  seed: number,
): Promise<void> {
  let relay!: TcpRelay;
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: LENGTH_BYTES,
    content: CONTENT,
    paused: true,
    via: async (source) => {
      relay = new TcpRelay({ host: source.host, port: source.port });
      await relay.listen();
      lab.onClose(() => relay.close());
      return { host: '127.0.0.1', port: relay.port };
    },
  });
  const { target, source } = move;
  const { loop } = target;
  const writer = new BlockWriter(lab, loop, WRITTEN, seed);
  await writer.more(50);
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(4 * MIB) });
  await target.until('some of it', (hydration) => hydration.wireBytes > 2 * MIB);

  if (kind === 'refused') relay.refuse();
  else relay.stall();
  const readPath = join(lab.dir, 'read');
  const reading = new Running(
    lab,
    'dd',
    ...[`if=${loop}`, `of=${readPath}`, 'bs=64k', 'count=16', `skip=${MISSING_AT_MIB * 16}`],
    ...['iflag=direct', 'status=none'],
  );
  // A part of a block that is not here cannot be written without the rest of it.
  const sector = join(lab.dir, 'sector');
  await tool('dd', 'if=/dev/urandom', `of=${sector}`, 'bs=512', 'count=1', 'status=none');
  const writeSector = (to: string, flags: string) => [
    ...[`if=${sector}`, `of=${to}`, 'bs=512', 'count=1', `seek=${CUT_AT_MIB * 2048 + 3}`],
    ...[`conv=${flags}`, 'status=none'],
  ];
  const cutting = new Running(lab, 'dd', ...writeSector(loop, 'notrunc,fsync'), 'oflag=direct');
  await Promise.all([systemClock.sleep(outageMs), writer.more(200)]);
  if (outageMs >= TOLD_FROM_MS) {
    const lost = await target.until('lost', (hydration) => hydration.state === 'source-lost');
    const later = await target.until(
      'lost for longer',
      (hydration) => hydration.sourceLostForMs !== null && hydration.sourceLostForMs > lost.sourceLostForMs!,
    );
    assert.ok(lost.sourceLostForMs! > 2_000, 'silence counts from its beginning');
    assert.equal(later.bytesPerSecond === 0 || later.etaMs === null, true, 'nothing is promised');
    if (kind === 'refused') assert.ok(later.lastError !== null, 'the status says why');
    assert.deepEqual(sourceEvents(target.events), ['source-lost']);
  }
  await writer.more(50);
  const { exposedBytes } = await target.hydration();
  assert.ok(exposedBytes > 16 * MIB, `it was in mid-hydration: ${exposedBytes} bytes to go`);
  assert.equal(reading.over, false, 'a read of what only the source has waits');
  assert.equal(cutting.over, false, 'and so does a write of a part of it');

  relay.resume();
  await reading.ended;
  await cutting.ended;
  await target.until(
    'back',
    (hydration) => hydration.state === 'running' && hydration.sourceLostForMs === null,
  );
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await writer.more(50);
  await writer.stop(expectedPath);
  assert.equal(whole.exposedBytes, 0);
  assert.equal(whole.blocksFetchedTwice, 0);
  assert.equal(whole.lastError, null);
  assert.equal(target.server.state.restarts, 0);
  assert.equal(source.server.state.restarts, 0);
  await target.server.call('finish');
  const events = sourceEvents(target.events);
  assert.equal(events.filter((event) => event === 'source-lost').length, events.length / 2, `${events}`);
  if (events.length > 0) assert.equal(events.at(-1), 'source-back');

  const readRange = ['bs=1M', `skip=${MISSING_AT_MIB}`, 'count=1', 'status=none'];
  await tool('dd', `if=${expectedPath}`, `of=${readPath}.expected`, ...readRange);
  await tool('cmp', readPath, `${readPath}.expected`);
  await tool('dd', ...writeSector(expectedPath, 'notrunc'));
  await assertSameContent(loop, expectedPath);
  await allLoggedOut(source);
}

function sourceEvents(events: readonly [event: string, data: unknown][]): string[] {
  return events.map(([event]) => event).filter((event) => event.startsWith('source-'));
}

/** No half-open session of the outage stays behind. */
async function allLoggedOut(source: { server: { call: (op: 'status') => Promise<unknown> } }): Promise<void> {
  const told = async () => ((await source.server.call('status')) as { export: { sessions: number } }).export;
  await until('all sessions to end', told, { is: ({ sessions }) => sessions === 0 });
}
