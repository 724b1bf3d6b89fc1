/** Line-JSON (base/line-rpc.ts) over TCP. */
export const AGENT_PORT = 7000;

export type CommandResult = {
  /** Null: it could not be started, or was ended by a signal. */
  exitCode: number | null;
  stdout: string;
  stderr: string;
  timedOut: boolean;
};

export type AgentOps = {
  run: { args: { argv: readonly string[]; input?: string; timeoutMs: number }; result: CommandResult };
  /** Goes on after the connection has ended. */
  spawn: {
    args: { argv: readonly string[]; logPath: string; env?: Record<string, string> };
    result: { pid: number };
  };
  kill: { args: { pid: number; signal: string }; result: Record<string, never> };
  /** Whether something takes a TCP connection there. */
  reaches: {
    args: { host: string; port: number; timeoutMs: number };
    result: { reached: boolean };
  };
  readFile: { args: { path: string }; result: { text: string } };
  writeFile: { args: { path: string; text: string; mode?: number }; result: Record<string, never> };
};
