import { deadline } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { Waiting } from './move-step.ts';
import { noCapacity, offerRequest } from './offers.ts';
import type { MigrateOutInput, OutNotes } from './out-notes.ts';
import { forgotten, OUT_PATIENCE, type OutTools, outStep, peerOf, targetOf } from './out-tools.ts';
import { chooseOffer } from './placement.ts';
import { reached } from './target-phase.ts';

/*
 * The source's steps while the machine runs here.
 */

export const choose = outStep({
  ...{ name: 'choose', phase: 'before-stop', waitsFor: 'godwit', answersAdvance: true },
  ...OUT_PATIENCE.beforeStop,
  gives: ['subject', 'target', 'targetTls', 'targetKnows'],
  async do({ source, desk, worker, failedTargets }, context) {
    const { input, notes } = context;
    if (notes.subject && notes.target) {
      const { subject, target, targetTls = false, targetKnows = [] } = notes;
      return { subject, target, targetTls, targetKnows };
    }
    let subject = await source.describe(input.machineId);
    for (;;) {
      if (input.rekey) subject.placement.userspaceOnly = 'gets another key on the way';
      const wanted = input.targetWorker;
      const request = offerRequest(worker.name, subject);
      const offers = await desk.ask({ wanted, request, signal: context.signal });
      const choice = chooseOffer(offers, failedTargets?.(input.machineId));
      if (!choice.chosen) throw new Abort(noCapacity(subject.machineName, wanted, choice.reasons));
      await source.claim(input.machineId, context.runId);
      // Until here its owner could start or stop it: what moves is the machine as it is from now on.
      const claimed = await source.describe(input.machineId);
      if (claimed.running === subject.running) {
        const { worker: target, tls, knows = [] } = choice.chosen;
        return { subject, target, targetTls: tls === true, targetKnows: knows };
      }
      subject = claimed;
    }
  },
  async undo({ source }, { input }) {
    await source.claim(input.machineId, null);
  },
});

export const openExport = outStep({
  ...{ name: 'export', phase: 'before-stop', waitsFor: 'godwit', answersAdvance: true },
  ...OUT_PATIENCE.beforeStop,
  needs: ['subject', 'target'],
  uses: ['targetTls'],
  gives: ['source'],
  async do(tools, { runId, notes: { subject, target, targetTls, source: known } }) {
    if (!subject.volume) return { source: null };
    const exportedTo = { worker: targetOf(tools, target).name, tls: targetTls === true };
    return { source: await tools.source.openExport(runId, subject, exportedTo, known ?? null) };
  },
  async undo({ source }, { runId }) {
    await source.closeExport(runId);
  },
});

export const prepare = outStep({
  ...{ name: 'prepare', phase: 'before-stop', waitsFor: 'peer', answersAdvance: true, blamesTarget: true },
  ...OUT_PATIENCE.beforeStop,
  needs: ['subject', 'target', 'source'],
  uses: ['targetKnows', 'override'],
  async do(tools, context) {
    const { runId, signal, notes } = context;
    const peer = targetOf(tools, notes.target);
    const request = prepareRequest(tools, runId, context.input, notes);
    let status = await peer.prepare(request, { signal, knows: notes.targetKnows });
    while (!reached(status, 'prepared')) {
      if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
      context.waiting(
        `${peer.name} is preparing${status.reason ? `: ${status.reason}` : ''}`,
        status.nextAction ?? 'Nothing to do; the machine still runs here.',
      );
      await tools.clock.sleep(25, signal);
      status = await peer.status(runId, { signal });
      advanced(`answers of ${peer.name}`);
    }
  },
  async undo(tools, { runId, signal, notes: { target, override } }) {
    // Best effort on purpose: the target was never told that the volume is its own, it asks for this run
    // itself, and it forgets when it hears that the run was undone. A target that is dead, or no peer any
    // more, must not keep the machine locked.
    const status = await peerOf(tools, target)
      ?.cancel(runId, { signal })
      .catch(() => null);
    // What an operator took back was made sure of before anything was undone.
    if (status && reached(status, 'activated') && override === undefined) {
      throw new GodwitError(
        'MIGRATION_ALREADY_ACTIVATED',
        `${target} has opened the volume although this run is being undone`,
        {
          values: { runId, target: target ?? null },
          nextAction:
            'Stop the machine on one of the two workers and compare; then report it: this must not happen.',
        },
      );
    }
  },
});

function prepareRequest(
  { worker }: OutTools,
  runId: string,
  { rekey }: MigrateOutInput,
  { subject, source }: Pick<OutNotes, 'subject' | 'source'>,
): PrepareRequest {
  const { volume, ailing } = subject;
  return {
    runId,
    sourceWorker: worker.name,
    sourceUrl: worker.url,
    machineId: subject.machineId,
    machineName: subject.machineName,
    config: subject.config,
    placement: subject.placement,
    startMachine: subject.running,
    ...(ailing !== undefined && { ailing }),
    volume: volume && {
      volumeId: volume.volumeId,
      name: volume.name,
      lengthBytes: volume.lengthBytes,
      filesystem: volume.filesystem,
      sealedGeneration: volume.generation,
      ...(volume.encryption && {
        encryption: { ...volume.encryption, ...(rekey && { rekey: true }) },
      }),
      source: source!,
    },
  };
}

export const sync = outStep({
  ...{ name: 'sync', phase: 'before-stop', waitsFor: 'godwit', answersAdvance: true },
  ...OUT_PATIENCE.beforeStop,
  needs: ['subject', 'target'],
  gives: ['warmedRegions', 'stopStartedAtMs'],
  async do(tools, context) {
    const { subject, target } = context.notes;
    const { machineId } = context.input;
    let warmedRegions = 0;
    if (subject.running) {
      await tools.source.syncEarly(machineId);
      if (subject.volume) warmedRegions = await warm(tools, target, machineId, context);
    }
    return { warmedRegions, stopStartedAtMs: tools.times.nowMs(context.runId) };
  },
});

/**
 * The target brings what the machine reads at its boot before it asks. A hint: nothing is lost when it does
 * not arrive.
 */
async function warm(tools: OutTools, target: string, machineId: string, context: Waiting): Promise<number> {
  const signal = AbortSignal.any([context.signal, deadline(tools.clock, PATIENCE.warm.ms)]);
  try {
    const heat = await tools.source.heat(machineId);
    await targetOf(tools, target).warm(context.runId, heat, { signal });
    return heat.regions.length;
  } catch {
    context.signal.throwIfAborted();
    return 0;
  }
}
