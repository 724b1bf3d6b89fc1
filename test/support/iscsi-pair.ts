import type { TestContext } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import {
  type ExportOptions,
  type InitiatorOptions,
  type IscsiGrant,
  IscsiInitiator,
  IscsiTarget,
  type TargetExport,
  type TargetLimits,
} from '../../src/iscsi/index.ts';

export const TARGET_IQN = 'iqn.2026-01.dev.godwit:volume-1';
export const INITIATOR_IQN = 'iqn.2026-01.dev.godwit:worker-2';
export const GRANT: IscsiGrant = {
  initiatorIqn: INITIATOR_IQN,
  chap: { user: 'worker-2', secret: 'correct horse' },
  generation: 3,
};

/** A target on a port of its own with one export and one grant; gone after the test. */
export async function startTarget(
  t: TestContext,
  device: BlockDevice,
  options: {
    share?: Partial<ExportOptions>;
    grant?: Partial<IscsiGrant>;
    limits?: Partial<TargetLimits>;
    port?: number;
    clock?: Clock;
  } = {},
): Promise<{ target: IscsiTarget; share: TargetExport }> {
  const target = await IscsiTarget.listen({
    host: '127.0.0.1',
    port: options.port ?? 0,
    clock: options.clock ?? systemClock,
    random: systemRandom,
    logger: silentLogger,
    limits: { loginDelayMs: 1, ...options.limits },
  });
  t.after(() => target.close());
  const share = target.addExport({
    targetIqn: TARGET_IQN,
    device,
    serial: 'volume-1',
    generation: 3,
    readOnly: !device.writable,
    ...options.share,
  });
  share.grant({ ...GRANT, ...options.grant });
  return { target, share };
}

export function initiatorOptions(port: number, options: Partial<InitiatorOptions> = {}): InitiatorOptions {
  return {
    portals: [{ host: '127.0.0.1', port }],
    targetIqn: TARGET_IQN,
    initiatorIqn: INITIATOR_IQN,
    chap: GRANT.chap,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
    readOnly: false,
    backoffMs: 5,
    backoffMsMax: 50,
    ...options,
  };
}

/** An initiator that is logged in; closed after the test. */
export async function startInitiator(
  t: TestContext,
  port: number,
  options: Partial<InitiatorOptions> = {},
): Promise<IscsiInitiator> {
  const initiator = await IscsiInitiator.connect(initiatorOptions(port, options));
  t.after(() => initiator.close());
  return initiator;
}
