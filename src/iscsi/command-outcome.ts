import { GodwitError, isGodwitError } from '../base/errors.ts';
import { readOnlyError } from '../block/range.ts';
import type { Failure } from '../remote/dialect.ts';
import { nameOf } from './constants.ts';
import type { InitiatorTask } from './initiator-session.ts';
import { OPERATION } from './scsi/command.ts';
import { describeSense, SENSE, SENSE_KEY, type Sense, STATUS } from './scsi/sense.ts';

/** The answer to a command, as the session has it. */
export type Answer = { status: number; sense: Sense | null; residualBytes: number };

/**
 * What has become of a command. Null: it is done, and every byte of it has moved, as we count and as the
 * target does. Pure.
 */
export function outcomeOf(task: InitiatorTask, answer: Answer, blockBytes: number): Failure | null {
  const { status, sense, residualBytes } = answer;
  if (status === STATUS.good || isRecovered(answer)) {
    const { direction, answers } = task.command;
    if (direction === 'in' && !answers && task.movedBytes !== task.buffer.length) {
      const values = { received: task.movedBytes };
      const error = commandError(task, blockBytes, 'The iSCSI target sent less than was asked for', values);
      return { error, again: 'no' };
    }
    if (direction === 'out' && (task.movedBytes !== task.buffer.length || residualBytes !== 0)) {
      const message = 'The iSCSI target acknowledged a write of which it did not take every byte';
      const values = { taken: task.movedBytes, residual: residualBytes };
      return { error: commandError(task, blockBytes, message, values), again: 'no' };
    }
    return null;
  }
  switch (judge(status, sense)) {
    case 'wait':
      return { error: busyError(task, status, sense), again: 'later', endless: true };
    case 'verify':
      return { error: errorOf(task, blockBytes, status, sense), again: 'afterLook' };
    case 'retry':
      return { error: errorOf(task, blockBytes, status, sense), again: 'now' };
    default:
      return { error: errorOf(task, blockBytes, status, sense), again: 'no' };
  }
}

/** What the target could mend is data: it moved, and is right. */
export function isRecovered({ status, sense }: Answer): boolean {
  return status === STATUS.checkCondition && sense?.key === SENSE_KEY.recoveredError;
}

/**
 * What to do about a command that did not succeed. retry: at once, a bounded number of times. wait: after a
 * pause, for as long as it takes. verify: when the unit has been looked at, a bounded number of times. fail:
 * tell the caller.
 */
export function judge(status: number, sense: Sense | null): 'retry' | 'wait' | 'verify' | 'fail' {
  if (status === STATUS.busy || status === STATUS.taskSetFull) return 'wait';
  if (status === STATUS.taskAborted) return 'retry';
  if (status !== STATUS.checkCondition || sense === null) return 'fail';
  switch (sense.key) {
    case SENSE_KEY.unitAttention:
      return mayBeAnother(sense) ? 'verify' : 'retry';
    case SENSE_KEY.notReady:
      return sense.asc === SENSE.becomingReady.asc ? 'wait' : 'fail';
    case SENSE_KEY.abortedCommand:
      return 'retry';
    case SENSE_KEY.illegalRequest:
      return sense.asc === SENSE.logicalUnitNotSupported.asc ? 'verify' : 'fail';
    default:
      return 'fail';
  }
}

/**
 * Unit attentions after which it may be another disk: power on or reset (29/xx), operating conditions or
 * inquiry data changed (3F/xx), capacity (2A/09).
 */
function mayBeAnother({ asc }: Sense): boolean {
  const code = asc >> 8;
  return (
    code === SENSE.powerOnOrReset.asc >> 8 ||
    code === SENSE.targetOperatingConditionsChanged.asc >> 8 ||
    asc === SENSE.capacityChanged.asc
  );
}

export function busyError(task: InitiatorTask, status: number, sense: Sense | null): GodwitError {
  const why = sense === null ? nameOf(STATUS, status) : describeSense(sense);
  return new GodwitError('ISCSI_TARGET_BUSY', `The iSCSI target puts commands off: ${why}`, {
    values: {
      operation: nameOf(OPERATION, task.command.operation),
      status: nameOf(STATUS, status),
      sense: sense === null ? null : describeSense(sense),
      tries: task.tries + 1,
    },
    nextAction:
      'The commands are sent again until it takes them. Look at the load and the log of the target; it says itself that it cannot.',
  });
}

function errorOf(task: InitiatorTask, blockBytes: number, status: number, sense: Sense | null): GodwitError {
  if (sense?.key === SENSE_KEY.dataProtect) {
    if (sense.asc !== SENSE.spaceAllocationFailed.asc) return readOnlyError();
    return new GodwitError('BLOCK_NO_SPACE', 'The iSCSI target has no space left', {
      nextAction: 'Make space on the host of the target.',
    });
  }
  return commandError(task, blockBytes, 'The iSCSI target failed a command', {
    status: nameOf(STATUS, status),
    sense: sense === null ? null : describeSense(sense),
    senseKey: sense?.key ?? null,
  });
}

export function commandError(
  task: InitiatorTask,
  blockBytes: number,
  message: string,
  values: Record<string, string | number | null>,
): GodwitError {
  return new GodwitError('ISCSI_COMMAND_FAILED', message, {
    values: {
      operation: nameOf(OPERATION, task.command.operation),
      lba: task.offsetBytes / blockBytes,
      lengthBytes: task.buffer.length,
      ...values,
    },
    nextAction: 'Look at the log of the target for the cause; a medium error means that its disk is failing.',
  });
}

/** The target does not know the command, or nothing of its kind. */
export function isIllegalRequest(error: unknown): boolean {
  return isGodwitError(error, 'ISCSI_COMMAND_FAILED') && error.values.senseKey === SENSE_KEY.illegalRequest;
}
