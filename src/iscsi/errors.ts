import { type ErrorValues, GodwitError } from '../base/errors.ts';

/** The peer broke the protocol. The connection that it happened on is of no more use. */
export function protocolError(message: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError('ISCSI_PROTOCOL', `iSCSI: ${message}`, {
    values,
    nextAction:
      'The connection is dropped and made anew. If this repeats, the peer is faulty or is not speaking iSCSI: check its address and version.',
  });
}
