import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { replaceFile } from '../sys/durable-file.ts';
import { failedError, type ToolOutput, type Tools, unknownOutputError } from './tools.ts';

/** A source as the kernel's initiator logs in to it. */
export type IscsiLogin = {
  targetIqn: string;
  host: string;
  port: number;
  initiatorIqn: string;
  chapUser: string;
  chapSecret: string;
};

export type IscsiSession = { sessionId: number; host: string; port: number; targetIqn: string };

/** Exit codes of iscsiadm(8). */
const EXIT = { sessionExists: 15, noRecords: 21, noDaemon: 20 } as const;
/** Of every export of godwit. Named, so that the place of the record is known. */
const PORTAL_GROUP = 1;
const LOGIN_DEADLINE_MS = PATIENCE.kernelLogin.ms;
const DISK_TIMEOUT_MS = PATIENCE.kernelDisk.ms;
const DISK_POLL_MS = 20;

export type IscsiadmOptions = {
  tools: Tools;
  clock: Clock;
  /** Where open-iscsi keeps its records. Debian: /etc/iscsi; others: /var/lib/iscsi. */
  databaseDir: string;
  /** /sys/class/iscsi_session. */
  sysfsDir: string;
};

/** The first that is there. */
export const DATABASE_DIRS = ['/etc/iscsi', '/var/lib/iscsi'] as const;
export const SESSION_DIR = '/sys/class/iscsi_session';

/**
 * The kernel's iSCSI initiator by open-iscsi. Every login has an interface record of its own (iscsiadm(8),
 * `-m iface`), so that it goes out under the initiator name that its grant is for. Disks are not looked for
 * at the login but by `rescan`: a source that stands by has none yet, or answers no read.
 *
 * While the source is away, I/O waits for as long as it takes (`replacement_timeout` -1): a machine sees a
 * pause, never an error.
 *
 * Rejects `HOST_ISCSI_NO_DAEMON` where iscsid does not run, `HOST_ISCSI_LOGIN_REFUSED`, `HOST_TOOL_*`.
 */
export class Iscsiadm {
  readonly #options: IscsiadmOptions;

  constructor(options: IscsiadmOptions) {
    this.#options = options;
  }

  /** Logs in, or finds the session that is there. */
  async login(login: IscsiLogin): Promise<IscsiSession> {
    const present = await this.session(login.targetIqn);
    if (present) return present;
    await this.#makeRecord(login);
    const output = await this.#run([...this.#node(login), '--login'], LOGIN_DEADLINE_MS);
    if (output.exitCode !== 0 && output.exitCode !== EXIT.sessionExists) throw this.#failure(login, output);
    const session = await this.session(login.targetIqn);
    if (session) return session;
    throw unknownOutputError('iscsiadm', 'a login that made no session', output.stdout);
  }

  /** Null: there is none. */
  async session(targetIqn: string): Promise<IscsiSession | null> {
    return (await this.sessions()).find((session) => session.targetIqn === targetIqn) ?? null;
  }

  async sessions(): Promise<IscsiSession[]> {
    const output = await this.#run(['iscsiadm', '-m', 'session']);
    if (output.exitCode === EXIT.noRecords) return [];
    if (output.exitCode !== 0) throw failedError(['iscsiadm', '-m', 'session'], output);
    return parseSessions(output.stdout);
  }

  /** Looks for the one disk of a session: its path, `/dev/sda`. Rejects `HOST_ISCSI_NO_DISK`. */
  async disk(session: IscsiSession): Promise<string> {
    const { clock } = this.#options;
    const deadlineMs = clock.monotonicMs() + DISK_TIMEOUT_MS;
    const argv = ['iscsiadm', '-m', 'session', '-r', String(session.sessionId), '--rescan'] as const;
    for (let looks = 0; ; looks++) {
      const found = await this.#findDisk(session.sessionId);
      if (found !== null) return found;
      // A rescan that came before the disk was shown has seen nothing: asked again now and then.
      if (looks % 25 === 0) {
        const output = await this.#run(argv);
        if (output.exitCode !== 0) throw failedError(argv, output);
      }
      if (clock.monotonicMs() >= deadlineMs) {
        throw new GodwitError('HOST_ISCSI_NO_DISK', `the source ${session.targetIqn} shows no disk`, {
          values: { targetIqn: session.targetIqn, host: session.host, port: session.port },
          nextAction: 'Look at the export of the source worker; the move goes on when it is there.',
        });
      }
      await clock.sleep(DISK_POLL_MS);
    }
  }

  /** Ends the session and removes its records; nothing to do where there is none. */
  async logout(login: Pick<IscsiLogin, 'targetIqn' | 'host' | 'port' | 'initiatorIqn'>): Promise<void> {
    if (await this.session(login.targetIqn)) {
      const argv = ['iscsiadm', '-m', 'node', '-T', login.targetIqn, '--logout'] as const;
      const output = await this.#run(argv, LOGIN_DEADLINE_MS);
      if (output.exitCode !== 0 && output.exitCode !== EXIT.noRecords) throw failedError(argv, output);
    }
    await this.#run(['iscsiadm', '-m', 'node', '-T', login.targetIqn, '-o', 'delete']);
    await this.#run(['iscsiadm', '-m', 'iface', '-I', interfaceName(login.initiatorIqn), '-o', 'delete']);
  }

  /** `RUNNING`, `FAILED` or `FREE` as the kernel has it (iscsi_session_state_name); null: no such session. */
  async state(session: IscsiSession): Promise<string | null> {
    const path = join(this.#options.sysfsDir, `session${session.sessionId}`, 'state');
    return readFile(path, 'utf8').then(
      (text) => text.trim(),
      () => null,
    );
  }

  async #makeRecord(login: IscsiLogin): Promise<void> {
    const name = interfaceName(login.initiatorIqn);
    const made = await this.#run(['iscsiadm', '-m', 'iface', '-I', name, '-o', 'new']);
    // Exit code 15: it is there from an attempt before.
    if (made.exitCode !== 0 && made.exitCode !== EXIT.sessionExists)
      throw failedError(['iscsiadm', '-m', 'iface', '-I', name, '-o', 'new'], made);
    await this.#must([
      ...['iscsiadm', '-m', 'iface', '-I', name, '-o', 'update'],
      ...['-n', 'iface.initiatorname', '-v', login.initiatorIqn],
    ]);
    await this.#must([...this.#node(login), '-o', 'new']);
    // Into the file, and not by `-o update`: arguments are in the process list.
    await this.#writeSettings(login, {
      'node.startup': 'manual',
      'node.session.scan': 'manual',
      'node.session.auth.authmethod': 'CHAP',
      'node.session.auth.username': login.chapUser,
      'node.session.auth.password': login.chapSecret,
      'node.session.timeo.replacement_timeout': '-1',
      'node.session.initial_login_retry_max': '4',
      'node.conn[0].timeo.login_timeout': '10',
      'node.conn[0].timeo.noop_out_interval': '5',
      'node.conn[0].timeo.noop_out_timeout': '5',
    });
  }

  async #writeSettings(login: IscsiLogin, settings: Readonly<Record<string, string>>): Promise<void> {
    const folder = join(this.#options.databaseDir, 'nodes', login.targetIqn);
    const path = join(
      folder,
      `${login.host},${login.port},${PORTAL_GROUP}`,
      interfaceName(login.initiatorIqn),
    );
    const text = withSettings(await readFile(path, 'utf8'), settings);
    await replaceFile(path, text);
  }

  async #findDisk(sessionId: number): Promise<string | null> {
    const device = join(this.#options.sysfsDir, `session${sessionId}`, 'device');
    const targets = (await names(device)).filter((name) => name.startsWith('target'));
    for (const target of targets) {
      for (const unit of (await names(join(device, target))).filter((name) => /^\d+:\d+:\d+:0$/.test(name))) {
        const [disk] = await names(join(device, target, unit, 'block'));
        if (disk !== undefined) return `/dev/${disk}`;
      }
    }
    return null;
  }

  #node(login: IscsiLogin): [string, ...string[]] {
    return [
      ...(['iscsiadm', '-m', 'node', '-T', login.targetIqn] as const),
      ...['-p', `${login.host}:${login.port},${PORTAL_GROUP}`, '-I', interfaceName(login.initiatorIqn)],
    ];
  }

  async #must(argv: readonly [string, ...string[]] | string[]): Promise<void> {
    const output = await this.#run(argv as [string, ...string[]]);
    if (output.exitCode !== 0) throw failedError(argv as [string, ...string[]], output);
  }

  async #run(argv: readonly [string, ...string[]], deadlineMs?: number): Promise<ToolOutput> {
    const output = await this.#options.tools.run(argv, deadlineMs === undefined ? {} : { deadlineMs });
    if (output.exitCode === EXIT.noDaemon || /can not connect to iSCSI daemon/.test(output.stderr)) {
      throw new GodwitError('HOST_ISCSI_NO_DAEMON', 'iscsid does not run on this host', {
        retry: 'never',
        nextAction: 'Start it (systemctl start iscsid).',
      });
    }
    return output;
  }

  #failure(login: IscsiLogin, output: ToolOutput): GodwitError {
    const said = output.stderr.trim().split('\n').at(-1) ?? '';
    return new GodwitError('HOST_ISCSI_LOGIN_REFUSED', `no login at ${login.host}:${login.port}: ${said}`, {
      values: { targetIqn: login.targetIqn, host: login.host, port: login.port, exitCode: output.exitCode },
      nextAction:
        output.exitCode === 24
          ? 'The source does not know this grant: it is for one worker and one generation. Start the move again.'
          : 'Look at the source worker and at the network to it.',
    });
  }
}

/** `tcp: [3] 10.77.0.1:3260,1 iqn.2026-11.dev.godwit:v (non-flash)` a line. Throws `HOST_UNKNOWN_OUTPUT`. */
export function parseSessions(text: string): IscsiSession[] {
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => {
      const match = /^\w+: \[(\d+)\] (\[[0-9a-fA-F:.]+\]|[^\s:]+):(\d+),-?\d+ (\S+)(?: \(.*\))?$/.exec(
        line.trim(),
      );
      if (!match) throw unknownOutputError('iscsiadm', 'a session', line);
      return {
        sessionId: Number(match[1]),
        host: match[2]!.replace(/^\[|\]$/g, ''),
        port: Number(match[3]),
        targetIqn: match[4]!,
      };
    });
}

/** A record of open-iscsi (`name = value` lines between two comments) with other values for some names. */
export function withSettings(text: string, settings: Readonly<Record<string, string>>): string {
  const kept = text.split('\n').filter((line) => {
    const name = /^([^#=\s]+)\s*=/.exec(line)?.[1];
    return line !== '' && (name === undefined || !Object.hasOwn(settings, name));
  });
  const end = kept.findIndex((line) => line.startsWith('# END RECORD'));
  const added = Object.entries(settings).map(([name, value]) => `${name} = ${value}`);
  kept.splice(end === -1 ? kept.length : end, 0, ...added);
  return `${kept.join('\n')}\n`;
}

/** Interface names are names of files: that of the initiator, without the beginning that all have. */
function interfaceName(initiatorIqn: string): string {
  return `godwit-${initiatorIqn.replace(/^iqn\.[^:]*:/, '').replace(/[^A-Za-z0-9.-]/g, '-')}`;
}

async function names(path: string): Promise<string[]> {
  try {
    return (await readdir(path)).sort();
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw error;
  }
}
