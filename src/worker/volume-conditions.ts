import type { VolumeView } from '../contract/schemas.ts';
import type { Condition } from './condition.ts';

const TRANSPORTS = { tls: 'over TLS', tcp: 'in the clear', foreign: 'from a disk of another system' };

/** Whatever else is the matter: nothing of the volume can be read or written. */
export function dataLossConditions({ id, dataLoss }: Pick<VolumeView, 'id' | 'dataLoss'>): Condition[] {
  if (!dataLoss) return [];
  return [
    {
      code: 'volume-data-lost',
      holdsUp: `volume ${id}`,
      message: `the disk of this host lost what was written to the volume (${dataLoss.reason}); all its reads and writes fail, and it cannot move`,
      sinceMs: dataLoss.atMs,
      whoCanClearIt: 'an operator',
      nextAction: `Restore it from a backup or its retained source; or, to go on with what the disk has: stop the machine, godwit volume accept-loss ${id} --yes, start it`,
    },
  ];
}

/** Why it is no volume to be used. */
export function retainedConditions(volume: VolumeView): Condition[] {
  if (volume.state === 'retained') {
    return [
      {
        code: 'volume-retained',
        holdsUp: `volume ${volume.name}`,
        message: 'it has moved; this sealed copy is kept as a way back',
        sinceMs: null,
        whoCanClearIt: 'time: it is destroyed when its retention is over',
        nextAction: `godwit volume recover ${volume.id} --as NAME to have it back; godwit volume destroy ${volume.id} --force to give it up now`,
      },
    ];
  }
  return [];
}

/** A volume that is served, whose shim hangs. `silentForMs`: null, it answers. */
export function servingConditions(
  silentForMs: number | null,
  runtimeDir: string,
  name: string,
  nowMs: number,
): Condition[] {
  if (silentForMs === null) return [];
  return [
    {
      code: 'shim-silent',
      holdsUp: name,
      message: `the process that serves ${name} (its shim) does not answer; its clients may go on`,
      sinceMs: nowMs - silentForMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction: `Look at ${runtimeDir}/shim.log, and whether that process is stopped or waits for a disk.`,
    },
  ];
}

/** Why a volume is not whole. `holdsUp`: it, or its machine. */
export function hydrationConditions(
  hydration: VolumeView['hydration'],
  holdsUp: string,
  nowMs: number,
): Condition[] {
  if (!hydration || hydration.exposedBytes === 0) return [];
  const mebibytes = Math.ceil(hydration.exposedBytes / 2 ** 20);
  if (hydration.state === 'source-lost' && hydration.sourceFails) {
    const there = hydration.transport === 'foreign' ? 'whoever serves the source' : 'the source worker';
    return [
      {
        code: 'source-lost',
        holdsUp,
        message: `the source of its volume answers, and cannot read what is asked for (${hydration.lastError}); ${mebibytes} MiB are only there, and reads of what it cannot read wait`,
        sinceMs: hydration.sourceLostForMs === null ? null : nowMs - hydration.sourceLostForMs,
        whoCanClearIt: `an operator of ${there}`,
        nextAction: `Look at the disk of ${there} (the kernel log of its host): the network is well. What can be read there comes; what is asked for again is read again, and goes on by itself when that disk has it.`,
      },
    ];
  }
  if (hydration.state === 'source-lost') {
    return [
      {
        code: 'source-lost',
        holdsUp,
        message: `the source of its volume does not answer${hydration.lastError ? ` (${hydration.lastError})` : ''}; ${mebibytes} MiB are only there, and reads of them wait`,
        sinceMs: hydration.sourceLostForMs === null ? null : nowMs - hydration.sourceLostForMs,
        whoCanClearIt: hydration.transport === 'foreign' ? 'whoever serves the source' : 'the source worker',
        nextAction: `Bring ${hydration.transport === 'foreign' ? 'it' : 'the source worker'} and its network back: everything goes on by itself.`,
      },
    ];
  }
  return [
    {
      code: hydration.state === 'paused' ? 'hydration-paused' : 'hydrating',
      holdsUp,
      message:
        hydration.state === 'paused'
          ? `hydration is paused${hydration.lastError ? `: ${hydration.lastError}` : ''}; ${mebibytes} MiB are only at the source`
          : `${mebibytes} MiB of its volume are still only at the source, and come ${TRANSPORTS[hydration.transport]}${missesOf(hydration)}${hydration.lastError ? `; the last that went wrong: ${hydration.lastError}` : ''}`,
      sinceMs: null,
      whoCanClearIt: whoBrings(hydration),
      nextAction: hydration.state === 'paused' ? afterPause(hydration.lastError) : 'godwit top',
    },
  ];
}

/** What an operator sees as more bytes over the wire than the volume has. */
function missesOf({ missesKept }: { missesKept: boolean }): string {
  return missesKept
    ? ''
    : '; what is read of them meanwhile is not kept (kernel plane), so it comes again, and misses are not counted';
}

function whoBrings({ state, lastError }: NonNullable<VolumeView['hydration']>): string {
  if (state !== 'paused') return 'time: hydration brings them';
  return lastError === null ? 'its move, which lets it begin' : 'an operator';
}

/**
 * A copy that is paused without an error waits for a move to let it go on, and then for its worker's disk.
 */
function afterPause(lastError: string | null): string {
  if (lastError === null)
    return 'Nothing to do while its move goes on; make room on this worker if its disk is full.';
  return 'Look at the error: it goes on by itself when that is over.';
}
