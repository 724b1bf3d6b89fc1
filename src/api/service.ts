import type { OperatorAnswers } from '../contract/operator.ts';
import type { PeerAnswers } from '../contract/peer.ts';
import type { ApiEvent, ExecStart, LogsQuery } from '../contract/schemas.ts';
import type { ExecSession, SessionOutput } from '../shim/exec-session.ts';

/** What a worker does for its HTTP API; src/worker implements it. */
export interface WorkerService extends OperatorAnswers {
  /** A command whose input and output the caller has in hand. */
  execStream(ref: string, request: ExecStart, onOutput: SessionOutput): Promise<ExecSession>;
  /** The iteration ends at the end of the log, or with `follow` when the signal aborts. */
  machineLogs(ref: string, query: LogsQuery, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>>;
  /** What happens from now on, until the signal aborts. */
  events(signal: AbortSignal): AsyncIterable<ApiEvent>;
  /** Prometheus's text exposition format 0.0.4, at once: of what is known, nobody is asked. */
  metrics(): string;
  /** The calls of another worker. */
  readonly peers: PeerAnswers;
}
