import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { DeadlineError } from '../../src/api/client.ts';
import type { PeerTransport } from '../../src/api/peer-client.ts';
import { GodwitError, toWireError } from '../../src/base/errors.ts';
import { argumentsOf, type CallOptions, type Endpoint, type Request } from '../../src/contract/endpoint.ts';
import { PEER } from '../../src/contract/peer.ts';
import { type Process, running, type Simulation } from './simulation.ts';

/** Whoever takes calls at a host: its worker process, while it serves. */
export type Listener = { process: Process; answer: (name: string, args: unknown[]) => Promise<unknown> };

export type NetworkFaults = {
  /** Part of the calls that are slow, that break after they were delivered, and that arrive once more, later. */
  slow: number;
  breaks: number;
  again: number;
  /** Of the answers that are lost, and of the stops below, those whose link stays cut from there on. */
  cuts: number;
  /** Of the questions that arrive, but those how it is, those whose worker is stopped for a while right then. */
  stops: number;
};

/** A call whose link is cut is sent again after so long, then twice as long, as TCP does. */
const RETRANSMIT_MS = 300;
const RETRANSMIT_MS_MAX = 5_000;
const AGAIN_MS_MAX = 40_000;
const CUT_MS_MAX = 60_000;
const STOP_MS_MAX = 60_000;
const NAMES = new Map<Endpoint, string>(Object.entries(PEER).map(([name, endpoint]) => [endpoint, name]));
const bodies = new Map(
  Object.values(PEER as Record<string, Endpoint>).flatMap((endpoint) =>
    endpoint.body === undefined ? [] : [[endpoint, Compile(endpoint.body as TSchema)] as const],
  ),
);

/**
 * The links between hosts: each way with a delay of its own, so calls overtake each other; cut for a time;
 * calls that break when the other side has them already, and that come twice, the second time much later.
 */
export class Network {
  readonly #simulation: Simulation;
  readonly #cut = new Set<string>();
  readonly #listeners = new Map<string, Listener>();
  readonly #down = new Set<string>();
  readonly faults: NetworkFaults = { slow: 0.02, breaks: 0.01, again: 0.01, cuts: 0, stops: 0.002 };
  /** Of the questions of that name. */
  readonly faultsOf = new Map<string, NetworkFaults>();

  /** Bugs: of these questions, when the answer is lost, or does not come, it is said that they never arrived. */
  liesOfLost: string | null = null;
  liesOfSilent: string | null = null;

  constructor(simulation: Simulation) {
    this.#simulation = simulation;
  }

  listen(host: string, listener: Listener | null): void {
    if (listener) this.#listeners.set(host, listener);
    else this.#listeners.delete(host);
  }

  /** A host without power answers nothing at all. */
  setDown(host: string, isDown: boolean): void {
    if (isDown) this.#down.add(host);
    else this.#down.delete(host);
  }

  setCut(one: string, other: string, isCut: boolean): void {
    const link = [one, other].sort();
    if (isCut) this.#simulation.troubles.begin('cut', ...link);
    else this.#simulation.troubles.end('cut', ...link);
    for (const way of [`${one}>${other}`, `${other}>${one}`])
      if (isCut) this.#cut.add(way);
      else this.#cut.delete(way);
  }

  isCut(from: string, to: string): boolean {
    return this.#cut.has(`${from}>${to}`) || this.#down.has(to) || this.#down.has(from);
  }

  /** One way, in the process that asks. Waits while the link is cut. */
  async travel(from: string, to: string): Promise<void> {
    const simulation = this.#simulation;
    const slow = simulation.chance(this.faults.slow);
    if (slow) simulation.count('slow messages');
    await simulation.pause(slow ? simulation.between(50, 4_000) : simulation.between(2, 30) / 10);
    for (
      let pauseMs = RETRANSMIT_MS;
      this.isCut(from, to);
      pauseMs = Math.min(2 * pauseMs, RETRANSMIT_MS_MAX)
    )
      await simulation.pause(pauseMs);
  }

  transport(from: string, to: string): PeerTransport {
    return {
      ask: (endpoint, request, options) => this.#ask(from, to, endpoint, request, options),
      healthz: async (options) => this.#ask(from, to, null, null, options ?? {}) as never,
      close: () => {},
    };
  }

  async #ask(
    from: string,
    to: string,
    endpoint: Endpoint | null,
    request: Request | null,
    { signal }: CallOptions,
  ): Promise<unknown> {
    const call = { connected: false, isGivenUp: false };
    const work = this.#exchange(from, to, endpoint, request, call);
    if (signal === undefined) return work;
    work.catch(() => {});
    const ended = Promise.withResolvers<never>();
    const onAbort = () => {
      const { reason } = signal;
      call.isGivenUp = true;
      const delivered = call.connected && this.liesOfSilent !== (endpoint && NAMES.get(endpoint));
      ended.reject(reason instanceof DeadlineError ? unreachable(reason.message, delivered) : reason);
    };
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    return Promise.race([work, ended.promise]).finally(() => signal.removeEventListener('abort', onAbort));
  }

  async #exchange(
    from: string,
    to: string,
    endpoint: Endpoint | null,
    request: Request | null,
    call: { connected: boolean; isGivenUp: boolean },
  ): Promise<unknown> {
    const simulation = this.#simulation;
    await this.travel(from, to);
    const listener = this.#listeners.get(to);
    await this.travel(to, from);
    if (listener === undefined) throw unreachable('connection refused', false);
    // Who has given up before there was a connection sends nothing over it.
    if (call.isGivenUp) throw unreachable('nobody waits for it any more', false);
    call.connected = true;
    await this.travel(from, to);
    const lost = () =>
      unreachable('the connection broke', endpoint === null || NAMES.get(endpoint) !== this.liesOfLost);
    if (!listener.process.alive) {
      await this.travel(to, from);
      throw lost();
    }
    if (endpoint === null || request === null) {
      await onceOn(listener.process);
      await this.travel(to, from);
      return { ok: true };
    }
    const name = NAMES.get(endpoint)!;
    const answer = this.#deliver(from, to, listener, name, endpoint, request);
    const faults = this.faultsOf.get(name) ?? this.faults;
    const breaks = simulation.chance(faults.breaks);
    if (simulation.chance(faults.again)) this.#deliverAgain(from, to, name, endpoint, request);
    if (breaks) {
      simulation.count('calls whose answer was lost');
      simulation.log(`${name} ${from}>${to}: its answer is lost`);
      this.#maybeCut(from, to, faults);
      await this.travel(to, from);
      throw lost();
    }
    const reply = await answer;
    await this.travel(to, from);
    if (reply === DIED) throw lost();
    if ('error' in reply) throw GodwitError.fromWire(reply.error);
    return reply.value;
  }

  #maybeCut(one: string, other: string, { cuts }: NetworkFaults): void {
    if (cuts === 0 || !this.#simulation.chance(cuts)) return;
    this.setCut(one, other, true);
    this.#simulation.world(this.#simulation.between(500, CUT_MS_MAX), () => this.setCut(one, other, false));
  }

  #stop(host: string, process: Process): void {
    const simulation = this.#simulation;
    if (process.isStopped) return;
    simulation.count('workers stopped when a question arrived');
    simulation.log(`${host} is stopped`);
    simulation.troubles.begin('hung', host);
    process.stop();
    process.onEnd(() => simulation.troubles.end('hung', host));
    simulation.world(simulation.between(500, STOP_MS_MAX), () => {
      if (!process.alive) return;
      simulation.log(`${host} goes on`);
      simulation.troubles.end('hung', host);
      process.goOn();
    });
  }

  #deliverAgain(from: string, to: string, name: string, endpoint: Endpoint, request: Request): void {
    const simulation = this.#simulation;
    simulation.count('calls that arrived twice');
    simulation.world(simulation.between(1, AGAIN_MS_MAX), () => {
      const listener = this.#listeners.get(to);
      if (listener?.process.alive && !this.isCut(from, to))
        void this.#deliver(from, to, listener, `${name} (again)`, endpoint, request, name);
    });
  }

  /** What the worker there answers, in its own process; or that it died meanwhile. */
  #deliver(
    from: string,
    to: string,
    listener: Listener,
    label: string,
    endpoint: Endpoint,
    { parameters, query, body }: Request,
    name = label,
  ): Promise<{ value: unknown } | { error: ReturnType<typeof toWireError> } | typeof DIED> {
    const simulation = this.#simulation;
    if (name !== 'status' && name !== 'run')
      simulation.log(`${label} ${from}>${to} ${Object.values(parameters).join(' ')}`);
    const faults = this.faultsOf.get(name) ?? this.faults;
    if (name !== 'status' && name !== 'run' && simulation.chance(faults.stops)) {
      this.#stop(to, listener.process);
      this.#maybeCut(from, to, faults);
    }
    const came = body === undefined ? undefined : (JSON.parse(JSON.stringify(body)) as unknown);
    const check = bodies.get(endpoint);
    if (check && !check.Check(came)) simulation.fail(`${name}: a body that its schema refuses`);
    const { promise, resolve } = Promise.withResolvers<
      { value: unknown } | { error: ReturnType<typeof toWireError> } | typeof DIED
    >();
    const deliver = () =>
      void listener
        .answer(name, argumentsOf(endpoint, { parameters, query, body: came }))
        .then(
          (value) => ({ value: value === undefined ? undefined : JSON.parse(JSON.stringify(value)) }),
          (error: unknown) => ({ error: toWireError(error) }),
        )
        .then(resolve);
    listener.process.whenOn(() => running.run(listener.process, deliver));
    const forget = listener.process.onEnd(() => resolve(DIED));
    void promise.then(forget);
    return promise;
  }
}

/** The kernel takes connections for a process that is stopped; it answers when it goes on, or never. */
function onceOn(process: Process): Promise<void> {
  return new Promise((resolve) => process.whenOn(resolve));
}

const DIED = Symbol('the process died');

function unreachable(reason: string, delivered: boolean): GodwitError {
  return new GodwitError('API_UNREACHABLE', reason, {
    values: { delivered: delivered ? 'unknown' : false },
    nextAction: 'wait',
  });
}
