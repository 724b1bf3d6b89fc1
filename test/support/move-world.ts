import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { GodwitError } from '../../src/base/errors.ts';
import {
  argumentsOf,
  asking,
  type CallOptions,
  type Endpoint,
  type Request,
} from '../../src/contract/endpoint.ts';
import {
  type MoveAnswers,
  type Offer,
  PEER,
  type Peer,
  type PrepareRequest,
  type TargetStatus,
  VOLUME_QUESTIONS,
} from '../../src/contract/peer.ts';
import type { MoveSubject, SourceSide } from '../../src/migration/source-side.ts';
import type { TargetSide } from '../../src/migration/target-side.ts';
import type { VolumeQuestions } from '../../src/migration/volume-questions.ts';
import type { SourceSpec } from '../../src/opening/spec.ts';
import { RootHash } from '../../src/receipt/root.ts';
import { unasked } from './unasked.ts';

/**
 * Two hosts and one machine as a model: what the journal's checks and the kill tests run the two runs of a
 * move against. Every change checks the invariant that matters most: at no time can both hosts write the
 * volume, and a machine runs on one of them at most.
 */
export class MoveWorld {
  readonly source = {
    owned: true,
    claimedBy: null as string | null,
    running: true,
    attached: true,
    volume: { state: 'ready' as 'ready' | 'sealed' | 'retained', generation: 1 },
    exported: null as null | 'standby' | 'open',
  };
  readonly target = {
    owned: false,
    running: false,
    volume: null as null | { state: 'incoming' | 'clone' | 'ready'; generation: number },
    attached: null as null | 'standby' | 'writable',
  };
  /** False: every call from one worker to the other fails before it is delivered. */
  connected = true;
  accepts = true;
  /** Before each call of the source. */
  onCall: (call: string) => void = () => {};
  /** The free map of the handoff arrived before the volume was opened. */
  keptFreeMap = false;
  /** What the source has of the one block that came, and what came; '' was fetched again. */
  readonly sourceDigest = 'a'.repeat(64);
  fetchLog = ['a'.repeat(64)];
  /** False: what comes again is as wrong as what came. */
  mendable = true;
  /** Calls of the hosts, for finding out what happened. */
  readonly calls: string[] = [];

  readonly subject: MoveSubject = {
    machineId: 'm_1',
    machineName: 'db',
    config: {
      command: ['true'],
      env: {},
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 1000 },
      resources: {},
      network: 'host',
      metadata: {},
    },
    running: true,
    placement: {
      machineId: 'm_1',
      machineName: 'db',
      group: null,
      memoryBytes: 0,
      cpus: 0,
      volumeLengthBytes: 2 ** 20,
      volumeUsedBytes: 4096,
    },
    volume: {
      volumeId: 'v_1',
      name: 'db',
      lengthBytes: 2 ** 20,
      usedBytes: 4096,
      filesystem: 'ext4',
      generation: 1,
    },
  };

  #changed(call: string): void {
    this.calls.push(call);
    const sourceWrites = this.source.attached && this.source.volume.state === 'ready';
    const targetWrites = this.target.attached === 'writable';
    assert.ok(!(sourceWrites && targetWrites), `two writers after ${this.calls.join(', ')}`);
    assert.ok(!(this.source.running && this.target.running), `two machines after ${this.calls.join(', ')}`);
    assert.ok(
      this.source.exported !== 'open' || this.source.volume.state !== 'ready',
      `blocks of an unsealed volume are readable after ${this.calls.join(', ')}`,
    );
  }

  /** As before the move, possibly with a generation burnt. */
  assertUndone(): void {
    assert.equal(this.source.owned, true);
    assert.equal(this.source.claimedBy, null);
    assert.equal(this.source.running, true);
    assert.equal(this.source.attached, true);
    assert.equal(this.source.volume.state, 'ready');
    assert.equal(this.source.exported, null);
    assert.equal(this.target.running, false);
    assert.notEqual(this.target.attached, 'writable');
  }

  /** The target has cleaned up after a move that was undone. */
  assertTargetClean(): void {
    assert.deepEqual({ ...this.target }, { owned: false, running: false, volume: null, attached: null });
  }

  assertMoved(): void {
    assert.equal(this.source.owned, false);
    assert.equal(this.source.running, false);
    assert.equal(this.source.attached, false);
    assert.equal(this.source.volume.state, 'retained');
    assert.equal(this.source.exported, null);
    assert.equal(this.target.owned, true);
    assert.equal(this.target.running, true);
    assert.equal(this.target.attached, 'writable');
    assert.deepEqual(this.target.volume, { state: 'ready', generation: 2 });
  }

  /** The hint that the target got, if any. */
  warmed: readonly number[] | null = null;

  readonly sourceSide: SourceSide = {
    describe: async () => structuredClone(this.subject),
    claim: async (_machineId, runId) => {
      this.source.claimedBy = runId;
      this.#changed('claim');
    },
    openExport: async (_runId, _subject, _targetWorker, known) => {
      this.source.exported ??= 'standby';
      this.#changed('openExport');
      return known ?? SOURCE_SPEC;
    },
    releaseExport: async () => {
      assert.notEqual(this.source.volume.state, 'ready', 'only a sealed volume is opened for reading');
      if (this.source.exported === null)
        throw new GodwitError('WORKER_EXPORT_GONE', 'its shim has ended', { nextAction: 'open it again' });
      this.source.exported = 'open';
      this.#changed('releaseExport');
    },
    closeExport: async () => {
      this.source.exported = null;
      this.#changed('closeExport');
    },
    heat: async () => ({ regions: [3, 1] }),
    syncEarly: async () => this.#changed('sync'),
    stuck: async () => null,
    stop: async () => {
      this.source.running = false;
      this.#changed('stop');
    },
    seal: async () => {
      assert.equal(this.source.running, false, 'sealed under a running machine');
      if (this.source.volume.state === 'ready') this.source.volume.state = 'sealed';
      this.#changed('seal');
      return { unusedBytes: 4096, reason: null };
    },
    freeMap: async () => 'bWFw',
    bytesAvoided: async () => 4096,
    // The model's volume is one MiB of which one block came.
    digests: async (_runId, ranges) => {
      assert.equal(this.source.exported, 'open', 'digests are of an export that may be read');
      return ranges.map(() => this.sourceDigest);
    },
    owed: async () => ({ ranges: [], next: null }),
    stated: async () => ({
      ranges: [{ first: 0, blocks: 1, digest: this.sourceDigest }],
      ...{ next: null, mapped: true },
    }),
    unseal: async () => {
      if (this.source.volume.state === 'sealed') {
        this.source.attached = false;
        this.source.volume = { state: 'ready', generation: this.source.volume.generation + 2 };
      }
      this.#changed('unseal');
    },
    start: async () => {
      assert.equal(this.source.volume.state, 'ready', 'started on a sealed volume');
      this.source.owned = true;
      this.source.attached = true;
      this.source.running = true;
      this.#changed('start');
    },
    detach: async () => {
      this.source.attached = false;
      this.source.owned = false;
      this.#changed('detach');
    },
    retain: async () => {
      this.source.volume.state = 'retained';
      this.#changed('retain');
    },
  };

  readonly targetSide: TargetSide = {
    offer: async () => this.offer(),
    createVolume: async (request) => {
      this.target.volume ??= { state: 'incoming', generation: request.volume!.sealedGeneration + 1 };
      this.#changed('createVolume');
    },
    destroyVolume: async () => {
      this.target.volume = null;
      this.#changed('destroyVolume');
    },
    standDown: async () => {
      this.target.running = false;
      this.#changed('standDown');
    },
    volumeState: async (_volumeId, generation) => {
      const { volume } = this.target;
      if (volume === null || volume.generation < generation) return 'absent';
      return volume.state === 'incoming' ? 'waits' : 'opened';
    },
    attachStandby: async () => {
      this.target.attached ??= 'standby';
      this.#changed('attachStandby');
    },
    warm: async (_request, { regions }) => {
      assert.equal(this.target.attached, 'standby');
      this.warmed = regions;
    },
    detach: async () => {
      this.target.attached = null;
      this.#changed('target detach');
    },
    keepFreeMap: async (_request, freeMap) => {
      assert.equal(freeMap, 'bWFw');
      assert.notEqual(this.target.attached, 'writable', 'the free map comes before the volume is open');
      this.keptFreeMap = true;
      this.#changed('keepFreeMap');
    },
    activate: async () => {
      assert.ok(this.target.volume, 'activated without a volume');
      assert.equal(this.source.volume.state, 'sealed', 'activated before the seal');
      this.target.volume.state = 'clone';
      this.target.attached = 'writable';
      this.#changed('activate');
    },
    boot: async (_request, onMounted) => {
      assert.equal(this.target.attached, 'writable');
      onMounted();
      this.target.owned = true;
      this.target.running = true;
      this.#changed('boot');
    },
    awaitHealthy: async () => {},
    ailment: async () => null,
    hydrate: async () => {},
    settle: async () => {},
    hydration: async () =>
      this.target.volume?.state === 'ready' || this.source.exported === 'open' ? HYDRATED : null,
    freeMapDigest: async () => createHash('sha256').update(Buffer.from('bWFw', 'base64')).digest('hex'),
    ...unasked<VolumeQuestions<PrepareRequest>>(VOLUME_QUESTIONS),
    fetched: async (_request, { cursor }) => {
      const ranges = this.fetchLog
        .map((digest, position) => ({ position, first: 0, blocks: 1, digest, stored: 'same' as const }))
        .filter(({ position, digest }) => position >= cursor && digest !== '');
      return { ranges, next: this.fetchLog.length, ended: true };
    },
    unfetched: async () => ({ ranges: [{ first: 1, blocks: 255 }], next: null }),
    mend: async (_request, { ranges }) => {
      for (const { position } of ranges) {
        if (!this.mendable) continue;
        this.fetchLog[position!] = '';
        this.fetchLog.push(this.sourceDigest);
      }
      return { results: ranges.map(() => ({ mended: this.mendable, storedBytes: 4096, leftBytes: 0 })) };
    },
    figures: async (_request, { freeMapDigest }) => {
      const root = new RootHash(2 ** 20, freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex'));
      const digests = this.fetchLog.filter((digest) => digest !== '');
      for (const digest of digests) root.add({ first: 0, blocks: 1, digest: Buffer.from(digest, 'hex') });
      return {
        root: root.hex(),
        ranges: digests.length,
        comparedBytes: digests.length * 4096,
        fetchedBytes: 4096,
      };
    },
    finish: async () => {
      if (this.target.volume) this.target.volume.state = 'ready';
      this.#changed('finish');
    },
    sourceRun: async () => {
      this.assertConnected();
      return this.sourceRunState();
    },
  };

  /** Set by the test: how the source's journal answers. */
  sourceRunState: () => { state: string } | null = () => ({ state: 'running' });

  offer(): Offer {
    return {
      worker: 'w2',
      accepted: this.accepts,
      reason: this.accepts ? 'room' : 'memory: full',
      score: this.accepts ? 1 : 0,
      freeMemoryBytes: 1,
      freeCpus: 1,
      freeDiskBytes: 1,
      groupMembers: 0,
    };
  }

  assertConnected(): void {
    if (!this.connected) throw unreachable(false);
  }

  /** The target as the source sees it; `lose` says whether a call that was carried out gets no answer. */
  peer(targetAnswers: () => MoveAnswers, lose: (call: string) => boolean = () => false): ModelPeer {
    const call = async <Result>(name: string, act: () => Promise<Result>): Promise<Result> => {
      this.onCall(name);
      this.assertConnected();
      const result = await act();
      if (lose(name)) throw unreachable('unknown');
      return result;
    };
    const part = { offer: async () => this.offer(), volumeHeader: async () => '', run: async () => null };
    return new ModelPeer((name, args) => {
      const answers = (name in part ? part : targetAnswers()) as Record<string, ModelAnswer>;
      return name === 'run' ? part.run() : call(name, () => answers[name]!(...args));
    });
  }
}

export type ModelAnswer = (...args: unknown[]) => Promise<unknown>;

/** A peer without a wire. `answer` may be another one later. */
export class ModelPeer extends asking(PEER) implements Peer {
  name = 'w2';
  readonly url = 'model:';
  answer: (name: string, args: unknown[], options: CallOptions) => Promise<unknown>;

  constructor(answer: ModelPeer['answer']) {
    super();
    this.answer = answer;
  }

  override call(name: string, endpoint: Endpoint, request: Request, options: CallOptions): Promise<unknown> {
    const { parameters, query, body } = request;
    return this.answer(name, argumentsOf(endpoint, { parameters, query, body }), options);
  }
}

function unreachable(delivered: false | 'unknown'): GodwitError {
  return new GodwitError('API_UNREACHABLE', 'connection refused', {
    values: { delivered },
    nextAction: 'wait',
  });
}

const SOURCE_SPEC: SourceSpec = {
  host: '127.0.0.1',
  port: 3260,
  targetIqn: 'iqn.2024-07.example:v_1',
  lun: 0,
  initiatorIqn: 'iqn.2024-07.example:w2',
  chapUser: 'move',
  chapSecret: 'a secret of twelve',
};

const HYDRATED: NonNullable<TargetStatus['hydration']> = {
  state: 'complete',
  totalBytes: 2 ** 20,
  presentBytes: 2 ** 20,
  exposedBytes: 0,
  wireBytes: 4096,
  blocksFetchedTwice: 0,
  bytesPerSecond: 0,
  etaMs: 0,
};
