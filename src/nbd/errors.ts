import { type ErrorValues, GodwitError } from '../base/errors.ts';

/** The peer broke the protocol. The connection that it happened on is of no more use. */
export function protocolError(message: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError('NBD_PROTOCOL', `NBD: ${message}`, {
    values,
    nextAction:
      'The connection is dropped. If this repeats, the peer is faulty or is not speaking NBD: check its address and version.',
  });
}
