import { readFileSync } from 'node:fs';
import { PATIENCE } from '../base/patience.ts';
import type { HealthCheck, MachineNetwork } from '../contract/machine-config.ts';
import { runProgram } from '../host/program.ts';
import type { Probe, ProbeResult } from '../shim/runtime.ts';

/** What a probe needs to know of the running machine. */
export type ProbeTarget = {
  network: MachineNetwork['kind'];
  /** PID 1 of the machine as the host counts. */
  initPid: number;
  nsenter: string;
  /** Makes the host's command for a command inside the machine. */
  enter: (command: readonly string[]) => { file: string; args: string[] };
};

/** Longest time for which a probe program may run; the monitor's timeout aborts it before. */
const PROGRAM_TIMEOUT_MS = PATIENCE.probe.ms;
const MESSAGE_LENGTH_MAX = 500;

/** The asking side of a health check; thin, decisions are in machine/health.ts. */
export function makeProbe(check: HealthCheck, target: ProbeTarget): Probe {
  switch (check.kind) {
    case 'exec':
      return (signal) => probeExec(target.enter(check.command), signal);
    case 'tcp':
      return target.network === 'host'
        ? (signal) => probeTcp(check.host ?? '127.0.0.1', check.port, signal)
        : async () => probeListening(target.initPid, check.port);
    case 'http':
      return target.network === 'host'
        ? (signal) => probeHttp(check.url, signal)
        : (signal) => probeHttpInside(check.url, target, signal);
  }
}

async function probeExec(
  program: { file: string; args: string[] },
  signal: AbortSignal,
): Promise<ProbeResult> {
  const result = await runProgram(program.file, program.args, {
    timeoutMs: PROGRAM_TIMEOUT_MS,
    outputBytesMax: 4096,
    signal,
  });
  if (result.exitCode === 0) return { ok: true, message: 'the check command succeeded' };
  const output = (result.stderr.trim() || result.stdout.trim()).slice(0, MESSAGE_LENGTH_MAX);
  return {
    ok: false,
    message: `exit code ${result.exitCode ?? result.signal}${output ? `: ${output}` : ''}`,
  };
}

async function probeTcp(host: string, port: number, signal: AbortSignal): Promise<ProbeResult> {
  const { connect } = await import('node:net');
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const end = (result: ProbeResult) => {
      signal.removeEventListener('abort', abort);
      socket.destroy();
      resolve(result);
    };
    const abort = () => end({ ok: false, message: `no connection to ${host}:${port}` });
    socket.once('connect', () => end({ ok: true, message: `connected to ${host}:${port}` }));
    socket.once('error', (error) => end({ ok: false, message: error.message }));
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
}

/**
 * In a network namespace of its own nothing of ours can connect without a program inside. But the kernel
 * completes a connection to a listening socket before the program accepts it, so that a listener in the
 * namespace's own table (/proc/<pid>/net/tcp) is the same finding, for the price of a read.
 */
function probeListening(initPid: number, port: number): ProbeResult {
  const tables = ['tcp', 'tcp6'].map((name) => {
    try {
      return readFileSync(`/proc/${initPid}/net/${name}`, 'utf8');
    } catch {
      return ''; // no IPv6, or the machine has just ended
    }
  });
  const ok = tables.some((table) => listens(table, port));
  return { ok, message: ok ? `port ${port} listens` : `nothing listens on port ${port}` };
}

/**
 * True when /proc/net/tcp or tcp6 has a listener (state 0A) on that port. `sl local_address rem_address st
 * …`, addresses as hex `<ip>:<port>` (proc_net_tcp in the kernel's Documentation/networking).
 */
export function listens(table: string, port: number): boolean {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return table.split('\n').some((line) => {
    const [, local, , state] = line.trim().split(/\s+/);
    return state === '0A' && local?.endsWith(wanted) === true;
  });
}

async function probeHttp(url: string, signal: AbortSignal): Promise<ProbeResult> {
  const { get } = url.startsWith('https:') ? await import('node:https') : await import('node:http');
  return new Promise((resolve) => {
    const request = get(url, { signal, agent: false }, (response) => {
      const status = response.statusCode ?? 0;
      response.destroy();
      resolve({ ok: status >= 200 && status <= 399, message: `HTTP status ${status}` });
    });
    request.once('error', (error) => resolve({ ok: false, message: error.message }));
  });
}

/**
 * The same in a process inside the machine's network; started only once something listens, since a Node costs
 * 50 ms.
 */
async function probeHttpInside(url: string, target: ProbeTarget, signal: AbortSignal): Promise<ProbeResult> {
  const parsed = new URL(url);
  const port = Number(parsed.port || (parsed.protocol === 'https:' ? 443 : 80));
  const listening = probeListening(target.initPid, port);
  if (!listening.ok) return listening;
  const script = `
    const url = process.argv[1];
    require(url.startsWith('https:') ? 'https' : 'http').get(url, { agent: false }, (response) => {
      process.stdout.write('HTTP status ' + response.statusCode);
      process.exitCode = response.statusCode >= 200 && response.statusCode <= 399 ? 0 : 1;
      response.destroy();
    }).on('error', (error) => { process.stderr.write(error.message); process.exitCode = 1; });`;
  const result = await runProgram(
    target.nsenter,
    ['--target', String(target.initPid), '--net', '--', process.execPath, '-e', script, url],
    { timeoutMs: PROGRAM_TIMEOUT_MS, outputBytesMax: 4096, signal },
  );
  return {
    ok: result.exitCode === 0,
    message: (result.stdout || result.stderr).slice(0, MESSAGE_LENGTH_MAX),
  };
}
