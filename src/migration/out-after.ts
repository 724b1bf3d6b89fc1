import { pauses } from '../base/backoff.ts';
import { deadline } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { GuestUse } from '../contract/peer.ts';
import { verifyReceipt } from '../receipt/envelope.ts';
import { LOOK_AGAIN } from './move-step.ts';
import { keepExport, OUT_PATIENCE, outStep, targetOf, watch } from './out-tools.ts';
import { proveMove } from './prove.ts';
import { reached } from './target-phase.ts';

/*
 * The source's steps while the machine runs at the target.
 */

/** Who has fetched all by then is not asked what its guest does. */
const LOOKS_AT_ONCE = 5;
/** Somebody has to look at a disk. */
const DISPUTES = new Set([
  'MIGRATION_CONTENT_UNEXPLAINED',
  'MIGRATION_CONTENT_DIFFERS',
  'VOLUME_REGION_CHANGED',
]);

export const detach = outStep({
  ...{ name: 'detach', phase: 'after', waitsFor: 'peer', answersAdvance: true },
  ...OUT_PATIENCE.forward,
  async do({ source }, { input }) {
    await source.detach(input.machineId);
  },
});

export const awaitBlocks = outStep({
  ...{ name: 'serve', phase: 'after', waitsFor: 'peer' },
  ...OUT_PATIENCE.long,
  needs: ['subject', 'target'],
  uses: ['source', 'targetTls'],
  gives: ['last'],
  async do(tools, context) {
    const { notes, runId, signal } = context;
    const peer = targetOf(tools, notes.target);
    let askedAtMs = Number.NEGATIVE_INFINITY;
    let use = '';
    const pause = pauses(tools.clock, LOOK_AGAIN);
    for (let looks = 1; ; looks += 1) {
      await keepExport(tools, runId, notes.subject, notes);
      const status = await watch(tools, peer, context, 'fetches the rest');
      if (reached(status, 'hydrated')) return { last: status };
      const nowMs = tools.clock.monotonicMs();
      if (looks > LOOKS_AT_ONCE && nowMs - askedAtMs >= GUEST_USE_EVERY_MS) {
        askedAtMs = nowMs;
        // Nobody waits for it: it is for a sentence.
        const ends = AbortSignal.any([signal, deadline(tools.clock, GUEST_USE_EVERY_MS)]);
        peer.guest(runId, {}, { signal: ends }).then(
          (told) => {
            use = useText(told, peer.name);
          },
          () => {
            use = '';
          },
        );
      }
      context.waiting(
        `${peer.name} fetches the blocks that are still only here`,
        `Nothing to do; keep this worker up until then.${use}`,
      );
      await pause(signal);
    }
  },
});

/** Each is an event of the run. */
const GUEST_USE_EVERY_MS = 15_000;

/** What keeps this worker needed, and what the sealed volume here lacks by now. */
function useText({ waits, waitP99Ms, writtenBytes }: GuestUse, target: string): string {
  const reads =
    waits && waitP99Ms !== null
      ? ` The machine has waited ${waits} times for a block of it, lately ${waitP99Ms.toFixed(1)} ms at most (p99).`
      : '';
  const written = writtenBytes
    ? ` It has written up to ${(writtenBytes / 2 ** 20).toFixed(1)} MiB that are only on ${target}.`
    : '';
  return reads + written;
}

export const prove = outStep({
  ...{ name: 'prove', phase: 'after', waitsFor: 'peer', answersAdvance: true },
  ...OUT_PATIENCE.long,
  retry: { initialMs: 500, maxMs: 60_000 },
  needs: ['subject', 'target'],
  uses: ['source', 'targetTls', 'handedOverAtMs', 'stopStartedAtMs'],
  gives: ['bytesAvoided', 'mended', 'disputed', 'root', 'waivedAtMs'],
  async do(tools, context) {
    const { source, receipts, clock, worker, key } = tools;
    const { notes, runId } = context;
    const { subject, target } = notes;
    const { volume } = subject;
    // Nothing was fetched: there is nothing to prove.
    if (volume === null) return { bytesAvoided: 0 };
    const { waivedAtMs } = await watch(tools, targetOf(tools, target), context, 'has all blocks');
    if (waivedAtMs !== null) {
      receipts.waive(runId, waivedAtMs);
      return { waivedAtMs, disputed: null };
    }
    await keepExport(tools, runId, subject, notes);
    const { handedOverAtMs, stopStartedAtMs, mended, disputed } = notes;
    // Once is for good: the guest writes on, and its writes would soon seem to explain it.
    const known = disputed ? GodwitError.fromWire(disputed) : null;
    if (known?.retry === 'never') throw known;
    const bytesAvoided =
      notes.bytesAvoided ?? (await source.bytesAvoided(volume.volumeId, volume.generation));
    const proving = proveMove({
      moveId: runId,
      subject: { ...subject, volume },
      peer: targetOf(tools, target),
      ...{ worker, key, source, receipts, bytesAvoided, clock },
      times: {
        stopped: subject.running ? (stopStartedAtMs ?? null) : null,
        handedOver: handedOverAtMs ?? clock.wallMs(),
      },
      mended: mended ?? { ranges: 0, bytes: 0, leftBytes: 0 },
      onMended: (sums) => context.put({ mended: sums }),
      onProgress: (bytes) =>
        context.waiting(
          `holding what ${target} has against the sealed volume`,
          `Nothing to do; keep both workers up until then. ${Math.floor(bytes / 2 ** 30)} GiB are compared.`,
        ),
      signal: context.signal,
    });
    const receipt = await proving.catch((error: unknown) => {
      if (isGodwitError(error) && DISPUTES.has(error.code)) context.put({ disputed: error.toWire() });
      throw error;
    });
    return { bytesAvoided, root: verifyReceipt(receipt).root, disputed: null };
  },
});

export const release = outStep({
  ...{ name: 'release', phase: 'after', waitsFor: 'peer', answersAdvance: true },
  ...OUT_PATIENCE.forward,
  needs: ['subject', 'target'],
  uses: ['waivedAtMs', 'source', 'targetTls'],
  gives: ['last', 'destroyAfterMs'],
  async do(tools, context) {
    const { source, clock, retentionMs } = tools;
    const { notes, runId, input } = context;
    const peer = targetOf(tools, notes.target);
    let last = await watch(tools, peer, context, 'takes the volume as its own');
    const pause = pauses(clock, LOOK_AGAIN);
    while (!reached(last, 'released')) {
      // A target that lost its power after the proof fetches the last blocks again. One that needs nothing
      // more is not held up by an export that does not open.
      const trouble = await keepExport(tools, runId, notes.subject, notes).then(() => null, messageOf);
      context.waiting(
        `${peer.name} takes the volume as its own${trouble === null ? '' : `; what it may have to fetch again is not served: ${trouble}`}`,
        notes.waivedAtMs === undefined
          ? 'Nothing to do; the receipt is signed.'
          : 'Nothing to do; an operator had it do without the receipt.',
      );
      await pause(context.signal);
      last = await watch(tools, peer, context, 'takes the volume as its own');
    }
    context.put({ last });
    await source.closeExport(runId);
    const destroyAfterMs = notes.destroyAfterMs ?? clock.wallMs() + retentionMs;
    context.put({ destroyAfterMs });
    await source.retain(input.machineId, notes.subject.volume?.volumeId ?? null, destroyAfterMs);
    return { last, destroyAfterMs };
  },
});
