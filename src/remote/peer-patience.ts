import type { GodwitError } from '../base/errors.ts';

const PATIENCE_MAX = 8;

/**
 * By how many times the usual a peer is waited for on its next connection, 1 to 8, when the last one, for
 * which it was `before`, ended with `end`: doubles when the peer was silent (`retry: 'later'`), so that one
 * that is only slow gets its word in; halves with each other end. Pure.
 */
export function peerPatience(before: number, end: GodwitError): number {
  return end.retry === 'later' ? Math.min(before * 2, PATIENCE_MAX) : Math.max(1, before / 2);
}
