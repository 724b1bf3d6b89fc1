import { GodwitError, isGodwitError } from './errors.ts';

/*
 * A question that came later than its conversation. Its row says with which release (`since`). A process of
 * before has no such row and refuses it by name, before it does anything: so nobody has to be told the
 * version of anybody, and what starts anew in the middle of a conversation is taken as it is then.
 */

/** By which whoever is asked says that it has no such question: in lines, of a volume, over HTTP. */
const REFUSALS = ['RPC_UNKNOWN_OP', 'VOLUME_UNKNOWN_OP', 'API_NO_ROUTE'];

/**
 * The refusal of a question that came later, by one of a version of before; of all other errors, and of
 * questions that there always were, false. One that knows it and has it not (`values.isKnown`) is of no
 * earlier version.
 */
export function isRefusedAsLater(error: unknown, since: unknown): error is GodwitError {
  return typeof since === 'string' && REFUSALS.some((code) => isGodwitError(error, code)) && !isKnown(error);
}

function isKnown(error: unknown): boolean {
  return error instanceof GodwitError && error.values.isKnown === true;
}

/** What a process of this host means that refuses a question which came later; of others the error itself. */
export function ofEarlierProcess(
  error: unknown,
  asked: { op: string; since: unknown; who: string },
): unknown {
  if (!isRefusedAsLater(error, asked.since)) return error;
  const { op, since, who } = asked;
  const message = `${who} runs since before an upgrade, and does not know ${op}`;
  return new GodwitError('RPC_EARLIER_VERSION', message, {
    values: { op, since: String(since) },
    retry: 'never',
    nextAction: 'Restart the machine: its processes are of the version of the worker then.',
    cause: error,
  });
}
