import type { WorkerService } from '../../src/api/service.ts';
import { GodwitError } from '../../src/base/errors.ts';
import { type PeerAnswers, type TargetStatus, VOLUME_QUESTIONS } from '../../src/contract/peer.ts';
import type {
  ApiEvent,
  CreateMachineRequest,
  CreateVolumeRequest,
  DrainMachine,
  DrainStatus,
  ExecRequest,
  ExecStart,
  ImportVolumeRequest,
  LogsQuery,
  MachineView,
  MoveRequest,
  Plan,
  ServeReply,
  ServeVolumeRequest,
  VolumeView,
  Why,
  WorkerView,
} from '../../src/contract/schemas.ts';
import type { RunView } from '../../src/journal/run.ts';
import type { VolumeQuestion } from '../../src/migration/volume-questions.ts';
import type { Receipt } from '../../src/receipt/envelope.ts';
import type { ExecSession, SessionEnd, SessionOutput } from '../../src/shim/exec-session.ts';
import { unasked } from './unasked.ts';

/**
 * A worker without a host: machines and volumes are records in memory and a drain advances by one step at
 * every question. For the tests of the server, of the client and of the command line.
 */
export class FakeWorkerService implements WorkerService {
  readonly name: string;
  readonly machines = new Map<string, MachineView>();
  readonly volumes = new Map<string, VolumeView>();
  readonly calls: string[] = [];
  draining: DrainStatus;
  /** What every further question about the drain answers, one after the other; the last one stays. */
  drainScript: DrainStatus[] = [];
  runs: RunView[] = [];
  logText = 'line one\nline two\n';
  eventScript: ApiEvent[] = [];
  #nextId = 1;

  constructor(name: string) {
    this.name = name;
    this.draining = {
      worker: name,
      desired: false,
      sinceMs: null,
      endedAtMs: null,
      state: 'idle',
      machines: [],
    };
  }

  async worker(): Promise<WorkerView> {
    const capacity = { memoryBytes: 8 * 2 ** 30, cpus: 4, diskBytes: 100 * 2 ** 30 };
    return {
      name: this.name,
      url: 'http://127.0.0.1:1',
      version: '0.0.0',
      pid: 1,
      startedAtMs: 1_700_000_000_000,
      keyFingerprint: 'f'.repeat(64),
      draining: this.draining.desired,
      capacity,
      free: capacity,
      machines: this.machines.size,
      volumes: this.volumes.size,
      peers: [],
    };
  }

  async listMachines(): Promise<MachineView[]> {
    return [...this.machines.values()];
  }

  async createMachine(request: CreateMachineRequest): Promise<MachineView> {
    this.calls.push(`createMachine ${JSON.stringify(request)}`);
    for (const machine of this.machines.values()) {
      if (machine.name === request.name) {
        throw new GodwitError('MACHINE_NAME_EXISTS', `there is a machine ${request.name} already`, {
          values: { name: request.name },
          nextAction: 'Choose another name.',
        });
      }
    }
    const machine = machineView({
      id: `m_${this.name.replace('-', '')}${this.#nextId++}`,
      name: request.name,
      worker: this.name,
      config: request.config,
      volumeId: request.config.volume?.volumeId ?? null,
      state: request.start ? 'running' : 'stopped',
    });
    this.machines.set(machine.id, machine);
    return machine;
  }

  async showMachine(ref: string): Promise<MachineView> {
    for (const machine of this.machines.values()) {
      if (machine.id === ref || machine.name === ref) return machine;
    }
    throw new GodwitError('MACHINE_NOT_FOUND', `no machine ${ref} on ${this.name}`, {
      values: { ref },
      nextAction: 'godwit machine list',
    });
  }

  async destroyMachine(ref: string, options: { force: boolean }): Promise<void> {
    const machine = await this.showMachine(ref);
    if (machine.state === 'running' && !options.force) {
      throw new GodwitError('MACHINE_NOT_STOPPED', `${machine.name} runs`, {
        nextAction: `godwit machine stop ${machine.name}, or destroy it with --force`,
      });
    }
    this.machines.delete(machine.id);
  }

  startMachine(ref: string): Promise<MachineView> {
    return this.#setState(ref, 'running');
  }

  stopMachine(ref: string): Promise<MachineView> {
    return this.#setState(ref, 'stopped');
  }

  restartMachine(ref: string): Promise<MachineView> {
    return this.#setState(ref, 'running');
  }

  async #setState(ref: string, state: MachineView['state']): Promise<MachineView> {
    const machine = { ...(await this.showMachine(ref)), state };
    this.machines.set(machine.id, machine);
    return machine;
  }

  async execInMachine(ref: string, request: ExecRequest) {
    await this.showMachine(ref);
    this.calls.push(`exec ${request.command.join(' ')} ${request.timeoutMs}`);
    const exitCode = request.command[0] === 'false' ? 1 : 0;
    return { exitCode, stdout: `${request.command.join(' ')}\n`, stderr: '', timedOut: false };
  }

  /**
   * Says back what is put in, until there is no more; `size` says each size, `fill` writes as long as
   * somebody takes it.
   */
  async execStream(ref: string, request: ExecStart, onOutput: SessionOutput): Promise<ExecSession> {
    await this.showMachine(ref);
    this.calls.push(`session ${JSON.stringify(request)}`);
    const session = new FakeSession(request, onOutput, this.calls);
    this.sessions.push(session);
    return session;
  }
  readonly sessions: FakeSession[] = [];

  async machineLogs(ref: string, query: LogsQuery, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    await this.showMachine(ref);
    const { calls, logText } = this;
    return (async function* () {
      yield Buffer.from(logText);
      if (!query.follow) return;
      await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
      calls.push('log follower left');
    })();
  }

  async moveMachine(ref: string, request: MoveRequest): Promise<RunView> {
    const machine = await this.showMachine(ref);
    const run = runView({
      id: `run${this.#nextId++}`,
      resource: `machine:${machine.id}`,
      input: { target: request.target, chapSecret: 'not to be seen' },
    });
    this.runs.push(run);
    return run;
  }

  async listVolumes(): Promise<VolumeView[]> {
    return [...this.volumes.values()];
  }

  async createVolume(request: CreateVolumeRequest): Promise<VolumeView> {
    const volume: VolumeView = {
      id: `vol_${this.name.replace('-', '')}${this.#nextId++}`,
      name: request.name,
      worker: this.name,
      lengthBytes: request.lengthBytes,
      usedBytes: 1024 * 1024,
      filesystem: request.filesystem,
      encrypted: request.encrypted ?? false,
      generation: 1,
      state: 'ready',
      createdAtMs: 1_700_000_000_000,
      machineId: null,
      hydration: null,
      guest: null,
      served: null,
      destroyAfterMs: null,
    };
    this.volumes.set(volume.id, volume);
    return volume;
  }

  async importVolume(request: ImportVolumeRequest): Promise<VolumeView> {
    this.calls.push(`importVolume ${JSON.stringify(request)}`);
    const { name, filesystem = 'none' } = request;
    const volume = await this.createVolume({ name, filesystem, lengthBytes: 64 * 2 ** 20 });
    volume.state = 'clone';
    return volume;
  }

  async serveVolume(ref: string, request: ServeVolumeRequest): Promise<ServeReply> {
    const volume = await this.showVolume(ref);
    this.calls.push(`serveVolume ${JSON.stringify(request)}`);
    const { writable } = request;
    volume.served = { location: `nbd://127.0.0.1:10809/${volume.name}`, writable, connections: 0 };
    return { location: volume.served.location!, writable, chap: null };
  }

  async stopServing(ref: string): Promise<void> {
    (await this.showVolume(ref)).served = null;
  }

  async showVolume(ref: string): Promise<VolumeView> {
    for (const volume of this.volumes.values()) if (volume.id === ref || volume.name === ref) return volume;
    throw new GodwitError('VOLUME_NOT_FOUND', `no volume ${ref} on ${this.name}`, {
      values: { ref },
      nextAction: 'godwit volume list',
    });
  }

  async destroyVolume(ref: string): Promise<void> {
    this.volumes.delete((await this.showVolume(ref)).id);
  }

  async drainStatus(): Promise<DrainStatus> {
    this.draining = this.drainScript.shift() ?? this.draining;
    return this.draining;
  }

  async drain(): Promise<DrainStatus> {
    this.calls.push('drain');
    this.draining = { ...this.draining, desired: true, state: 'draining' };
    return this.drainStatus();
  }

  async undrain(): Promise<DrainStatus> {
    this.draining = { ...this.draining, desired: false, state: 'idle' };
    return this.draining;
  }

  async plan(): Promise<Plan> {
    return {
      worker: this.name,
      steps: [...this.machines.values()].map((machine, index) => ({
        order: index + 1,
        machineId: machine.id,
        name: machine.name,
        target: 'worker-2',
        reason: 'most free memory',
        predictedInterruptionMs: 400,
        bytes: 5 * 2 ** 20,
        predictedHydrationMs: 100,
      })),
      totalBytes: 5 * 2 ** 20 * this.machines.size,
      predictedFinishMs: 600,
      warnings: [],
    };
  }

  async listRuns(): Promise<RunView[]> {
    return this.runs;
  }

  async showRun(id: string): Promise<RunView> {
    const run = this.runs.find((candidate) => candidate.id === id);
    if (run) return run;
    throw new GodwitError('JOURNAL_UNKNOWN_RUN', `no run ${id} on ${this.name}`, {
      values: { id },
      nextAction: 'godwit runs list --all',
    });
  }

  cancelRun(id: string): Promise<RunView> {
    return this.showRun(id);
  }

  nudgeRun(id: string): Promise<RunView> {
    return this.showRun(id);
  }

  forceRun(id: string): Promise<RunView> {
    return this.showRun(id);
  }

  async why(ref: string): Promise<Why> {
    const machine = await this.showMachine(ref);
    return {
      subject: `machine ${machine.name}`,
      state: machine.state,
      conditions: [
        {
          message: 'no worker has room',
          sinceMs: 1_700_000_000_000,
          whoCanClearIt: 'an operator',
          nextAction: 'godwit undrain worker-2',
        },
      ],
      runs: this.runs,
    };
  }

  metrics(): string {
    return '# HELP fake_total calls\n# TYPE fake_total counter\nfake_total 1\n';
  }

  async *events(signal: AbortSignal): AsyncIterable<ApiEvent> {
    yield* this.eventScript;
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
    this.calls.push('event listener left');
  }

  readonly peers: PeerAnswers = {
    offer: async () => ({
      worker: this.name,
      accepted: true,
      reason: 'has room',
      score: 1,
      freeMemoryBytes: 1,
      freeCpus: 1,
      freeDiskBytes: 1,
      groupMembers: 0,
    }),
    prepare: async ({ runId }) => targetStatus(runId, 'prepared'),
    status: async (runId) => targetStatus(runId, 'prepared'),
    warm: async () => {},
    handoff: async (runId) => targetStatus(runId, 'handed-over'),
    cancel: async (runId) => targetStatus(runId, 'forgotten'),
    ...unasked<Pick<PeerAnswers, VolumeQuestion | 'fit'>>([...VOLUME_QUESTIONS, 'fit']),
    fetched: async () => ({ ranges: [], next: 0, ended: true }),
    unfetched: async () => ({ ranges: [], next: null }),
    mend: async () => ({ results: [] }),
    compare: async () => ({ found: [] }),
    countersign: async (_runId, draft) => draft,
    receipt: async () => this.receipt,
    volumeHeader: async () => 'aGVhZGVy',
    run: async (runId) => (runId === 'known' ? { state: 'running', step: 'stop' } : null),
  };
  receipt: Receipt | null = null;

  async showReceipt(ref: string): Promise<Receipt> {
    if (this.receipt !== null) return this.receipt;
    throw new GodwitError('WORKER_RECEIPT_NOT_FOUND', `no receipt of ${ref}`, { nextAction: 'wait' });
  }

  async acceptLoss(ref: string, request: { atMs: number }): Promise<VolumeView> {
    this.calls.push(`accept-loss ${ref} ${request.atMs}`);
    return this.showVolume(ref);
  }

  async recoverVolume(ref: string, request: { name: string }): Promise<VolumeView> {
    this.calls.push(`recover ${ref} ${request.name}`);
    return this.showVolume(ref);
  }
}

export function machineView(some: Partial<MachineView>): MachineView {
  return {
    id: 'm_1',
    name: 'pg',
    worker: 'worker-1',
    state: 'running',
    health: { state: 'healthy', sinceMs: 1_700_000_000_000, message: '' },
    config: {
      command: ['sleep', '1000'],
      env: {},
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 10_000 },
      resources: {},
      network: 'host',
      metadata: {},
    },
    volumeId: null,
    createdAtMs: 1_700_000_000_000,
    startedAtMs: 1_700_000_000_000,
    pid: 4242,
    restarts: 0,
    move: null,
    hydration: null,
    ...some,
  };
}

export function runView(some: Partial<RunView>): RunView {
  return {
    id: 'run1',
    kind: 'migrate-out',
    resource: 'machine:m_1',
    state: 'running',
    input: {},
    output: {},
    step: 'prepare',
    steps: [
      { name: 'prepare', state: 'running', attempts: 1, startedAtMs: 1_700_000_000_000, endedAtMs: null },
    ],
    pastPointOfNoReturn: false,
    cancelRequested: false,
    reason: null,
    error: null,
    createdAtMs: 1_700_000_000_000,
    endedAtMs: null,
    ...some,
  };
}

export function drainMachine(some: Partial<DrainMachine>): DrainMachine {
  return {
    machineId: 'm_1',
    name: 'pg',
    state: 'queued',
    runId: null,
    target: null,
    phase: null,
    hydratedFraction: null,
    bytesPerSecond: null,
    etaMs: null,
    interruptionMs: null,
    wireBytes: 0,
    volumeBytes: 100 * 2 ** 30,
    usedBytes: 5 * 2 ** 20,
    hydrationMs: null,
    bytesAvoided: null,
    root: null,
    waivedAtMs: null,
    blocksFetchedTwice: 0,
    reason: null,
    nextAction: null,
    ...some,
  };
}

function targetStatus(runId: string, phase: TargetStatus['phase']): TargetStatus {
  return {
    runId,
    phase,
    reason: null,
    nextAction: null,
    timesMs: {
      answered: Date.now(),
      handedOver: null,
      activated: null,
      attached: null,
      booted: null,
      healthy: null,
      hydrated: null,
    },
    hydration: null,
    waivedAtMs: null,
  };
}

/** A command without a machine. */
export class FakeSession implements ExecSession {
  readonly #end = Promise.withResolvers<SessionEnd>();
  readonly ended = this.#end.promise;
  readonly #onOutput: SessionOutput;
  readonly #calls: string[];
  readonly #command: string;
  #isPaused = false;
  /** Input is taken when the test says so. */
  holdsInput = false;
  readonly held: (() => void)[] = [];
  writtenBytes = 0;
  isHungUp = false;

  constructor({ command }: ExecStart, onOutput: SessionOutput, calls: string[]) {
    this.#onOutput = onOutput;
    this.#calls = calls;
    this.#command = command[0]!;
    this.holdsInput = this.#command === 'hold';
    if (this.#command === 'fill') setImmediate(() => this.#fill());
  }

  write(bytes: Uint8Array): Promise<void> {
    if (!this.holdsInput) {
      this.#onOutput('stdout', Buffer.from(bytes));
      return Promise.resolve();
    }
    return new Promise((resolve) => this.held.push(resolve));
  }

  endInput(): void {
    this.#onOutput('stderr', Buffer.from('no more'));
    this.end({ exitCode: 7, signal: null });
  }

  resize({ columns, rows }: { columns: number; rows: number }): void {
    this.#calls.push(`resize ${columns}x${rows}`);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    if (this.#command === 'fill') setImmediate(() => this.#fill());
  }

  hangUp(): void {
    this.isHungUp = true;
    for (const resolve of this.held) resolve();
  }

  end(end: SessionEnd): void {
    this.#end.resolve(end);
  }

  #fill(): void {
    if (this.#isPaused || this.isHungUp) return;
    this.writtenBytes += 65_536;
    this.#onOutput('stdout', Buffer.alloc(65_536, 'x'));
    setImmediate(() => this.#fill());
  }
}
