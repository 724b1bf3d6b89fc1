import { GodwitError } from '../base/errors.ts';
import { type ConnectWait, RemoteDisk } from '../remote/remote-disk.ts';
import { type InitiatorOptions, IscsiDialect } from './initiator-dialect.ts';
import type { ScsiCommand } from './initiator-session.ts';
import type { Unit } from './initiator-unit.ts';

const DEFAULTS = {
  lun: 0,
  digests: false,
  transferBytesMax: 1024 * 1024,
  keepAliveIntervalMs: 3_000,
  keepAliveTimeoutMs: 5_000,
};
const LOGIN_TIMEOUT_MS = 10_000;

/** A logical unit of an iSCSI target as a block device. */
export class IscsiInitiator extends RemoteDisk<Unit, ScsiCommand> {
  private constructor(options: InitiatorOptions) {
    if (options.chap?.mutual !== undefined && options.chap.mutual.secret === options.chap.secret) {
      // Whoever answers there could send our own challenge to us and have the answer.
      throw new GodwitError('ISCSI_BAD_GRANT', 'The two directions of mutual CHAP must not share a secret', {
        values: { initiatorIqn: options.initiatorIqn },
        nextAction: 'Make another secret for one of them.',
      });
    }
    const { chap = null, expected = null, loginTimeoutMs: connectTimeoutMs = LOGIN_TIMEOUT_MS } = options;
    const logger = options.logger.child({ targetIqn: options.targetIqn });
    const dialect = new IscsiDialect({ ...DEFAULTS, ...options, chap, expected, logger });
    super(dialect, { ...options, logger, connectTimeoutMs, expected });
  }

  /**
   * Resolves once the unit is there and checked. Network errors are tried again for `timeoutMs` (default 30
   * s) or until `signal`; a refusal rejects at once.
   */
  static async connect(options: InitiatorOptions, wait: ConnectWait = {}): Promise<IscsiInitiator> {
    return new IscsiInitiator(options).connected(wait);
  }

  /**
   * A device at once, connected in the background: for whoever knows what the unit is and has to come up
   * while it is away. Reads wait for it.
   */
  static open(options: InitiatorOptions & { expected: { lengthBytes: number } }): IscsiInitiator {
    return new IscsiInitiator(options).start();
  }
}
